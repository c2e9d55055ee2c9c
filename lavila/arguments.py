"""Command lines of tools: a parser whose --help is the tool's docstring, and kinds of arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def parser_of(docstring: str | None, *, more: str = "") -> argparse.ArgumentParser:
    """A parser whose --help shows a docstring: the first paragraph above the options, the rest and `more` below."""
    description, _, epilog = (docstring or "").partition("\n\n")
    return argparse.ArgumentParser(
        description=description, epilog=epilog + more, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def whole_number(least: int, most: int | None = None, *, even: bool = False) -> Callable[[str], int]:
    """The type of an argument for argparse: a whole number of at least `least`, at most `most`, and even if asked."""
    kind = "an even" if even else "a whole"
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        number = int(text) if text.isascii() and text.isdecimal() else None
        if number is None or number < least or (most is not None and number > most) or (even and number % 2):
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind} number {allowed}")
        return number

    return read


def name_and_value(text: str) -> tuple[str, str]:
    """The type of an argument NAME=VALUE: 'mem_gb=8' gives ('mem_gb', '8')."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE, for example qos=long")
    return name, value
