"""Pickled checkpoints from strangers: tensors come through bit for bit, nothing is executed, damage is refused."""

from __future__ import annotations

import argparse
import builtins
import functools
import io
import operator
import os
import pickle
import re
import struct
import subprocess
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.testing
import pytest
import torch
import torch.utils.collect_env
from torch import Tensor, nn

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import load_model
from lavila.pickles.errors import PickleError
from lavila.pickles.tensors import PickledFile, Record, StoredTensor, read_pickled, read_tensors
from tests.checkpoints.published_files import FILES, SAMPLES, published_state, tiny

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64),
    *(torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
FORMATS = {"zip": True, "before 1.6": False}


def refusal(path: Path) -> str:
    with pytest.raises(PickleError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 500 + len(str(path))
    return message


def archive(path: Path, pickled: bytes, **members: bytes) -> Path:
    """A file in torch's zip format around any pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for name, content in members.items():
            file.writestr(f"archive/{name.replace('__', '/')}", content)
    return path


def tensors_of(file: PickledFile) -> dict[str, Tensor]:
    return file.tensors(file.content["state_dict"])


@pytest.mark.parametrize("sample", SAMPLES)
def test_files_of_the_published_structure_are_read(sample: str) -> None:
    file = read_pickled(FILES / sample)
    content = file.content
    expected = {"epoch", "state_dict", "best_acc1"}
    if "egovlp" not in sample:
        expected |= {"optimizer", "scaler", "args"} | ({"criterion"} if "pretrain" in sample else set())
        assert content["args"].name == "argparse.Namespace"
        assert content["args"].state["output_dir"].name == "pathlib.PosixPath"
        assert content["args"].state["output_dir"].arguments == ("job", "123")
        assert content["args"].state["clip_length"] == (4 if "pretrain" in sample else 16)
        assert content["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999) or "cls" in sample
        assert "argparse.Namespace" in file.records
    assert set(content) == expected
    assert content["epoch"] in (0, 5, 85, 100)
    assert all(isinstance(tensor, StoredTensor) for tensor in content["state_dict"].values())
    ours = tensors_of(file)
    assert ours["module.visual.temporal_embed"].shape[0] == 1
    theirs = stock(FILES / sample)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(CheckpointError):  # a few short tensors are no model
        load_model(FILES / sample)


def stock(path: Path) -> dict[str, Tensor]:
    """The same tensors by torch itself, which may execute these files: they are ours. pandas need not be there."""

    class Anything:
        def __init__(self, *_: object) -> None: ...
        def __setstate__(self, _: object) -> None: ...

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return Anything if module.startswith("pandas") else super().find_class(module, name)

    module = types.ModuleType("unpickling")
    module.Unpickler, module.load = Unpickler, pickle.load  # type: ignore[attr-defined]
    found: dict[str, Tensor] = torch.load(path, weights_only=False, pickle_module=module)["state_dict"]
    return found


def test_a_pandas_table_and_numpy_numbers_become_records() -> None:
    args = read_pickled(FILES / "finetune_ek100_cls_style.pt").content["args"].state
    assert args["num_classes"] == [97, 300, 3806]
    assert args["actions"].name == "pandas.core.frame.DataFrame"
    best = read_pickled(FILES / "pretrain_style.pt").content["best_acc1"]
    assert (type(best), best.name) == (Record, "numpy.core.multiarray.scalar")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_tensors_come_through_bit_for_bit(form: str, protocol: int, tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {str(dtype): torch.tensor([[0, 1, 3], [2, 0, 1]]).to(dtype) for dtype in DTYPES}
    state |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "turned": base.t(), "part": base[1:3, ::2]}
    state |= {"parameter": nn.Parameter(torch.ones(3)), "nan": torch.tensor([float("nan"), -0.0])}
    state = OrderedDict(state)
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined] - as nn.Module does
    path = tmp_path / "m.pth"
    content = {"state_dict": state, "args": argparse.Namespace(a=[1, (2.5, None)], size=torch.Size([2, 3]))}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=FORMATS[form])
    file = read_pickled(path)
    found = tensors_of(file)
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].nan_to_num(7), tensor.nan_to_num(7)), name
    assert file.content["args"].state["a"] == [1, (2.5, None)]
    assert found["part"].untyped_storage().nbytes() < base.untyped_storage().nbytes()  # the rest is not kept
    assert all(tensor.untyped_storage().resizable() or tensor.numel() for tensor in found.values())


@pytest.mark.parametrize("form", FORMATS)
def test_tensors_that_were_one_are_one_again(form: str, tmp_path: Path) -> None:
    shared = torch.randn(3, 2)
    path = tmp_path / "m.pth"
    torch.save({"a": shared, "b": shared, "c": shared.clone()}, path, _use_new_zipfile_serialization=FORMATS[form])
    found = read_tensors(path)
    assert found["a"].data_ptr() == found["b"].data_ptr() != found["c"].data_ptr()


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """Training files carry the optimizer's moments, twice as much as the weights."""
    path = tmp_path / "m.pth"
    torch.save({"state_dict": {"a": torch.ones(4)}, "optimizer": {"state": torch.ones(1_000_000)}}, path)
    tracemalloc.start()
    try:
        assert torch.equal(tensors_of(read_pickled(path))["a"], torch.ones(4))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 3).half()
        self.layers = nn.Sequential(nn.LayerNorm(4))
        self.size = 7

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.proj(x)) * self.size  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_tensors_of_a_torchscript_archive(tmp_path: Path) -> None:
    model = Scripted()
    torch.jit.script(model).save(str(tmp_path / "m.pt"))
    found = read_tensors(tmp_path / "m.pt")
    assert list(found) == list(model.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


class Call:
    """Pickles as a call that is made when it is read."""

    def __init__(self, function: Callable[..., object], *arguments: object, state: object = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


def attacks(canary: Path) -> dict[str, object]:
    """Objects that make the file `canary` when an ordinary unpickler reads them."""
    write = f"open({str(canary)!r}, 'w')"
    get_open = Call(getattr, Call(__import__, "builtins"), "open")
    inner = canary.parent / "inner.pth"
    return {
        "os.system": Call(os.system, f"touch {canary}"),
        "eval": Call(eval, write),
        "exec": Call(exec, write),
        "open": Call(open, str(canary), "w"),
        "subprocess": Call(subprocess.check_call, ["touch", str(canary)]),
        "getattr chain": Call(operator.call, get_open, str(canary), "w"),
        "map": Call(list, Call(map, eval, [write])),
        "numpy": Call(np.savetxt, str(canary), [1.0]),
        "runstring": Call(numpy.testing.runstring, write, {}),
        "torch.save": Call(torch.save, 1, str(canary)),
        "torch.load": Call(functools.partial(torch.load, str(inner), weights_only=False)),
        "torch's shell": Call(torch.utils.collect_env.run, f"touch {canary}"),
        "module's state": Call(__import__, "os", state={"canary": Call(eval, write)}),
        "in a namespace": argparse.Namespace(model=Call(eval, write)),
    }


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("where", ["args", "state_dict", "root"])
@pytest.mark.parametrize("name", attacks(Path()))
def test_attacks_get_an_error_and_run_nothing(name: str, where: str, form: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "m.pth"
    torch.save(Call(os.system, f"touch {canary}"), tmp_path / "inner.pth")
    attack = attacks(canary)[name]
    content: Any = {"epoch": 1, "state_dict": published_state(tiny("one head")), "args": argparse.Namespace(a=1)}
    if where == "root":
        content = attack
    elif where == "args":
        content["args"].b = attack
    else:
        content["state_dict"]["module.visual.norm.bias"] = attack
    torch.save(content, path, _use_new_zipfile_serialization=FORMATS[form])
    with pytest.raises(CheckpointError, match=r"'.*'"):
        load_model(path)
    assert not canary.exists()
    try:
        torch.load(path, weights_only=False)
    except Exception:  # after the harm is done
        assert canary.exists()
    assert canary.exists(), "the attack is none"


def words(parts: list[object]) -> bytes:
    """Opcodes, with whatever is no bytes pickled in place."""
    found = (part if isinstance(part, bytes) else pickle.dumps(part, protocol=2)[2:-1] for part in parts)
    return b"\x80\x02" + b"".join(found) + b"."


STORAGE: list[object] = [b"(", "storage", b"ctorch\nFloatStorage\n", "0", "cpu", 6, b"tQ"]
REBUILD: list[object] = [b"ctorch._utils\n_rebuild_tensor_v2\n(", *STORAGE]
UNFIT = "describes a tensor whose parts do not fit together"
ODD: dict[str, tuple[list[object], str]] = {
    "INST": ([b"(S'touch x'\nios\nsystem\n"], "in a way that torch.save does not use"),
    "OBJ": ([b"(cos\nsystem\n", "ls", b"o"], "asks for 'os.system'"),
    "EXT1": ([b"\x82\x01"], "in a way that torch.save does not use"),
    "PERSID": ([b"Pname\n"], "in a way that torch.save does not use"),
    "bytearray of a size": ([b"\x96" + struct.pack("<Q", 2**40)], "in a way that torch.save does not use"),
    "old module names": ([b"c__builtin__\neval\n"], "asks for '__builtin__.eval'"),
    "dotted name": ([b"\x8c\x08argparse\x8c\x14Namespace.__init__.x\x93"], "asks for 'argparse.Namespace.__init__.x'"),
    "dotted storage": ([b"\x8c\x05torch\x8c\x16FloatStorage.__class__\x93"], "asks for 'torch.FloatStorage.__class__'"),
    "torch function": ([b"ctorch.hub\nload\n"], "asks for 'torch.hub.load'"),
    "whole module": ([b"ctorch.nn.modules.linear\nLinear\n)\x81"], "asks for 'torch.nn.modules.linear.Linear'"),
    "state of a class": ([b"ccollections\nOrderedDict\n", {"make": 1}, b"b"], "sets the inner state of an object of t"),
    "state of a list": ([[1], {"a": 1}, b"b"], "sets the inner state of an object of type list"),
    "calls data": ([[1], (), b"R"], "calls an object of type list"),
    "calls a record": ([b"capp\nThing\n)R)R"], "calls an object of type Record"),
    "arguments no tuple": ([b"capp\nThing\n", [1], b"R"], "calls an object of type _Class"),
    "key": ([{}, (1,), 1, b"s"], "something else than text or numbers as a key"),
    "keys": ([{}, b"(", (1,), 1, b"u"], "something else than text or numbers as a key"),
    "DICT": ([b"(", (1,), 1, b"d"], "something else than text or numbers as a key"),
    "set": ([b"\x8f(", (1,), b"\x90"], "something else than text or numbers as a key"),
    "frozenset": ([b"(", (1,), b"\x91"], "something else than text or numbers as a key"),
    "items of a list": ([[0], 0, 1, b"s"], "assigns to what has no items"),
    "storage of another kind": ([("module", 1), b"Q"], UNFIT),
    "storage of a record": ([b"(", "storage", b"capp\nThing\n", "0", "cpu", 6, b"tQ"], UNFIT),
    "storage of no class": ([("storage", "FloatStorage", "0", "cpu", 6), b"Q"], UNFIT),
    "storage below nothing": ([b"(", "storage", b"ctorch\nFloatStorage\n", "0", "cpu", -6, b"tQ"], UNFIT),
    "storage twice": ([*STORAGE, *STORAGE[:5], 7, b"tQ"], UNFIT),
    "view of a storage": ([*STORAGE[:-1], ("v", 0, 1), b"tQ"], UNFIT),
    "too large": ([*REBUILD, 0, (7,), (1,), False, b")tR"], UNFIT),
    "too far": ([*REBUILD, 1, (2, 3), (3, 1), False, b")tR"], UNFIT),
    "expanded": ([*REBUILD, 0, (2**40,), (0,), False, b")tR"], UNFIT),
    "negative": ([*REBUILD, 0, (-1,), (1,), False, b")tR"], UNFIT),
    "negative stride": ([*REBUILD, 0, (2,), (-1,), False, b")tR"], UNFIT),
    "float size": ([*REBUILD, 0, (2.0,), (1,), False, b")tR"], UNFIT),
    "no stride": ([*REBUILD, 0, (2, 3), (1,), False, b")tR"], UNFIT),
    "no storage": ([b"ctorch._utils\n_rebuild_tensor_v2\n", (1, 0, (2,), (1,), False, {}), b"R"], UNFIT),
    "too few parts": ([b"ctorch._utils\n_rebuild_tensor_v2\n)R"], "not a whole checkpoint (TypeError"),
    "parameter of nothing": ([b"ctorch._utils\n_rebuild_parameter\n", (1, False, {}), b"R"], "that is no tensor"),
    "text as pairs": ([b"ccollections\nOrderedDict\n", (1,), b"R"], "not a whole checkpoint (TypeError"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_routes_are_refused_without_taking_memory(name: str, tmp_path: Path) -> None:
    parts, message = ODD[name]
    path = archive(tmp_path / "m.pth", words(parts), data__0=bytes(24))
    tracemalloc.start()
    try:
        assert message in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_what_is_refused_is_accepted_when_it_fits(tmp_path: Path) -> None:
    parts = [{}, "a", *REBUILD, 0, (2, 3), (3, 1), False, b")tRs"]
    path = archive(tmp_path / "m.pth", words(parts), data__0=np.arange(6, dtype="f4").tobytes())
    assert read_tensors(path)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("form", FORMATS)
def test_classes_of_other_code_bases_are_inert(form: str, tmp_path: Path) -> None:
    """The raw files of EgoVLP hold an object of its config class."""
    sys.modules["parse_config"] = module = types.ModuleType("parse_config")
    try:
        config = type("ConfigParser", (dict,), {"__module__": "parse_config"})
        module.ConfigParser = config  # type: ignore[attr-defined]
        one = config(a=1)
        one.save_dir = Path("x")
        content = {"config": one, "state_dict": {"a": torch.ones(2)}}
        torch.save(content, tmp_path / "m.pth", _use_new_zipfile_serialization=FORMATS[form])
    finally:
        del sys.modules["parse_config"]
    file = read_pickled(tmp_path / "m.pth")
    assert file.records[:1] == ("parse_config.ConfigParser",)
    # Python 3.13 pickles paths as pathlib._local.PosixPath.
    assert file.content["config"].state["save_dir"].name == f"{type(Path()).__module__}.PosixPath"
    assert torch.equal(tensors_of(file)["a"], torch.ones(2))


def test_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"a": torch.arange(1000.0)}, path)
    whole = path.read_bytes()
    place = whole.index(torch.arange(1000.0).numpy().tobytes())
    flipped = bytearray(whole)
    flipped[place + 100] ^= 1
    for content, message in (
        (bytes(flipped), r"BadZipFile.*CRC-32"),
        (whole[:-100], r"m\.pth"),
        (whole[: len(whole) // 2], r"m\.pth"),
        (b"", "b''"),
        (b"<html><body>403 Forbidden", "b'<htm'"),
        (pickle.dumps({"a": 1}), r"m\.pth"),
        (pickle.dumps(1) + pickle.dumps(2), "torch.save"),
    ):
        path.write_bytes(content)
        with pytest.raises(PickleError, match=message):
            read_tensors(path)


def test_damage_of_the_old_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"a": torch.arange(1000.0)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for content, message in (
        (whole[:-100], "not a whole checkpoint"),
        (whole[:60], "not a whole checkpoint"),
        (whole.replace(struct.pack("<q", 1000), struct.pack("<q", 999)), UNFIT),
        (re.sub(rb"(little_endianq.)\x88", b"\\1\x89", whole), "was written on a big-endian machine"),
    ):
        assert content != whole
        path.write_bytes(content)
        assert message in refusal(path)


def test_archives_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "x")
    assert "data.pkl" in refusal(path)
    archive(path, words([{}]), byteorder=b"big")
    assert "was written on a big-endian machine" in refusal(path)
    archive(path, words([{}, "a", *REBUILD, 0, (6,), (1,), False, b")tRs"]))
    assert "not a whole checkpoint (KeyError" in refusal(path)
    archive(path, words([{}, "a", *REBUILD, 0, (6,), (1,), False, b")tRs"]), data__0=bytes(20))
    assert "has 20 bytes for 6 numbers of torch.float32" in refusal(path)
    archive(path, words([{"a": 1}]))
    assert "holds no tensors" in refusal(path)


def test_compressed_members_are_refused_unread(tmp_path: Path) -> None:
    """1 GB of zeros takes 1 MB in a zip file."""
    path = tmp_path / "m.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", words([{}]) + bytes(10_000_000))
    tracemalloc.start()
    try:
        assert "holds archive/data.pkl compressed" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_deep_nesting_does_no_harm(tmp_path: Path) -> None:
    """In a separate process, where a stack that overflows would be seen."""
    depth = 100_000
    deep = b"]" * depth + b"a" * (depth - 1)
    state = [{}, "a", *REBUILD, 0, (6,), (1,), False, b")tRs"]
    deep_list = archive(tmp_path / "list.pth", b"\x80\x02" + deep + b".")
    deep_args = archive(
        tmp_path / "args.pth", words([{}, "state_dict", *state, b"s", "args", {}, "x", deep, b"ss"]), data__0=bytes(24)
    )
    deep_key = archive(tmp_path / "key.pth", b"\x80\x02})" + b"\x85" * depth + b"Ns.")
    code = (
        "import sys; from lavila.checkpoints.store import load_model\n"
        "from lavila.checkpoints.errors import CheckpointError\n"
        "for path in sys.argv[1:]:\n"
        "    try: load_model(path)\n"
        "    except CheckpointError as error: print(error)\n"
    )
    arguments = [sys.executable, "-c", code, str(deep_list), str(deep_args), str(deep_key)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    lines = result.stdout.splitlines()
    assert "holds no state_dict" in lines[0]
    assert "holds the tensors of no model here: found a;" in lines[1]
    assert "something else than text or numbers as a key" in lines[2]


def test_positions_in_the_memo_take_no_memory(tmp_path: Path) -> None:
    """The standard library's unpickler in C would take 34 GB for this."""
    path = archive(tmp_path / "m.pth", b"\x80\x02Nr\xff\xff\xff\x7f.")
    tracemalloc.start()
    try:
        assert read_pickled(path).content is None
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_reading_imports_nothing(tmp_path: Path) -> None:
    assert builtins.__import__ is not None
    path = archive(tmp_path / "m.pth", words([{}, "a", b"cantigravity_of_a_stranger.sub\nThing\n)R", b"s"]))
    assert read_pickled(path).content["a"].name == "antigravity_of_a_stranger.sub.Thing"
    before = set(sys.modules)
    stream = io.BytesIO(words([b"cthis\ns\n"]))
    archive(path, stream.getvalue())
    assert "asks for 'this.s'" in refusal(path)
    assert "this" not in set(sys.modules) - before
