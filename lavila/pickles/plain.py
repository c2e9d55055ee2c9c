"""Pickles of plain data from other people, read without trusting them.

A pickle is a program: it may import anything and call it. Here it can build lists, tuples, dicts, sets, text, bytes,
numbers and numpy arrays, and nothing else. The reader looks up every class that the file names in a table of makers.
No maker is a real class or reaches one.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lavila.errors import UserError, one_line, shown
from lavila.pickles.errors import PickleError
from lavila.pickles.unpickler import CheckedUnpickler

ALLOWED = "lists, tuples, dicts, sets, text, bytes, numbers, None and numpy arrays"
_FIX = f"load it where you trust it and save it again as {ALLOWED}, or get it again from its publisher"
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|[SU][0-9]{1,9}|O8?")
_KEYS = (str, bytes, int, float, type(None), np.generic)


def read_pickle(path: Path) -> object:
    """The object in a pickle of any protocol, which may hold only what `ALLOWED` says.

    Arrays hold booleans, integers, floats, text or such objects again. The file is mapped, so only the objects take
    memory. Raises PickleError for a pickle that asks for anything else, and for a file that is not a whole pickle.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _PlainUnpickler(content).load()
            rest = len(content) - content.tell()
    except _Refused as error:
        raise PickleError(f"{path}: {error}; allowed are {ALLOWED}; {_FIX}") from None
    except OSError as error:
        raise PickleError(f"{path}: cannot be read ({error.strerror}); check the disk and the rights") from None
    except Exception as error:  # bytes that are no pickle can raise almost anything in the unpickler
        cause = one_line(f"{type(error).__name__} {error}")
        raise PickleError(f"{path}: not a whole pickle file ({cause}); copy or download it again") from None
    if rest:
        raise PickleError(f"{path}: {rest} bytes follow the pickle's end; keep one object in one file")
    return found


class _Refused(UserError):
    """The pickle asks for something that the reader does not allow."""


@dataclass(frozen=True, slots=True)
class _Maker:
    """Stands for a class or function that a pickle names. It can only be called, and only with REDUCE."""

    name: str
    make: Callable[..., object]


class _Dtype:
    """A numpy element type while it is read. The real class would accept whatever state the file gives it."""

    def __init__(self, text: str) -> None:
        self.dtype = np.dtype(text)

    def set_state(self, state: Any) -> None:
        version, order, subarray, names, fields, *_ = state
        if version not in (3, 4) or order not in ("<", ">", "=", "|") or (subarray, names, fields) != (None,) * 3:
            raise _Refused("holds an array of structures")
        self.dtype = self.dtype.newbyteorder(order)


def _dtype(text: Any, *_: object) -> _Dtype:
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise _Refused(f"holds an array of element type {shown(text)}")
    return _Dtype(text)


def _need(condition: bool) -> None:
    if not condition:
        raise _Refused("holds a numpy array, set or bytes whose parts do not fit together")


def _is_shape(shape: object) -> bool:
    return type(shape) is tuple and all(type(length) is int and length >= 0 for length in shape)


def _empty_array(kind: object, *_: object) -> np.ndarray:
    """An empty array; BUILD gives it its content later."""
    _need(kind is _MAKERS["numpy", "ndarray"])
    return np.ndarray((0,), np.int8)


def _fill_array(array: np.ndarray, state: Any) -> None:
    """Give an array its content. A shape that does not fit the content is refused before anything is allocated."""
    _version, shape, kind, by_columns, content = state
    _need(_is_shape(shape) and type(kind) is _Dtype and type(content) in (bytes, list))
    objects = kind.dtype.hasobject
    _need(objects == (type(content) is list))
    _need(len(content) == math.prod(shape) * (1 if objects else kind.dtype.itemsize))
    _need(kind.dtype.itemsize > 0)
    array.__setstate__((1, shape, kind.dtype, bool(by_columns), content))  # type: ignore[arg-type]


