"""The unpickler that both readers of untrusted pickles build on.

The opcodes that import, call, set attributes or fill containers are methods here, and each reader decides what they
allow. The opcodes that refer to anything outside the file are refused for both.

The base is the standard library's unpickler in Python, for two reasons. The one in C cannot check keys. It also
allocates 16 bytes for every number below a position that the file may choose, so 12 bytes of file can take all memory.
The one in Python needs about 2.5 s for 1,000,000 rows of narrations.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

_REFUSED = (
    *(pickle.INST, pickle.OBJ),  # make an object of a class; protocols from 2 on do not write them
    *(pickle.PERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4),  # refer to objects outside the file
    *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),  # refer to buffers outside the file
)


class CheckedUnpickler(pickle._Unpickler):
    """Reads opcodes; a subclass says what a file may name, call, build and use as a key."""

    stack: list[Any]  # what was read since the last mark
    metastack: list[list[Any]]  # the stacks below it

    def call(self) -> None:
        """REDUCE: replace a function and its arguments on the stack by the result."""
        raise NotImplementedError

    def build(self) -> None:
        """BUILD: take a state from the stack and give it to the object below it."""
        raise NotImplementedError

    def check_items(self, target: object, keys: list[Any]) -> None:
        """Raise unless `target` may have such keys. A set's members come with an empty dict as the target.

        Python's hash of a deeply nested tuple overflows the stack, so one key of a hostile file can end the process.
        """
        raise NotImplementedError

    def refuse(self) -> NoReturn:
        """Raise for an opcode that the reader does not allow."""
        raise NotImplementedError

    def make_object(self) -> None:
        """NEWOBJ: replace a class and its arguments on the stack by an object."""
        self.refuse()

    def make_object_with_names(self) -> None:
        """NEWOBJ_EX: the same, with arguments by name on top."""
        self.refuse()

    def read_bytearray(self) -> None:
        """BYTEARRAY8: put a bytearray on the stack."""
        self.refuse()

    def persistent_load(self, pid: Any) -> Any:
        """BINPERSID: what stands for an object outside the pickle."""
        self.refuse()

    def _set_item(self) -> None:
        self.check_items(self.stack[-3], [self.stack[-2]])
        self._as_usual(pickle.SETITEM)

    def _set_items(self) -> None:
        self.check_items(self.metastack[-1][-1], self.stack[::2])
        self._as_usual(pickle.SETITEMS)

    def _make_dict(self) -> None:
        self.check_items({}, self.stack[::2])
        self._as_usual(pickle.DICT)

    def _add_to_set(self) -> None:
        self.check_items({}, self.stack)
        self._as_usual(pickle.ADDITEMS)

    def _make_frozenset(self) -> None:
        self.check_items({}, self.stack)
        self._as_usual(pickle.FROZENSET)

    def _as_usual(self, opcode: bytes) -> None:
        pickle._Unpickler.dispatch[opcode[0]](self)  # type: ignore[arg-type]

    # The lambdas look a method up when the opcode is read, so that a subclass's own method is the one that runs.
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        **dict.fromkeys((opcode[0] for opcode in _REFUSED), lambda self: self.refuse()),
        pickle.REDUCE[0]: lambda self: self.call(),
        pickle.BUILD[0]: lambda self: self.build(),
        pickle.NEWOBJ[0]: lambda self: self.make_object(),
        pickle.NEWOBJ_EX[0]: lambda self: self.make_object_with_names(),
        pickle.BYTEARRAY8[0]: lambda self: self.read_bytearray(),
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _make_dict,
        pickle.ADDITEMS[0]: _add_to_set,
        pickle.FROZENSET[0]: _make_frozenset,
    }
