"""Subtitles in the forms that players read."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavila.demo.moments import Moment
from lavila.demo.subtitles import clock, to_jsonl, to_srt, to_vtt


def moment(start: float, stop: float, text: str, **more: Any) -> Moment:
    return Moment(start=start, stop=stop, text=text, nll=1.0, **more)


MOMENTS = [moment(0, 1.5, "cuts <b>&</b> stirs", others=("cuts",)), moment(3661.0004, 3662, "é --> 切る")]


def test_clock_rounds_to_milliseconds() -> None:
    assert clock(3661.2) == "01:01:01.200"
    assert clock(59.9996) == "00:01:00.000"
    assert clock(0.0004, comma=",") == "00:00:00,000"


def test_subtitles_have_the_form_that_players_read() -> None:
    assert to_srt(MOMENTS) == (
        "1\n00:00:00,000 --> 00:00:01,500\ncuts <b>&</b> stirs\n\n2\n01:01:01,000 --> 01:01:02,000\né --> 切る\n"
    )
    assert to_vtt(MOMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\ncuts &lt;b&gt;&amp;&lt;/b&gt; stirs\n\n"
        "01:01:01.000 --> 01:01:02.000\né --&gt; 切る\n"
    )
    assert to_vtt([]) == "WEBVTT\n"
    first, second = map(json.loads, to_jsonl(MOMENTS).splitlines())
    assert first == {"start": 0, "stop": 1.5, "text": MOMENTS[0].text, "nll": 1.0, "windows": 1, "others": ["cuts"]}
    assert second["text"] == "é --> 切る"


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0.001, 100)), max_size=5))
def test_a_subtitle_file_can_be_read_back(times: list[tuple[float, float]]) -> None:
    moments = [moment(start, start + length, f"text {n}") for n, (start, length) in enumerate(times)]
    cues = re.findall(r"(\d+)\n([\d:,]+) --> ([\d:,]+)\n(.*)\n", to_srt(moments))
    assert [(int(number), text) for number, _, _, text in cues] == [(n + 1, f"text {n}") for n in range(len(times))]
    for one, (_, start, _, _) in zip(moments, cues, strict=True):
        hours, minutes, rest = start.replace(",", ".").split(":")
        assert 3600 * int(hours) + 60 * int(minutes) + float(rest) == pytest.approx(one.start, abs=0.00051)
