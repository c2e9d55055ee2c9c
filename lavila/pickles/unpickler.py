"""What readers of untrusted pickles share: no opcode puts anything into a container without a look at the keys.

Python's hash of a deeply nested tuple overflows the stack, so a key of a hostile file can take the process down. The
unpickler is the standard library's one in Python: the one in C cannot be told to look.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, ClassVar


class CheckedUnpickler(pickle._Unpickler):
    """Calls `check_items` before keys or members go into a dict, a set or whatever has items."""

    stack: list[Any]  # what was read since the last mark
    metastack: list[list[Any]]  # the stacks below it

    def check_items(self, target: object, keys: list[Any]) -> None:
        """Raise unless `target` may have such keys. For a set, which is made of them, target is a dict."""
        raise NotImplementedError

    def set_item(self) -> None:
        self.check_items(self.stack[-3], [self.stack[-2]])
        self._as_usual(pickle.SETITEM)

    def set_items(self) -> None:
        self.check_items(self.metastack[-1][-1], self.stack[::2])
        self._as_usual(pickle.SETITEMS)

    def make_dict(self) -> None:
        self.check_items({}, self.stack[::2])
        self._as_usual(pickle.DICT)

    def add_to_set(self) -> None:
        self.check_items({}, self.stack)
        self._as_usual(pickle.ADDITEMS)

    def make_frozenset(self) -> None:
        self.check_items({}, self.stack)
        self._as_usual(pickle.FROZENSET)

    def _as_usual(self, opcode: bytes) -> None:
        pickle._Unpickler.dispatch[opcode[0]](self)  # type: ignore[arg-type]

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.SETITEM[0]: set_item,
        pickle.SETITEMS[0]: set_items,
        pickle.DICT[0]: make_dict,
        pickle.ADDITEMS[0]: add_to_set,
        pickle.FROZENSET[0]: make_frozenset,
    }
