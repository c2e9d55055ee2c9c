"""Published files: the architecture from names and shapes (all 22 layouts), arguments that agree and contradict."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lavila.checkpoints.clip_weights import NOT_WEIGHTS, OF_TIME, visual_name
from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.layouts import architecture_of
from lavila.checkpoints.published import (
    PUBLISHED,
    _check_arguments,
    constants_of,
    published_architecture,
    published_name,
    read_published,
)
from lavila.checkpoints.store import build_model, load_model, read_extra
from lavila.models.narrator import Narrator
from tests.checkpoints.published_files import ARCHITECTURES, layouts, outputs, published_state, tiny, write

OPENAI = [name for name in layouts() if name.startswith("OPENAI_CLIP")]
MODELS = [name for name in layouts() if name not in OPENAI]
# What does not change what a loaded model computes, and so is not in a file without arguments.
LEFT_OUT = {"dropout": 0.0}


def shapes_of(layout: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in layouts()[layout]["tensors"].items()}


def on_meta(architecture: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return build_model(architecture)


@pytest.mark.parametrize("layout", MODELS)
def test_a_layout_alone_names_the_model_that_has_it(layout: str) -> None:
    shapes = shapes_of(layout)
    architecture = architecture_of(shapes)
    model = on_meta(architecture)
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert isinstance(model, Narrator) == layout.startswith("VCLM")
    constants = model.constant_buffers() if isinstance(model, Narrator) else {}
    assert not set(ours) & set(constants)
    assert {**ours, **{name: tuple(tensor.shape) for name, tensor in constants.items()}} == shapes
    assert [name for name in shapes if name not in constants] == list(ours)  # in the same order too
    assert model.architecture() == architecture  # type: ignore[operator]
    name = layouts()[layout]["model"]
    assert published_name(architecture) == (None if name.startswith("VideoClassifier") else name)
    assert f".f{architecture['tower']['num_frames']}" in layout
    _check_arguments(architecture, {"model": name, "project_embed_dim": 256, "gated_xattn": "gated" in layout})


@pytest.mark.parametrize("layout", [name for name in MODELS if layouts()[name]["model"] in PUBLISHED])
def test_a_published_name_alone_names_the_model_too(layout: str) -> None:
    found = architecture_of(shapes_of(layout))
    named = published_architecture(layouts()[layout]["model"], num_frames=found["tower"]["num_frames"])
    for part, gate in (("tower", "gated_time_attention"), ("decoder", "gated")):
        if part in found:
            named[part][gate] = found[part][gate]  # a separate argument, not part of the name
    assert named == found


def test_an_unknown_published_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'VCLM'.*CLIP_OPENAI_TIMESFORMER_BASE"):
        published_architecture("VCLM")


@pytest.mark.parametrize("layout", OPENAI)
def test_openais_layouts_are_distinguished_and_are_those_of_a_start(layout: str) -> None:
    shapes = shapes_of(layout)
    with pytest.raises(ValueError, match=r"OpenAI's CLIP"):
        architecture_of(shapes)
    name = {"B16": "BASE", "L14": "LARGE", "px": "LARGE_336PX"}[layout[-3:].removeprefix("6")]
    ours = shapes_of(f"CLIP_OPENAI_TIMESFORMER_{name}.f4")
    start = {}
    for theirs, shape in shapes.items():
        new = visual_name(theirs.removeprefix("visual.")) if theirs.startswith("visual.") else theirs
        start[new if new == theirs else f"visual.{new}"] = math.prod(shape)
    projections = {"image_projection", "text_projection", "visual.None"}
    of_time = {name for name in ours if any(part in name for part in OF_TIME)}
    expected = {n: math.prod(shape) for n, shape in ours.items() if n not in of_time | projections}
    assert {n: size for n, size in start.items() if n not in {*NOT_WEIGHTS, *projections}} == expected


def test_all_layouts_are_here() -> None:
    assert (len(MODELS), len(OPENAI)) == (19, 3)
    assert {layouts()[layout]["model"] for layout in MODELS} == {
        *PUBLISHED,
        "VideoClassifier",
        "VideoClassifierMultiHead",
    }


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_files_of_every_kind_load_with_the_same_numbers(kind: str, prefix: str, tmp_path: Path) -> None:
    model = tiny(kind)
    loaded = load_model(write(tmp_path / "m.pth", published_state(model, prefix=prefix)))
    found = loaded.architecture()  # type: ignore[operator]
    assert found == {**ARCHITECTURES[kind], **{name: LEFT_OUT[name] for name in LEFT_OUT if name in found}}
    assert not loaded.training
    for ours, theirs in zip(outputs(loaded), outputs(model), strict=True):
        assert torch.equal(ours, theirs)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_arguments_that_agree_load_and_give_the_dropout(tmp_path: Path) -> None:
    state = published_state(tiny("three heads"))
    args = {"num_classes": [3, 4, 6], "dropout_ratio": 0.25, "clip_length": 4, "output_dir": Path("job/1")}
    path = write(tmp_path / "m.pth", state, **args)
    assert load_model(path).architecture()["dropout"] == 0.25  # type: ignore[operator]
    published = read_published(path)
    assert published.epoch == 3
    assert published.arguments == {"num_classes": [3, 4, 6], "dropout_ratio": 0.25, "clip_length": 4}


CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    (
        "clip",
        {"model": "CLIP_OPENAI_TIMESFORMER_LARGE"},
        r"args.model='CLIP_OPENAI_TIMESFORMER_LARGE' .*tower.image_size=224.* 16; .*tower.width=1024.* 64; .*"
        r"text.depth=12.* 2",
    ),
    ("clip", {"model": "VCLM_OPENAI_TIMESFORMER_BASE_GPT2"}, r"kind='narrator'.* 'dual_encoder'; .*decoder.width=768"),
    ("clip", {"project_embed_dim": 256}, r"args.project_embed_dim=256 .*embed_dim=256.* 24"),
    ("egovlp", {"project_embed_dim": 256}, r"embed_dim=256.* 24"),
    (
        "egovlp",
        {"timesformer_gated_xattn": True},
        r"args.timesformer_gated_xattn=True .*tower.gated_time_attention=True.* False",
    ),
    ("narrator", {"gated_xattn": False}, r"args.gated_xattn=False .*decoder.gated=False.* True"),
    ("one head", {"num_classes": [106]}, r"args.num_classes=\[106\] .*num_classes=\[106\].* \[5\]"),
    ("three heads", {"num_classes": 3}, r"num_classes=\[3\].* \[3, 4, 6\]"),
    ("one head", {"model": "CLIP_OPENAI_TIMESFORMER_BASE"}, r"tower.width=768.* 64"),
]


@pytest.mark.parametrize(("kind", "args", "message"), CONTRADICTIONS)
def test_arguments_that_contradict_the_tensors_are_named(
    kind: str, args: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.pth", published_state(tiny(kind)), **args)
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_unknown_model_names_and_other_clip_lengths_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "m.pth", published_state(tiny("clip")), model="CLIP_OPENAI_VITB32", clip_length=16)
    assert load_model(path).visual.config.num_frames == 4  # type: ignore[union-attr]
    assert "args.model='CLIP_OPENAI_VITB32' is not among the published names" in caplog.text
    assert "args.clip_length=16, but the temporal embedding has 4 frames" in caplog.text


def test_arguments_that_would_fill_all_memory_are_left_out(tmp_path: Path) -> None:
    many: Any = [1, 2]
    for _ in range(40):
        many = [many, many]
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    args = {"many": many, "deep": deep, "numbered": {1: 2}, "project_embed_dim": [24] * 9999, "kept": {"a": (1, None)}}
    path = write(tmp_path / "m.pth", published_state(tiny("one head")), **args)
    assert read_published(path).arguments == {"project_embed_dim": [24] * 9999, "kept": {"a": (1, None)}}
    path = write(tmp_path / "m.pth", published_state(tiny("clip")), **args)
    with pytest.raises(CheckpointError, match=r"args\.project_embed_dim=\[24, 24,.*\.\.\.") as error:
        load_model(path)
    assert len(str(error.value)) < 400 + len(str(path))


@pytest.mark.parametrize("ratio", [1.0, -0.5, "0.5", [0.5]])
def test_a_dropout_that_is_none_is_refused(ratio: object, tmp_path: Path) -> None:
    path = write(tmp_path / "m.pth", published_state(tiny("one head")), dropout_ratio=ratio)
    with pytest.raises(CheckpointError, match=r"args\.dropout_ratio="):
        load_model(path)


def test_egovlps_raw_and_converted_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = tiny("egovlp")
    converted = {name: tensor for name, tensor in published_state(model).items() if name != "module.logit_scale"}
    raw = {}
    for name, tensor in converted.items():
        for old, new in (
            ("video_model.", "visual."),
            ("text_model.", "textual."),
            ("txt_proj.", "text_projection."),
            ("vid_proj.", "image_projection."),
        ):
            name = name.replace(f"module.{new}", f"module.{old}")
        raw[name] = tensor
    assert len(raw) == len(converted)
    assert not set(raw) & set(converted)
    torch.save({"arch": "FrozenInTime", "epoch": 5, "state_dict": raw, "monitor_best": 0.5}, tmp_path / "raw.pth")
    torch.save({"epoch": 0, "state_dict": converted, "best_acc1": 0}, tmp_path / "converted.pth")
    for name in ("raw.pth", "converted.pth"):
        caplog.clear()
        loaded = load_model(tmp_path / name, num_frames=2)
        assert "logit_scale" in caplog.text and "0.07" in caplog.text
        assert loaded.temperature_scale().item() == pytest.approx(1 / 0.07)  # type: ignore[operator]
        wanted = {**model.state_dict(), "logit_scale": loaded.state_dict()["logit_scale"]}
        wanted["visual.temporal_embed"] = wanted["visual.temporal_embed"][:, :2]
        assert all(torch.equal(tensor, wanted[n]) for n, tensor in loaded.state_dict().items())


def test_pictures_of_a_published_file(tmp_path: Path) -> None:
    for kind, first in (("clip", 108.3272985), ("egovlp", 123.675)):
        extra = read_extra(write(tmp_path / "m.pth", published_state(tiny(kind))))
        assert list(extra) == ["pictures"]
        assert f'"mean": [{first}, ' in extra["pictures"]
        assert extra["pictures"].endswith('"frames": 4}')


def test_constants_are_dropped_by_name_and_only_if_they_are_constant(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    state = published_state(tiny("narrator"))
    load_model(write(tmp_path / "m.pth", state))
    assert "constant buffers dropped: text_decoder.transformer.h.0.attn.bias, text_decoder.transf" in caplog.text
    name = "module.text_decoder.transformer.h.2.attn.bias"
    changed = state[name].clone()
    changed[0, 0, 3, 1] = 0
    message = r"text_decoder\.transformer\.h\.2\.attn\.bias"
    with pytest.raises(CheckpointError, match=message):
        load_model(write(tmp_path / "m.pth", {**state, name: changed}))
    model = tiny("distilbert")
    places = {"module.textual.embeddings.position_ids": torch.arange(9)[None]}
    caplog.clear()
    load_model(write(tmp_path / "m.pth", {**published_state(model), **places}))
    assert "constant buffers dropped: textual.embeddings.position_ids" in caplog.text
    assert set(constants_of(model)) == {"textual.embeddings.position_ids"}


def test_tensors_missing_left_over_and_misshapen_are_listed(tmp_path: Path) -> None:
    state = published_state(tiny("clip"))
    del state["module.visual.blocks.1.norm3.bias"]
    state |= {"module.stray": torch.zeros(2), "module.ln_final.weight": torch.zeros(3)}
    with pytest.raises(CheckpointError) as error:
        load_model(write(tmp_path / "m.pth", state))
    assert (
        "missing: visual.blocks.1.norm3.bias; left over: stray; misshapen: ln_final.weight [3] instead of [64]"
    ) in str(error.value)


def test_two_word_embeddings_that_differ_are_refused(tmp_path: Path) -> None:
    state = published_state(tiny("narrator"))
    state["module.text_decoder.lm_head.weight"] = state["module.text_decoder.lm_head.weight"] + 1
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.*wte\.weight"):
        load_model(write(tmp_path / "m.pth", state))


def test_half_precision_loads_as_float32(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in published_state(tiny("clip")).items()}
    loaded = load_model(write(tmp_path / "m.pth", state)).state_dict()
    assert all(torch.equal(loaded[name.removeprefix("module.")], tensor.float()) for name, tensor in state.items())


def test_more_frames_and_larger_pictures_of_a_published_file(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pth", published_state(tiny("clip")))
    model = load_model(path, num_frames=8, image_size=32)
    assert model.encode_video(torch.randn(1, 3, 8, 32, 32)).shape == (1, 24)  # type: ignore[operator]


def without(kind: str, *dropped: str) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny(kind).state_dict().items()}
    return {name: shape for name, shape in shapes.items() if not name.startswith(dropped)}


def test_what_is_no_model_is_refused() -> None:
    for shapes, message in (
        ({}, "visual.*fc_cls"),
        ({"features.0.weight": (3,)}, "features"),
        (without("clip", "token_embedding"), "image_projection, ln_final"),
        (without("clip", "visual.pos_embed"), "visual.pos_embed"),
        ({**without("clip"), "visual.pos_embed": (5, 64)}, r"visual.pos_embed.*\[5, 64\]"),
        ({**without("clip"), "visual.pos_embed": (1, 0, 64)}, r"visual.pos_embed.*\[1, 0, 64\]"),
        (
            {**without("clip"), "token_embedding.weight": (50, 60)},
            "60.*64",
        ),
        (
            {**without("narrator"), "text_decoder.transformer.h.3.crossattention.c_proj.weight": (64, 64)},
            r"\[0, 2, 3\].*4",
        ),
        (without("narrator", "text_decoder.transformer.h.0.cross"), r"\[2\].*4"),
    ):
        with pytest.raises(ValueError, match=message):
            architecture_of(shapes)


def test_state_dicts_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    tensor = torch.zeros(2)
    for content, message in (
        ([tensor], "state_dict.*LaViLa"),
        ({"state_dict": {}}, "state_dict"),
        ({"state_dict": {"a": tensor, "b": 7}}, "state_dict.*: b"),
        ({"state_dict": {"module.a": tensor, "a": tensor}}, "module.a"),
        ({"epoch": 1, "a": tensor}, ": epoch"),
        ({"a": tensor}, "found a"),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message) as error:
            load_model(path)
        assert str(error.value).startswith(f"{path}: ")
