"""Models in files: round trips, resampling (against tests/golden/models/inflate_temporal_embed), every refusal."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lavila import files
from lavila.checkpoints import store as checkpoints_module
from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import (
    Inflation,
    build_model,
    inflate_temporal_embed,
    load_model,
    read_extra,
    resize_pos_embed,
    save_model,
)
from lavila.models.classifier import VideoClassifier
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from tests.checkpoints.published_files import ARCHITECTURES, outputs, tiny
from tests.golden_files import GOLDEN

TINY = TimeSformerConfig(image_size=16, patch_size=8, width=24, depth=1, heads=2, num_frames=2, drop_path=0.1)


def classifier(*num_classes: int) -> VideoClassifier:
    return VideoClassifier(TimeSformer(TINY), num_classes=num_classes, dropout=0.25)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(classifier(3, 4), path)
    return path


def rewrite(path: Path, *, drop: str = "", **changes: torch.Tensor) -> None:
    """The same file with tensors taken out, added or replaced."""
    metadata = checkpoints_module._read_metadata(path)
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != drop}
    save_file({**tensors, **changes}, path, metadata=metadata)


@pytest.mark.parametrize("model", [classifier(5), classifier(3, 4), TimeSformer(TINY)], ids=["one", "two", "tower"])
def test_round_trip(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model, path, extra={"step": "12"})
    loaded = load_model(path)
    assert type(loaded) is type(model)
    assert loaded.architecture() == model.architecture()  # type: ignore[operator]
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    video = torch.randn(1, 3, 2, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(video), model.eval()(video), rtol=1e-5, atol=1e-6)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert read_extra(path) == {"step": "12"}
    assert os.listdir(tmp_path) == ["m.safetensors"]  # noqa: PTH208 - hidden files too


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_round_trip_of_every_kind(kind: str, tmp_path: Path) -> None:
    model = tiny(kind)
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.architecture() == ARCHITECTURES[kind]  # type: ignore[operator]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    # Equal weights elsewhere in memory: on some processors MKL's last bits depend on that.
    for ours, theirs in zip(outputs(loaded), outputs(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert list(loaded.state_dict()) == list(model.state_dict())


def test_what_is_one_tensor_is_stored_once_and_is_one_again(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(tiny("narrator"), path)
    assert "text_decoder.transformer.wte.weight" in load_file(path)
    assert "text_decoder.lm_head.weight" not in load_file(path)
    model = load_model(path)
    head, embedding = (f"text_decoder.{name}.weight" for name in ("lm_head", "transformer.wte"))
    assert model.get_parameter(head) is model.get_parameter(embedding)


def test_architecture_is_plain_json_and_builds_the_same_shapes() -> None:
    model = classifier(3, 4)
    architecture = json.loads(json.dumps(model.architecture()))
    again = build_model(architecture)
    assert {n: p.shape for n, p in again.state_dict().items()} == {n: p.shape for n, p in model.state_dict().items()}


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    save_model(classifier(3).half(), tmp_path / "m.safetensors")
    assert {p.dtype for p in load_model(tmp_path / "m.safetensors").parameters()} == {torch.float32}


def test_files_have_the_umasks_mode(saved: Path) -> None:
    plain = saved.with_name("plain")
    plain.touch()
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full_disk(_: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(files, "sync", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_model(classifier(7), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_folders_of_a_run_are_read(tmp_path: Path) -> None:
    run, tmp_path = tmp_path, tmp_path / "checkpoints"
    for step, classes in (("step-0000001", 3), ("step-0000002", 5)):
        (tmp_path / step).mkdir(parents=True)
        save_model(classifier(classes), tmp_path / step / "model.safetensors")
    (tmp_path / "latest").write_text("step-0000001\n")
    for path, classes in ((tmp_path, 3), (run, 3), (tmp_path / "step-0000002", 5), (str(tmp_path / "step-0000002"), 5)):
        assert load_model(path).num_classes == (classes,)
    (tmp_path / "latest").write_text("step-0000009")
    with pytest.raises(CheckpointError, match="'step-0000009'"):
        load_model(tmp_path)
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(CheckpointError, match=r"'\.\./elsewhere'"):
        load_model(tmp_path)


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'tsf_b'.*model\.safetensors.*latest"):
        load_model("tsf_b")
    for name, message in (
        ("clip_openai.pth", r"clip_openai\.pth.*torch\.save.*b'x'"),
        ("a.txt", r"a\.txt"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path / name)


def test_names_near_those_of_the_zoo_are_suggested(tmp_path: Path) -> None:
    nearest = r"lavila_tsf_l_ep3"
    for name in ("lavila_tsf_l_ep2", "LaViLa_TSF_L_ep3", str(tmp_path / "lavila_tsf_l_ep3.pth")):
        with pytest.raises(CheckpointError, match=nearest):
            load_model(name)
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path / "mine.pth")
    assert "did you mean" not in str(error.value)


def test_damaged_files_are_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for damaged in (whole[:-100], whole[:50], b""):
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=saved.name):
            load_model(saved)


def test_foreign_files_and_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    architecture = json.dumps(TimeSformer(TINY).architecture())
    for metadata in (None, {"lavila.format": "99", "lavila.architecture": architecture}, {"lavila.format": "1"}):
        save_file({"a": torch.zeros(1)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=r"'1'"):
            load_model(path)
    for wrong, message in (
        ({"kind": "mamba"}, r"'mamba'.*'classifier', 'dual_encoder', .*'timesformer'"),
        ([], "architecture"),
        ({"kind": "classifier", "tower": 1}, "architecture"),
        ({"kind": ["classifier"]}, "architecture"),
        ({**ARCHITECTURES["clip"], "embed_dim": "9"}, "architecture"),
        ({"kind": "timesformer", "color": 1}, r"\['activation'.*\['color'"),
    ):
        save_file(
            {"a": torch.zeros(1)},
            path,
            metadata={"lavila.format": "1", "lavila.architecture": json.dumps(wrong)},
        )
        with pytest.raises(CheckpointError, match=message):
            load_model(path)


def test_tensors_that_do_not_fit_are_listed(saved: Path) -> None:
    rewrite(saved, drop="visual.norm.bias", **{"stray": torch.zeros(1), "fc_cls.0.bias": torch.zeros(9)})
    with pytest.raises(CheckpointError) as error:
        load_model(saved)
    message = str(error.value)
    assert "missing: visual.norm.bias" in message
    assert "left over: stray" in message
    assert "misshapen: fc_cls.0.bias [9] instead of [3]" in message
    assert "\n" not in message


def test_save_refuses_wrappers_reserved_names_and_suffixes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Sequential"):
        save_model(nn.Sequential(classifier(3)), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"\['lavila.format'\]"):
        save_model(classifier(3), tmp_path / "m.safetensors", extra={"lavila.format": "2"})
    with pytest.raises(ValueError, match=r"\.safetensors"):
        save_model(classifier(3), tmp_path / "m.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["bilinear", "zeros", "interp"])
@pytest.mark.parametrize("case", ["4to16", "16to4", "4to8", "8to16", "4to6", "5to16", "4to4", "1to4"])
def test_inflation_equals_the_reference(case: str, mode: Inflation) -> None:
    golden = load_file(GOLDEN / "models/inflate_temporal_embed.safetensors")
    ours = inflate_temporal_embed(golden[f"in.{case}"], int(case.split("to")[1]), mode)
    torch.testing.assert_close(ours, golden[f"out.{case}.{mode}"], rtol=0, atol=1e-6)


def test_inflation_refuses_other_modes_and_shapes() -> None:
    with pytest.raises(ValueError, match=r"mode='cubic'"):
        inflate_temporal_embed(torch.zeros(1, 4, 8), 8, "cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[1, T, D\]"):
        inflate_temporal_embed(torch.zeros(4, 8), 8)


def test_more_frames_and_larger_pictures(saved: Path) -> None:
    stored = load_file(saved)
    model = load_model(saved, num_frames=5, image_size=32)
    assert isinstance(model, VideoClassifier)
    assert [head.shape for head in model(torch.randn(1, 3, 5, 32, 32))] == [(1, 3), (1, 4)]
    assert model.visual.config.num_frames == 5
    assert model.visual.config.image_size == 32
    expected = inflate_temporal_embed(stored["visual.temporal_embed"], 5)
    torch.testing.assert_close(model.visual.temporal_embed.data, expected)
    torch.testing.assert_close(model.visual.pos_embed.data, resize_pos_embed(stored["visual.pos_embed"], 17))
    fewer = load_model(saved, num_frames=1)
    assert isinstance(fewer, VideoClassifier)
    torch.testing.assert_close(fewer.visual.temporal_embed.data, stored["visual.temporal_embed"][:, :1])
    with pytest.raises(CheckpointError, match="num_frames=0"):
        load_model(saved, num_frames=0)
    with pytest.raises(CheckpointError, match="image_size=20"):
        load_model(saved, image_size=20)


def test_pos_embed_resampling_keeps_the_class_token_and_a_plane() -> None:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    plane = torch.stack([rows, columns], -1).flatten(0, 1)
    embed = torch.cat([torch.full((1, 2), 7.0), plane])[None]
    out = resize_pos_embed(embed, 1 + 16**2)
    assert torch.equal(out[:, 0], embed[:, 0])
    grid = out[0, 1:].view(16, 16, 2)
    centres = (torch.arange(16.0) + 0.5) / 2 - 0.5
    inner = slice(4, 12)  # beyond these the border's repetition shows
    # torch's bicubic kernel (a = -0.75) is up to 0.047 off on a plane; corners aligned would be 0.117 off here.
    torch.testing.assert_close(grid[inner, 5, 0], centres[inner], rtol=0, atol=0.05)
    torch.testing.assert_close(grid[5, inner, 1], centres[inner], rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="18"):
        resize_pos_embed(embed, 18)