def _array_over_buffer(content: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    _need(type(content) in (bytes, bytearray) and type(kind) is _Dtype and _is_shape(shape) and order in ("C", "F"))
    _need(not kind.dtype.hasobject and kind.dtype.itemsize > 0)
    _need(len(content) == math.prod(shape) * kind.dtype.itemsize)
    return np.ndarray(shape, kind.dtype, content, order=order)


def _scalar(kind: Any, content: Any) -> object:
    _need(type(kind) is _Dtype and not kind.dtype.hasobject and type(content) is bytes)
    _need(len(content) == kind.dtype.itemsize)
    return np.frombuffer(content, kind.dtype)[0] if content else kind.dtype.type()


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes as protocols before 3 write them."""
    _need(type(text) is str and encoding in ("latin1", "latin-1"))
    return str.encode(text, "latin1")


def _bytearray(content: Any = b"", *encoding: Any) -> bytearray:
    return bytearray(_encode(content, *encoding) if encoding else _bytes_only(content))


def _bytes_only(content: Any = b"") -> bytes:
    _need(type(content) is bytes)
    return bytes(content)


def _set(kind: type) -> Callable[..., object]:
    def make(members: Any = ()) -> object:
        _need(type(members) in (list, tuple))
        _check_keys(members)
        return kind(members)

    return make


def _check_keys(keys: Any) -> None:
    """Allow text and numbers as keys, and nothing nested; see `CheckedUnpickler.check_items`."""
    for key in keys:
        if not isinstance(key, _KEYS):
            raise _Refused(f"uses {shown(key)} as a key; keys are text or numbers")


def _refuse(*_: object) -> NoReturn:
    raise _Refused("makes a numpy array or object in an unusual way")


def _makers() -> dict[tuple[str, str], _Maker]:
    """(module, name) in a pickle -> our maker. numpy renamed its modules in version 2, so both names are here."""
    makers: dict[tuple[str, str], Callable[..., object]] = {
        ("numpy", "ndarray"): _refuse,
        ("numpy", "dtype"): _dtype,
        ("_codecs", "encode"): _encode,
    }
    for core in ("numpy.core", "numpy._core"):
        makers[f"{core}.multiarray", "_reconstruct"] = _empty_array
        makers[f"{core}.multiarray", "scalar"] = _scalar
        makers[f"{core}.numeric", "_frombuffer"] = _array_over_buffer
    for builtins in ("builtins", "__builtin__"):
        makers[builtins, "set"] = _set(set)
        makers[builtins, "frozenset"] = _set(frozenset)
        makers[builtins, "bytes"] = _bytes_only
        makers[builtins, "bytearray"] = _bytearray
    return {name: _Maker(".".join(name), make) for name, make in makers.items()}


_MAKERS = _makers()


class _PlainUnpickler(CheckedUnpickler):
    """Reads plain data: names, calls and states reach only the makers of this module."""

    def find_class(self, module: str, name: str) -> _Maker:
        if (module, name) not in _MAKERS:
            raise _Refused(f"asks for {shown(f'{module}.{name}')}, which plain data does not need")
        return _MAKERS[module, name]

    def call(self) -> None:
        arguments = self.stack.pop()
        maker = self.stack[-1]
        if type(maker) is not _Maker or type(arguments) is not tuple:
            raise _Refused(f"calls {shown(maker)}")
        self.stack[-1] = maker.make(*arguments)

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is _Dtype:
            target.set_state(state)
        elif type(target) is np.ndarray:
            _fill_array(target, state)
        else:
            raise _Refused(f"sets the inner state of {shown(target)}")

    def refuse(self) -> NoReturn:
        raise _Refused("makes an object of a class, or refers to one outside the file")

    def read_bytearray(self) -> None:
        size = int.from_bytes(self.read(8), "little")  # type: ignore[attr-defined]
        self.append(bytearray(self.read(size)))  # type: ignore[attr-defined]

    def check_items(self, target: object, keys: list[Any]) -> None:
        if type(target) is not dict:
            raise _Refused(f"assigns to items of {shown(target)}")
        _check_keys(keys)
