"""Pickles from other people: plain data comes through whole, everything else is refused and nothing of it runs."""

from __future__ import annotations

import builtins
import functools
import operator
import os
import pickle
import re
import struct
import subprocess
import sys
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.testing
import pytest

from lavila.annotations.base import AnnotationError
from lavila.annotations.tables import read_plain_pickle
from lavila.pickles.errors import PickleError
from lavila.pickles.plain import read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def save(folder: Path, content: bytes) -> Path:
    path = folder / "data.pkl"
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(PickleError) as caught:
        read_pickle(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 700 + len(str(path))
    return message


def pickled_words(words: list[object]) -> bytes:
    """Opcodes, with whatever is no bytes pickled in place."""
    return b"".join(w if isinstance(w, bytes) else pickle.dumps(w, protocol=2)[2:-1] for w in words)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_comes_through(tmp_path: Path, protocol: int) -> None:
    shared = ["a", "b"]
    data = {
        "list": [1, -1, 300, 70000, 2**40, -(2**70), 0.1, float("inf"), True, False, None],
        "text": ["", "plain", "食べる 🍲", "new\nline", "x" * 70000],
        "bytes": [b"", b"\x00\xff", bytearray(b"ab"), bytearray(), b"z" * 300],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "sets": [set(), {1, "a"}, frozenset(), frozenset({2.0, None})],
        7: {b"key": {}, None: shared, 1.5: shared},
    }
    found = read_pickle(save(tmp_path, pickle.dumps(data, protocol=protocol)))
    assert found == data
    assert isinstance(found, dict)
    assert found[7][None] is found[7][1.5]


ARRAYS = [
    np.arange(6, dtype="f8").reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3)),
    np.arange(5, dtype=">i2"),
    np.arange(9, dtype="u1")[::2],
    np.zeros((0, 3), "f4"),
    np.array(1.5),
    np.array([True, False]),
    np.array(["a", "ünï"]),
    np.array([b"ab", b"c"]),
    np.array(["text", None, [1, "two"]], dtype=object),
    np.array([0.5], "f2"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_arrays_and_scalars_come_through(tmp_path: Path, protocol: int) -> None:
    scalars = [np.float32(0.1), np.float64(-2), np.int64(7), np.uint8(255), np.bool_(True), np.str_("é"), np.str_("")]
    data = {"arrays": ARRAYS, "twice": [ARRAYS[0], ARRAYS[0]], "scalars": scalars}
    found = read_pickle(save(tmp_path, pickle.dumps(data, protocol=protocol)))
    assert isinstance(found, dict)
    for array, expected in zip(found["arrays"], ARRAYS, strict=True):
        assert type(array) is np.ndarray
        assert array.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")  # as numpy does itself
        assert array.shape == expected.shape
        assert np.array_equal(array, expected)
    assert found["twice"][0] is found["twice"][1]
    assert [(type(scalar), scalar) for scalar in found["scalars"]] == [(type(scalar), scalar) for scalar in scalars]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_spellings_of_numpys_modules(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps([np.arange(3.0), np.float64(0.5)], protocol=protocol)
    here, other = (b"numpy._core", b"numpy.core") if b"numpy._core" in content else (b"numpy.core", b"numpy._core")
    shift = len(other) - len(here)
    assert here in content
    if protocol >= 4:  # the name's length stands before it, and the frame's before all
        for module in (b".multiarray", b".numeric"):
            content = content.replace(
                bytes([len(here + module)]) + here + module, bytes([len(other + module)]) + other + module
            )
        size = struct.unpack("<Q", content[3:11])[0] + shift * content.count(other)
        content = content[:3] + struct.pack("<Q", size) + content[11:]
    else:
        content = content.replace(here, other)
    assert here not in content.replace(other, b"")
    found = read_pickle(save(tmp_path, content))
    assert isinstance(found, list)
    assert np.array_equal(found[0], np.arange(3.0))
    assert found[1] == 0.5


class Call:
    """Pickles as a call that is made when it is read."""

    def __init__(self, function: Callable[..., object], *arguments: object, state: object = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


class Plain:
    """An object with attributes."""

    def __init__(self) -> None:
        self.value = 1


def attacks(canary: Path) -> dict[str, object]:
    """Objects that make the file `canary` when an ordinary unpickler reads them."""
    write = f"open({str(canary)!r}, 'w')"
    get_open = Call(getattr, Call(__import__, "builtins"), "open")
    return {
        "os.system": Call(os.system, f"touch {canary}"),
        "eval": Call(eval, write),
        "exec": Call(exec, write),
        "open": Call(open, str(canary), "w"),
        "subprocess": Call(subprocess.check_call, ["touch", str(canary)]),
        "getattr chain": Call(operator.call, get_open, str(canary), "w"),
        "partial": Call(functools.reduce, Call(getattr, builtins.map, "__call__"), []),
        "attrgetter": Call(operator.methodcaller("touch"), canary),
        "map": Call(list, Call(map, eval, [write])),
        "numpy": Call(np.savetxt, str(canary), [1.0]),
        "numpy memory map": Call(np.memmap, str(canary), "u1", "w+", 0, (1,)),
        "runstring": Call(numpy.testing.runstring, write, {}),
        "array with a callable": np.array([Call(os.system, f"touch {canary}")], dtype=object),
        "hidden in data": [("uid", 0.0, 1.0, "text"), ("uid", Call(eval, write), 1.0, "text")],
        "hidden in a dict": {"x": Call(eval, write)},
    }


HARMLESS_ELSEWHERE = {"partial", "attrgetter"}  # an ordinary unpickler stumbles over them before they do harm


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", attacks(Path()))
def test_nothing_is_called(tmp_path: Path, name: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    try:
        content = pickle.dumps(attacks(canary)[name], protocol=protocol)
    except TypeError:  # not every callable pickles
        assert name in HARMLESS_ELSEWHERE
        return
    path = save(tmp_path, content)
    message = refusal(path)
    assert "which plain data does not need; allowed are lists, tuples, dicts" in message
    assert "; load it where you trust it and save it again" in message
    assert not canary.exists()
    if name not in HARMLESS_ELSEWHERE:
        pickle.loads(content)
        assert canary.exists(), "the attack is none"


def test_the_class_asked_for_is_named(tmp_path: Path) -> None:
    for asked, content in (
        ("'posix.system'", pickle.dumps(os.system)),
        ("'collections.OrderedDict'", pickle.dumps(OrderedDict(a=1))),
        (f"'{__name__}.Plain'", pickle.dumps(Plain())),
        ("'builtins.eval'", pickle.dumps(eval)),
        ("'numpy.f2py.compile'", b"cnumpy.f2py\ncompile\n."),
        ("'numpy.core.multiarray.fromfile'", b"cnumpy.core.multiarray\nfromfile\n."),
        ("'numpy.core.multiarray.scalar.__class__'", b"cnumpy.core.multiarray\nscalar.__class__\n."),
        ("'builtins.set.__init__'", b"\x80\x04\x8c\x08builtins\x8c\x0cset.__init__\x93."),
        (r"'a\nb.set'", b"\x80\x04\x8c\x03a\nb\x8c\x03set\x93."),
        ("'builtins.complex'", pickle.dumps(1j)),
    ):
        assert f": asks for {asked}" in refusal(save(tmp_path, content)), asked


DTYPE: list[object] = [b"cnumpy\ndtype\n", ("f8", False, True), b"R", (3, "<", None, None, None, -1, -1, 0), b"b"]
RECONSTRUCT: list[object] = [
    *(b"cnumpy.core.multiarray\n_reconstruct\n", b"(cnumpy\nndarray\n", (0,), b"C\x01b", b"tR"),
]
UNFIT = "parts do not fit together"
ODD_ROUTES = {
    "INST": ([b"(S'touch x'\nios\nsystem\n"], "makes an object of a class"),
    "OBJ": ([b"(cnumpy\nndarray\n", 5, b"o"], "makes an object of a class"),
    "NEWOBJ": ([b"cnumpy\nndarray\n", (10**12,), b"\x81"], "makes an object of a class"),
    "NEWOBJ_EX": ([b"cnumpy\nndarray\n", (1,), {}, b"\x92"], "makes an object of a class"),
    "EXT1": ([b"\x82\x01"], "makes an object of a class"),
    "PERSID": ([b"Pname\n"], "makes an object of a class"),
    "NEXT_BUFFER": ([b"\x97"], "makes an object of a class"),
    "calls data": ([[1], (), b"R"], "calls a list"),
    "arguments no tuple": ([b"cbuiltins\nset\n", [1], b"R"], "calls a _Maker"),
    "calls ndarray": ([b"cnumpy\nndarray\n", ((10**12,),), b"R"], "in an unusual way"),
    "BUILD a dict": ([{}, {"a": 1}, b"b"], "sets the inner state of a dict"),
    "BUILD a maker": ([b"cbuiltins\nset\n", {"make": 1}, b"b"], "sets the inner state of a _Maker"),
    "BUILD slots": ([b"cnumpy\ndtype\n", (None, {"make": 1}), b"b"], "sets the inner state of a _Maker"),
    "SETITEM on a list": ([[0], 0, 1, b"s"], "assigns to items of a list"),
    "SETITEMS on a maker": ([b"cbuiltins\nset\n", b"(", 0, 1, b"u"], "assigns to items of a _Maker"),
    "key": ([{}, (1,), 1, b"s"], "uses a tuple as a key; keys are text or numbers"),
    "keys": ([{}, b"(", (1,), 1, b"u"], "uses a tuple as a key"),
    "DICT": ([b"(", (1,), 1, b"d"], "uses a tuple as a key"),
    "set member": ([b"cbuiltins\nset\n", ([(1,)],), b"R"], "uses a tuple as a key"),
    "ADDITEMS": ([b"\x8f(", (1,), b"\x90"], "uses a tuple as a key"),
    "FROZENSET": ([b"(", (1,), b"\x91"], "uses a tuple as a key"),
    "set of text": ([b"cbuiltins\nset\n", ("ab",), b"R"], UNFIT),
    "bytearray of a size": ([b"cbuiltins\nbytearray\n", (10**12,), b"R"], UNFIT),
    "bytes of a size": ([b"cbuiltins\nbytes\n", (10**12,), b"R"], UNFIT),
    "other encoding": ([b"c_codecs\nencode\n", ("ab", "rot13"), b"R"], UNFIT),
    "bytearray encoding": ([b"cbuiltins\nbytearray\n", ("ab", "hex"), b"R"], UNFIT),
    "pointer array": ([b"cnumpy\ndtype\n", ("V8",), b"R"], "element type 'V8'"),
    "record dtype": ([b"cnumpy\ndtype\n", ([("a", "O")],), b"R"], "element type a list"),
    "dtype with fields": ([*DTYPE[:3], (3, "<", None, ("a",), {"a": 1}, 8, 1, 27), b"b"], "array of structures"),
    "big shape": ([*RECONSTRUCT, b"(", 1, (10**12,), *DTYPE, False, b"C\x00", b"tb"], UNFIT),
    "overflowing shape": ([*RECONSTRUCT, b"(", 1, (2**32, 2**32), *DTYPE, False, b"C\x00", b"tb"], UNFIT),
    "negative shape": ([*RECONSTRUCT, b"(", 1, (-1, -1), *DTYPE, False, b"C\x08" + bytes(8), b"tb"], UNFIT),
    "list for numbers": ([*RECONSTRUCT, b"(", 1, (1,), *DTYPE, False, [1.0], b"tb"], UNFIT),
    "bytes for objects": (
        [*RECONSTRUCT, b"(", 1, (1,), b"cnumpy\ndtype\n", ("O8",), b"R", False, b"C\x08" + bytes(8), b"tb"],
        UNFIT,
    ),
    "too few objects": ([*RECONSTRUCT, b"(", 1, (9,), b"cnumpy\ndtype\n", ("O8",), b"R", False, [1], b"tb"], UNFIT),
    "array of nothing": ([*RECONSTRUCT, b"(", 1, (10**12,), b"cnumpy\ndtype\n", ("S0",), b"R", False, b"C\0tb"], UNFIT),
    "other base": ([b"cnumpy.core.multiarray\n_reconstruct\n", ("x", (0,), "b"), b"R"], UNFIT),
    "big buffer": ([b"cnumpy.core.numeric\n_frombuffer\n(C\x08" + bytes(8), *DTYPE, (10**12,), "C", b"tR"], UNFIT),
    "object scalar": (
        [b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n", ("O8",), b"RC\x08" + bytes(8) + b"tR"],
        UNFIT,
    ),
    "big scalar": ([b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n", ("S999999999",), b"RC\x01atR"], UNFIT),
}


@pytest.mark.parametrize("name", ODD_ROUTES)
def test_odd_routes_are_refused_without_taking_memory(tmp_path: Path, name: str) -> None:
    words, message = ODD_ROUTES[name]
    path = save(tmp_path, b"\x80\x05" + pickled_words(words) + b".")
    tracemalloc.start()
    try:
        assert message in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_what_is_refused_is_accepted_when_it_fits(tmp_path: Path) -> None:
    words = [*RECONSTRUCT, b"(", 1, (2,), *DTYPE, False, b"C\x10" + np.array([1.0, 2.0]).tobytes(), b"tb"]
    found = read_pickle(save(tmp_path, b"\x80\x05" + pickled_words(words) + b"."))
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [1.0, 2.0]


WHOLE = pickle.dumps([("uid", 0.0, 1.5, "text")] * 3, protocol=4)
DEPTH = 1_000_000
NO_PICKLES = {
    "empty": b"",
    "text": b"hello there, this is no pickle",
    "zeros": bytes(1000),
    "truncated": WHOLE[:-1],
    "half": WHOLE[: len(WHOLE) // 2],
    "unknown opcode": b"\x80\x04\xff.",
    "newer protocol": b"\x80\x7fN.",
    "nothing on the stack": b"\x80\x04.",
    "mark on the stack": b"(.",
    "no such memo": b"h\x05.",
    "far memo": b"\x80\x04j\xff\xff\xff\x7f.",
    "bad text": b"\x80\x04\x8c\x02\xff\xfe.",
    "bad number": b"I12x\n.",
    "endless number": b"L" + b"9" * 10000 + b"L\n.",
    "long text": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a.",
    "impossible text": b"\x80\x04\x8d" + struct.pack("<Q", 2**64 - 1) + b"a.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a.",
    "long bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"a.",
    "long frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N",
    "impossible frame": b"\x80\x04\x95" + struct.pack("<Q", 2**64 - 1) + b"N.",
    "negative size": b"\x80\x02T\xff\xff\xff\xffa.",
    "negative number size": b"\x80\x02\x8b\xff\xff\xff\xffa.",
    "unhashable key": b"}]Ns.",
}


NO_PICKLE = re.compile(r": not a whole pickle file \(.*\); copy or download it again|uses a list as a key")


@pytest.mark.parametrize("name", NO_PICKLES)
def test_what_is_no_whole_pickle_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, NO_PICKLES[name])
    tracemalloc.start()
    try:
        assert NO_PICKLE.search(refusal(path))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_positions_in_the_memo_take_no_memory(tmp_path: Path) -> None:
    """The standard library's unpickler in C would take 34 GB for this."""
    path = save(tmp_path, b"\x80\x02Nr\xff\xff\xff\x7f.")
    tracemalloc.start()
    try:
        assert read_pickle(path) is None
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_what_follows_the_pickle_is_not_lost_unseen(tmp_path: Path) -> None:
    assert f"{len(WHOLE)} bytes follow the pickle's end" in refusal(save(tmp_path, WHOLE + WHOLE))


def test_deep_nesting_does_no_harm(tmp_path: Path) -> None:
    """In a separate process, where a stack that overflows would be seen."""
    deep_list = save(tmp_path, b"\x80\x02" + b"]" * DEPTH + b"a" * (DEPTH - 1) + b".")
    deep_key = tmp_path / "key.pkl"
    deep_key.write_bytes(b"\x80\x02})" + b"\x85" * DEPTH + b"Ns.")
    code = (
        "import sys; from pathlib import Path; from lavila.annotations import read_annotations\n"
        "from lavila.annotations.base import AnnotationError\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_annotations('ego4d', Path(path), split='train')\n"
        "    except AnnotationError as error: print(error)\n"
    )
    arguments = [sys.executable, "-c", code, str(deep_list), str(deep_key)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    lines = result.stdout.splitlines()
    assert "entry 0: 1 values" in lines[0]
    assert "uses a tuple as a key" in lines[1]


def test_a_list_that_holds_itself(tmp_path: Path) -> None:
    data: list[object] = []
    data.append(data)
    found = read_pickle(save(tmp_path, pickle.dumps(data)))
    assert isinstance(found, list)
    assert found[0] is found


def test_makers_cannot_be_changed_from_a_pickle(tmp_path: Path) -> None:
    """What one file does leaves nothing behind for the next."""
    content = b"\x80\x05" + pickled_words([b"cbuiltins\nset\n", (None, {"make": 1, "name": 2}), b"b"]) + b"."
    refusal(save(tmp_path, content))
    assert read_pickle(save(tmp_path, pickle.dumps({1, 2}, protocol=2))) == {1, 2}


def test_missing_file(tmp_path: Path) -> None:
    (tmp_path / "other.pkl").write_bytes(b"")
    with pytest.raises(AnnotationError, match=r"other\.pkl.*data\.pkl"):
        read_plain_pickle(tmp_path / "data.pkl")
