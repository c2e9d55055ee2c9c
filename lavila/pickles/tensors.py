"""Checkpoints that torch.save wrote, read without trusting them: nothing in a file is imported, called or executed.

A pickle is a program. The reader here knows plain containers, text, numbers and tensors. Every other class that a file
names becomes a `Record`, an inert note of what was there: paths, numpy numbers, a pandas table, the config object of
the code base that wrote it. Functions of Python itself and of torch are an error instead: no checkpoint needs them.

torch's own `weights_only=True` refuses those records, so it cannot read most of LaViLa's files. It also reads the
optimizer's tensors. Here a `StoredTensor` only describes a tensor. Its bytes are read when they are needed, and
compared with the checksum in the archive. The reader knows both of torch's formats, the zip archive and the one before
version 1.6, and the tensors of a TorchScript archive.
"""

from __future__ import annotations

import io
import math
import mmap
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from lavila.errors import UserError, one_line, shown
from lavila.pickles.errors import PickleError
from lavila.pickles.unpickler import CheckedUnpickler

SUFFIXES = {".pth", ".pt", ".ckpt", ".bin", ".pkl", ".tar"}  # .tar: of names such as best.pth.tar, by tradition
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
_FIX = "do not trust it; get the file again from its publisher"
_STORAGE_TYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
# Classes of Python, numpy and torch that are data. They become records; a class that is not listed is an error.
_DATA_CLASSES = re.compile(
    r"argparse\.Namespace|collections\.\w+|datetime\.\w+|types\.SimpleNamespace|_codecs\.encode"
    r"|pathlib\.(_local\.)?\w*Path|(copyreg|copy_reg)\._reconstructor"
    r"|(builtins|__builtin__)\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice|str|tuple)"
    r"|numpy\.(ndarray|dtype|dtypes\.\w+|_?core\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer))"
    r"|torch\.(Size|device|bool|u?int\d+|b?float\d+\w*|complex\d+|jit\._pickle\.\w+)"
)
_CODE_BASES = sys.stdlib_module_names | {"__builtin__", "copy_reg", "commands", "torch", "numpy"}
_PLAIN_KEYS = (str, bytes, int, float, type(None))


