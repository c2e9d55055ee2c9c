"""State dicts that a wrapper made longer names for: read without the wrapper, and saved without it."""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import load_model, save_model
from lavila.checkpoints.wrappers import state_of, taken_off, unwrapped
from tests.checkpoints.published_files import outputs, published_state, tiny, write

WRAPPERS: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "compiled and distributed": lambda name: f"module._orig_mod.{name}",
    "distributed and compiled": lambda name: f"_orig_mod.module.{name}",
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name}",
    "a trainer": lambda name: f"model.{name}",
    "a compiled trainer's": lambda name: f"model._orig_mod.{name}",
    "only the tower is compiled": lambda name: name.replace("visual.", "visual._orig_mod."),
    "checkpointed blocks": lambda name: name.replace("attn.", "attn._checkpoint_wrapped_module."),
}


def wrapped(kind: str, wrapper: str) -> dict[str, Tensor]:
    return {WRAPPERS[wrapper](name): tensor for name, tensor in published_state(tiny(kind), prefix="").items()}


@pytest.mark.parametrize("kind", ["one head", "clip", "egovlp", "narrator"])
@pytest.mark.parametrize("wrapper", list(WRAPPERS))
def test_a_wrapped_state_dict_is_read(
    kind: str, wrapper: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = wrapped(kind, wrapper)
    caplog.set_level(logging.INFO, "lavila")
    loaded = load_model(write(tmp_path / "m.pth", state))
    for found, wanted in zip(outputs(loaded), outputs(tiny(kind)), strict=True):
        assert torch.equal(found, wanted)
    parts = {f"{part}." for name in state for part in name.split(".")} & {
        "_orig_mod.",
        "_fsdp_wrapped_module.",
        "model.",
    }
    assert all(part in caplog.text for part in parts)  # it says what it took off


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module", "weights", None])
def test_where_the_state_dict_may_lie(key: str | None, tmp_path: Path) -> None:
    state = published_state(tiny("one head"), prefix="_orig_mod.")
    content: dict[str, Any] = dict(state) if key is None else {"epoch": 2, key: state, "optimizer": {}}
    torch.save(content, tmp_path / "m.pth")
    assert torch.equal(outputs(load_model(tmp_path / "m.pth"))[0], outputs(tiny("one head"))[0])


def test_an_average_of_models(tmp_path: Path) -> None:
    """torch's AveragedModel counts in a separate tensor."""
    average = torch.optim.swa_utils.AveragedModel(tiny("one head"))
    torch.save({"state_dict": average.state_dict()}, tmp_path / "m.pth")
    assert torch.equal(outputs(load_model(tmp_path / "m.pth"))[0], outputs(tiny("one head"))[0])


@pytest.mark.parametrize("name", ["best.pth.tar", "BEST.PTH", "best.tar", "last.ckpt"])
def test_endings_of_checkpoints(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, published_state(tiny("one head")))
    assert torch.equal(outputs(load_model(path))[0], outputs(tiny("one head"))[0])


def test_a_tar_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard-000000.tar", "w") as archive:
        archive.add(Path(__file__), "a.py")
    with pytest.raises(CheckpointError, match=r"shard-000000\.tar"):
        load_model(tmp_path / "shard-000000.tar")


def test_a_compiled_model_is_saved_under_its_own_names(tmp_path: Path) -> None:
    model = tiny("clip")
    save_model(torch.compile(model), tmp_path / "m.safetensors")  # type: ignore[arg-type]
    save_model(model, tmp_path / "plain.safetensors")
    saved, plain = load_file(tmp_path / "m.safetensors"), load_file(tmp_path / "plain.safetensors")
    assert saved.keys() == plain.keys() and all(torch.equal(saved[name], plain[name]) for name in plain)
    assert torch.equal(outputs(load_model(tmp_path / "m.safetensors"))[0], outputs(tiny("clip"))[0])
    model.visual.blocks[0] = torch.compile(model.visual.blocks[0])  # type: ignore[union-attr, operator, index]
    save_model(model, tmp_path / "part.safetensors")
    assert torch.equal(outputs(load_model(tmp_path / "part.safetensors"))[0], outputs(tiny("clip"))[0])


def test_a_file_of_ours_with_wrapped_names_is_read(tmp_path: Path) -> None:
    """Earlier versions saved a compiled model so."""
    save_model(tiny("one head"), tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as opened:
        metadata = opened.metadata()
    state = {f"_orig_mod.{name}": tensor for name, tensor in load_file(tmp_path / "m.safetensors").items()}
    save_file(state, tmp_path / "m.safetensors", metadata=metadata)
    assert torch.equal(outputs(load_model(tmp_path / "m.safetensors"))[0], outputs(tiny("one head"))[0])


def test_names() -> None:
    assert unwrapped(["a.b", "c"]) == {"a.b": "a.b", "c": "c"}
    assert unwrapped(["model.a", "other.b"]) == {"model.a": "model.a", "other.b": "other.b"}  # no wrapper of all
    assert unwrapped(["module.model.a", "module.model.b"]) == {"module.model.a": "a", "module.model.b": "b"}
    assert taken_off(unwrapped(["module.model.a", "module.model._orig_mod.b"])) == ["module.", "model.", "_orig_mod."]
    assert state_of({"state_dict": {}, "model": {"a": 1}}) == {"a": 1}
    assert state_of([1]) is None
