"""Published checkpoints into our form and back: bit for bit, with a report of every name that changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import convert_checkpoint
import pytest
import torch
import yaml

from lavila.checkpoints import convert as convert_module
from lavila.checkpoints.layouts import architecture_of
from lavila.checkpoints.published import PUBLISHED
from lavila.checkpoints.store import build_model, load_model, read_extra, save_model
from lavila.checkpoints.zoo import ZOO
from lavila.pickles.tensors import read_pickled
from tests import forks
from tests.checkpoints.published_files import ARCHITECTURES, TOWER, layouts, outputs, published_state, tiny, write


def convert(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    status = convert_checkpoint.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out.splitlines()


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert convert_checkpoint.main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err


def same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    def bits(tensor: torch.Tensor) -> tuple[object, ...]:
        return tensor.dtype, tensor.shape, tensor.contiguous().numpy().tobytes()

    return ours.keys() == theirs.keys() and all(bits(ours[name]) == bits(theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_there_and_back_is_the_same_bits(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = published_state(tiny(kind))
    args = {"clip_length": 4, "lr": 3e-5, "betas": [0.9, 0.999], "norm_embed": True}
    source = write(tmp_path / "theirs.pth", state, **args)
    convert(capsys, source, "--out", tmp_path / "ours")
    convert(capsys, tmp_path / "ours", "--to", "lavila", "--out", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=False)
    assert list(back) == ["epoch", "state_dict", "args"]
    assert same_bits(back["state_dict"], state)
    assert back["epoch"] == 3
    assert {**vars(back["args"]), **args} == vars(back["args"])
    for path in (tmp_path / "ours", tmp_path / "back.pth"):
        for ours, theirs in zip(outputs(load_model(path)), outputs(tiny(kind)), strict=True):
            assert torch.equal(ours, theirs)


def test_our_form_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = ZOO["egovlp_best"].file.name
    source = write(tmp_path / name, published_state(tiny("egovlp")))
    convert(capsys, source, "--out", tmp_path / "ours")
    facts = yaml.safe_load((tmp_path / "ours" / "config.yaml").read_text(encoding="utf-8"))
    assert facts["zoo"] == "egovlp_best"
    assert facts["pictures"] == {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "frames": 4}
    assert facts["architecture"] == ARCHITECTURES["egovlp"]
    extra = read_extra(tmp_path / "ours")
    assert (extra["zoo"], extra["epoch"], extra["args"]) == ("egovlp_best", "3", "{}")
    assert json.loads(extra["pictures"]) == facts["pictures"]


def test_the_report_names_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny("egovlp")
    raw = {
        name.replace("module.visual.", "module.video_model.").replace("module.text_projection.", "module.txt_proj."): t
        for name, t in published_state(model).items()
        if name != "module.logit_scale"
    }
    raw["module.textual.embeddings.position_ids"] = torch.arange(9)[None]
    raw["module.image_projection.0.bias"] = raw["module.image_projection.0.bias"].half()
    lines = convert(capsys, write(tmp_path / "raw.pth", raw), "--out", tmp_path / "ours")
    count = len(model.state_dict())
    assert lines[0] == f"{tmp_path / 'raw.pth'}: dual_encoder_distilbert, in LaViLa: no model name"
    assert lines[1] == f"{count} tensors"
    assert lines[2] == f'{count} names lose the prefix "module."'
    visual = sum(name.startswith("visual.") for name in model.state_dict())
    assert lines[3].startswith(f"{visual + 2} renamed: module.video_model.cls_token -> visual.cls_token, module.video")
    assert lines[3].endswith(f" and {visual + 2 - 6} more")
    assert lines[4] == "1 constant, dropped: textual.embeddings.position_ids"
    assert lines[5] == "1 not in the file, supplied: logit_scale"
    assert lines[6] == "1 half precision, as float32: image_projection.0.bias"
    assert lines[7] == f"written: {tmp_path / 'ours/model.safetensors'}, {tmp_path / 'ours/config.yaml'}"
    assert len(lines) == 8


def test_arguments_from_which_lavila_builds_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected: dict[str, dict[str, Any]] = {
        "clip": {"project_embed_dim": 24},
        "narrator": {"project_embed_dim": 256, "gated_xattn": True},
        "three heads": {"num_classes": [3, 4, 6], "use_vn_classifier": True, "dropout_ratio": 0.5},
        "one head": {"num_classes": [5], "use_vn_classifier": False, "dropout_ratio": 0.5},
    }
    for kind, args in expected.items():
        save_model(tiny(kind), tmp_path / f"{kind}.safetensors")
        convert(capsys, tmp_path / f"{kind}.safetensors", "--to", "lavila", "--out", tmp_path / f"{kind}.pth")
        always = {"clip_length": 4, "use_cls_token": False, "timesformer_gated_xattn": False}
        assert read_pickled(tmp_path / f"{kind}.pth").content["args"].state == {**always, **args}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_get_their_published_name(name: str) -> None:
    layout = next(one for key, one in layouts().items() if one["model"] == name and not key.startswith("OPENAI"))
    architecture = architecture_of({n: tuple(shape) for n, shape in layout["tensors"].items()})
    with torch.device("meta"):
        model = build_model(architecture)
    assert convert_module.arguments_of(model.architecture())["model"] == name  # type: ignore[operator]
    assert convert_checkpoint.architecture_line(model).endswith(f"in LaViLa: {name}")


def test_what_lavilas_form_cannot_hold_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tower, reason in (
        ({"heads": 2}, "whose tower.heads is 2 and would be read as 1"),
        ({"activation": "gelu"}, "whose tower.activation is 'gelu' and would be read as 'quick_gelu'"),
        ({"width": 48, "heads": 2}, "the video tower is 48 wide: expected a multiple of 64"),
    ):
        architecture = {**ARCHITECTURES["one head"], "tower": {**TOWER, **tower}}
        path = tmp_path / "m.safetensors"
        save_model(build_model(architecture), path)
        message = refusal(capsys, path, "--to", "lavila", "--out", tmp_path / "m.pth")
        assert "error: LaViLa's form cannot hold this model" in message
        assert reason in message
        assert not (tmp_path / "m.pth").exists()
    save_model(build_model(TOWER), path)
    assert "cannot hold this model: holds the tensors of no model here" in refusal(
        capsys, path, "--to", "lavila", "--out", tmp_path / "m.pth"
    )
    save_model(build_model({**ARCHITECTURES["one head"], "tower": {**TOWER, "drop_path": 0.3}}), path)
    convert(capsys, path, "--to", "lavila", "--out", tmp_path / "m.pth")  # which only training sees


def test_mistakes_are_refused_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.pth").write_bytes(b"<html>")
    assert "bad.pth: is no file of torch.save" in refusal(capsys, tmp_path / "bad.pth", "--out", tmp_path / "ours")
    assert "no model at" in refusal(capsys, tmp_path / "none.pth", "--out", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    good = write(tmp_path / "good.pth", published_state(tiny("one head")))
    for arguments, message in (
        (["--to", "lavila", "--out", tmp_path / "x"], "give a name that ends in .pth"),
        (["--out", tmp_path / "x.safetensors"], "our form is a folder; give a name without .safetensors"),
        (["--to", "lavila", "--out", good], "is there already; remove it or give another name"),
        (["--to", "onnx", "--out", tmp_path / "x"], "invalid choice: 'onnx'"),
    ):
        with pytest.raises(SystemExit) as ended:
            convert_checkpoint.main([str(good), *map(str, arguments)])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pth", "good.pth"]


def test_the_command_line(tmp_path: Path) -> None:
    source = write(tmp_path / "m.pth", published_state(tiny("clip")))
    result = forks.run(forks.ROOT / "tools/convert_checkpoint.py", source, "--out", tmp_path / "ours")
    assert result.returncode == 0, result.stderr
    assert "dual_encoder, in LaViLa: no model name" in result.stdout
    assert load_model(tmp_path / "ours").embed_dim == 24
