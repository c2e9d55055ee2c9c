"""Kinds of arguments, and a --help made of a docstring."""

from __future__ import annotations

import argparse

import pytest

from lavila.arguments import name_and_value, parser_of, whole_number


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (whole_number(1), "0"),
        (whole_number(1), "-1"),
        (whole_number(1), "1.5"),
        (whole_number(1), ""),
        (whole_number(1), "²"),
        (whole_number(10, 120), "121"),
        (whole_number(64, 1080, even=True), "65"),
        (name_and_value, "qos"),
        (name_and_value, "=long"),
    ],
)
def test_an_argument_of_another_kind_is_refused(kind: object, text: str) -> None:
    assert callable(kind)
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        kind(text)
    assert repr(text) in str(refused.value)


def test_arguments_are_read() -> None:
    assert [whole_number(0)("0"), whole_number(10, 120)("120"), whole_number(64, 66, even=True)("66")] == [0, 120, 66]
    assert name_and_value("exclude=a=b") == ("exclude", "a=b") and name_and_value("x=") == ("x", "")


def test_help_is_the_docstring_with_the_options_after_its_first_paragraph() -> None:
    text = parser_of("Does it.\n\n    python it.py\n", more="forms: two\n").format_help()
    assert text.index("Does it.") < text.index("--help") < text.index("    python it.py\n") < text.index("forms: two")