@dataclass(slots=True, eq=False)
class Record:
    """Stands for an object of a class that is not needed. Items that the file adds to it later are dropped."""

    name: str  # the name of the class, with its module
    arguments: tuple[Any, ...] = field(default=(), repr=False)
    state: Any = field(default=None, repr=False)

    def __setitem__(self, key: object, value: object) -> None: ...
    def append(self, item: object) -> None: ...
    def extend(self, items: object) -> None: ...
    def add(self, item: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in the file. One or more tensors are views of it."""

    key: str
    dtype: torch.dtype
    count: int  # how many numbers it holds


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor whose bytes are still in the file. Offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PickledFile:
    """A checkpoint file: what it says, and the way to its tensors' bytes."""

    path: Path
    content: Any  # containers, text, numbers, StoredTensor, Record
    records: tuple[str, ...]  # the names of the classes that became records
    places: Mapping[str, tuple[int, int]] | None  # storage key -> place and length in bytes; None for a zip archive
    root: str = ""  # the folder inside the archive

    def tensors(self, stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """The tensors, on the CPU. Those that shared their numbers when they were saved share them again.

        PickleError where bytes are missing or do not have their checksum.
        """
        found: dict[str, Tensor] = {}
        by_storage: dict[Storage, list[str]] = {}
        for name, one in stored.items():
            by_storage.setdefault(one.storage, []).append(name)
        with _one_line_errors(self.path), self._open() as read:
            for storage, names in by_storage.items():
                numbers = _numbers(read(storage.key), storage)
                for name in names:
                    one = stored[name]
                    tensor = numbers.as_strided(one.shape, one.stride, one.offset)
                    # A part of something larger would keep all of it in memory.
                    found[name] = tensor if tensor.numel() == storage.count else tensor.clone()
        return {name: found[name] for name in stored}

    @contextmanager
    def _open(self) -> Iterator[Callable[[str], bytes]]:
        if self.places is None:
            with zipfile.ZipFile(self.path) as archive:
                yield lambda key: _member(archive, f"{self.root}data/{key}")
        else:
            with self.path.open("rb") as file:
                yield lambda key: _stretch(file, self.places or {}, key)


def is_pickled(path: Path) -> bool:
    """Whether a file is named as one that torch.save wrote."""
    return path.suffix.lower() in SUFFIXES


def read_pickled(path: Path) -> PickledFile:
    """The content of a file that torch.save wrote, without the tensors' bytes. Nothing of the file is executed.

    PickleError for a file that asks for functions of Python or torch, and for one that is not a whole torch file.
    """
    with _one_line_errors(path), path.open("rb") as file:
        start = file.read(4)
        if start.startswith(b"PK"):
            return _read_archive(path)
        if not start.startswith(b"\x80"):
            raise _Refused(f"is no file of torch.save: it begins with {start!r}; copy or download it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _read_legacy(path, content)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of such a file by dotted name. OpenAI's CLIP files are TorchScript archives and can be read as well.

    PickleError as in `read_pickled`, and where the file holds no tensor.
    """
    file = read_pickled(path)
    stored = dict(_named_tensors(file.content, ""))
    if not stored:
        raise PickleError(f"{path}: holds no tensors")
    return file.tensors(stored)


def _named_tensors(value: Any, prefix: str) -> Iterator[tuple[str, StoredTensor]]:
    waiting, seen = [(prefix, value)], set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, StoredTensor):
            yield name, value
            continue
        inside = value.state if isinstance(value, Record) else value
        if isinstance(inside, dict) and id(inside) not in seen:
            seen.add(id(inside))
            parts = [(f"{name}.{key}" if name else str(key), part) for key, part in inside.items()]
            waiting.extend(reversed(parts))


class _Refused(UserError):
    """The file asks for something that the reader does not allow, or lacks something."""


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or hostile file raises into one PickleError that names it."""
    try:
        yield
    except (PickleError, FileNotFoundError, PermissionError):
        raise
    except _Refused as error:
        raise PickleError(f"{path}: {error}") from None
    except Exception as error:  # bytes that are no checkpoint can raise almost anything in the readers
        cause = one_line(f"{type(error).__name__} {error}")
        raise PickleError(f"{path}: not a whole checkpoint ({cause}); copy or download it again") from None


def _read_archive(path: Path) -> PickledFile:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(roots) != 1:
            raise _Refused(f"is a zip archive with {len(roots)} data.pkl, where torch writes exactly one")
        root = roots[0]
        if f"{root}byteorder" in names and _member(archive, f"{root}byteorder") != b"little":
            raise _Refused("was written on a big-endian machine; save it again on a common one")
        unpickler = _Inert(io.BytesIO(_member(archive, f"{root}data.pkl")))
        content = unpickler.load()
    return PickledFile(path, content, tuple(unpickler.named), None, root)


def _read_legacy(path: Path, file: mmap.mmap) -> PickledFile:
    magic, version = _Inert(file).load(), _Inert(file).load()
    if (magic, version) != (LEGACY_MAGIC, LEGACY_VERSION):
        raise _Refused("is a pickle, but none that torch.save wrote; copy or download it again")
    system = _Inert(file).load()
    if not system["little_endian"]:
        raise _Refused("was written on a big-endian machine; save it again on a common one")
    unpickler = _Inert(file)
    content = unpickler.load()
    places = {}
    for key in _Inert(file).load():
        storage = unpickler.storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        _need(count == storage.count)
        places[key] = (file.tell(), count * storage.dtype.itemsize)
        file.seek(places[key][1], io.SEEK_CUR)
    return PickledFile(path, content, tuple(unpickler.named), places)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a member. A compressed one is refused, since a small file could then fill all memory."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise _Refused(
            f"holds {name} compressed, which torch.save does not do; unpack it and zip it without compression"
        )
    return archive.read(info)


def _stretch(file: io.BufferedReader, places: Mapping[str, tuple[int, int]], key: str) -> bytes:
    place, size = places[key]
    file.seek(place)
    return file.read(size)


def _numbers(content: bytes, storage: Storage) -> Tensor:
    if len(content) != storage.count * storage.dtype.itemsize:
        raise _Refused(f"has {len(content)} bytes for {storage.count} numbers of {storage.dtype}; download it again")
    return torch.frombuffer(bytearray(content), dtype=storage.dtype) if content else torch.empty(0, dtype=storage.dtype)


def _need(condition: bool) -> None:
    if not condition:
        raise _Refused("describes a tensor whose parts do not fit together; copy or download it again")


def _sizes(values: Any) -> bool:
    return type(values) is tuple and all(type(value) is int and 0 <= value < 2**48 for value in values)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: object) -> StoredTensor:
    if type(shape) is Record:  # torch.Size
        (shape,) = shape.arguments
    _need(type(storage) is Storage and _sizes((offset,)) and _sizes(shape) and _sizes(stride))
    _need(len(shape) == len(stride))
    if math.prod(shape):
        _need(offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) < storage.count)
        _need(math.prod(shape) <= storage.count)  # a tensor expanded from fewer numbers is refused
    return StoredTensor(storage, offset, shape, stride)


