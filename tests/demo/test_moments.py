"""Moments: one name for the subject, windows that overlap, neighbours that say the same."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lavila.demo.footage import Window, windows_of
from lavila.demo.moments import Moment, join, one_subject, other_texts, shares


def moment(start: float, stop: float, text: str, **more: Any) -> Moment:
    return Moment(start=start, stop=stop, text=text, nll=1.0, **more)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#C C opens the door", "she opens the door"),
        ("#c c  opens\tthe door", "she opens the door"),
        ("#C opens", "she opens"),
        ("# C C opens", "she opens"),
        ("C opens", "she opens"),
        ("#O a man C opens", "#O a man C opens"),  # another person
        ("Cuts a cable", "Cuts a cable"),
        ("#C C", "she"),
    ],
)
def test_the_person_who_wears_the_camera_has_one_name(text: str, found: str) -> None:
    assert one_subject(text, "she") == found


def test_overlapping_windows_speak_up_to_the_middle_of_the_overlap() -> None:
    windows = windows_of(0, 10, every=1, length=2)
    found = shares(windows)
    assert found[:2] == [(0, 1.5), (1.5, 2.5)] and found[-1] == (9.5, 10)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    apart = [Window(start=0, stop=1), Window(start=5, stop=6)]
    assert shares(apart) == [(0, 1), (5, 6)]
    assert shares([]) == []


def test_neighbours_that_say_the_same_become_one_moment() -> None:
    given = [
        moment(0, 2, "#C C opens the door", key_frame=b"first"),
        moment(2, 4, "#C C Opens a door."),
        moment(4, 6, "#C C walks"),
        moment(9, 11, "#C C walks"),  # not a neighbour: there are three seconds between
    ]
    found = list(join(given))
    assert [(one.start, one.stop, one.text, one.windows) for one in found] == [
        (0, 4, "#C C opens the door", 2),
        (4, 6, "#C C walks", 1),
        (9, 11, "#C C walks", 1),
    ]
    assert found[0].key_frame == b"first"
    assert list(join([])) == []


def test_other_texts_are_what_else_was_said_most_frequent_first() -> None:
    texts = ["opens it", "walks", "", "runs", "Opens it!", "runs"]
    assert other_texts(texts, "opens it") == ("runs", "walks")