def _parameter(tensor: Any, *_: object) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise _Refused("holds a parameter that is no tensor; copy or download it again")
    return tensor


@dataclass(frozen=True, slots=True)
class _Class:
    """Stands for a class or function that a file names. `make` is ours; without it, a call gives a Record."""

    name: str
    make: Callable[..., object] | None = None


_MAKERS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": lambda *pairs: dict(*pairs),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}


class _Inert(CheckedUnpickler):
    """Reads a checkpoint: names, calls and states reach only this module, and all other classes become records."""

    def __init__(self, file: io.BytesIO | mmap.mmap) -> None:
        super().__init__(file, encoding="latin1")
        self.named: dict[str, None] = {}  # the classes that became records, in the order of the file
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> _Class:
        full = f"{module}.{name}"
        if full in _MAKERS:
            return _Class(full, _MAKERS[full])
        if module == "torch" and name.removesuffix("Storage") in _STORAGE_TYPES and name.endswith("Storage"):
            return _Class(full)
        if module.partition(".")[0] in _CODE_BASES and not _DATA_CLASSES.fullmatch(full):
            raise _Refused(f"asks for {shown(full)}, which no checkpoint needs; nothing of it was run; {_FIX}")
        self.named[full] = None
        return _Class(full)

    def persistent_load(self, pid: Any) -> Storage:
        _need(type(pid) is tuple and len(pid) in (5, 6) and pid[0] == "storage" and pid[5:] in ((), (None,)))
        _, kind, key, _, count = pid[:5]
        _need(type(kind) is _Class and kind.name.startswith("torch.") and type(key) is str and _sizes((count,)))
        storage = Storage(key, _STORAGE_TYPES[kind.name[len("torch.") : -len("Storage")]], count)
        _need(self.storages.setdefault(key, storage) == storage)
        return storage

    def call(self) -> None:
        arguments, made = self.stack.pop(), self.stack[-1]
        if type(made) is not _Class or type(arguments) is not tuple:
            raise _Refused(f"calls an object of type {type(made).__name__}; {_FIX}")
        self.stack[-1] = made.make(*arguments) if made.make else Record(made.name, arguments)

    def make_object(self) -> None:
        self.call()

    def make_object_with_names(self) -> None:
        named, arguments, made = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack += [made, (*arguments, named)]
        self.call()

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Record:
            target.state = state
        elif type(target) is not dict:  # the state of a state dict holds version notes, which are not needed
            raise _Refused(f"sets the inner state of an object of type {type(target).__name__}; {_FIX}")

    def refuse(self) -> NoReturn:
        raise _Refused(f"is pickled in a way that torch.save does not use; {_FIX}")

    def check_items(self, target: object, keys: list[Any]) -> None:
        if type(target) not in (dict, Record) or not all(isinstance(key, _PLAIN_KEYS) for key in keys):
            raise _Refused("uses something else than text or numbers as a key, or assigns to what has no items")
