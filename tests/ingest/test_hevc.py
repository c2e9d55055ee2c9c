"""Pictures that an HEVC stream lacks: headers show what lacks, and no neighbour stands for a picture."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from lavila.ingest.hevc import CRA, HevcCounter
from tests.footage import numbered_picture
from tests.ingest.test_h264 import packets, places
from tests.ingest.test_losses import shown, without

FRAMES, HEIGHT, WIDTH = 60, 96, 128
CODINGS = {
    "plain": "bframes=0:keyint=20",
    "pyramid": "bframes=4:b-adapt=0:b-pyramid=1:open-gop=0:keyint=20:min-keyint=20",
    "open groups": "bframes=3:b-adapt=0:open-gop=1:keyint=20:min-keyint=20",
    "layers": "bframes=4:b-adapt=0:temporal-layers=1:keyint=60",
    "many references": "bframes=6:ref=5:rc-lookahead=20:keyint=60",
    "matrices": "scaling-list=default:bframes=2:keyint=20",
}


def coded(path: Path, name: str) -> Path:
    options = {"x265-params": f"{CODINGS[name]}:scenecut=0:log-level=none", "preset": "ultrafast", "crf": "16"}
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx265", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(FRAMES):
            picture = numbered_picture(number, height=HEIGHT, width=WIDTH)
            frame: Any = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("ending", ["mp4", "ts"])
@pytest.mark.parametrize("name", CODINGS)
def test_nothing_is_missing_in_a_whole_stream(tmp_path: Path, name: str, ending: str) -> None:
    extradata, found = packets(coded(tmp_path / f"a.{ending}", name))
    seen = places(HevcCounter(extradata), [data for data, _ in found])
    assert not any(place.missing for place in seen) and all(place.shown for place in seen)
    keys = [(place.group, place.order, time) for place, (_, time) in zip(seen, found, strict=True)]
    assert [time for *_, time in sorted(keys)] == sorted(time for *_, time in keys)


def test_pictures_that_lead_the_first_keyframe_are_not_missed(tmp_path: Path) -> None:
    """A reader that begins in the middle of an open group has no picture for them."""
    extradata, found = packets(coded(tmp_path / "a.mp4", "open groups"))
    starts = [place for place, (data, _) in enumerate(found) if data[4] >> 1 & 0b111111 == CRA]
    seen = places(HevcCounter(extradata), [data for data, _ in found[starts[1] :]])
    assert [place.shown for place in seen[:5]] == [True, False, False, False, True]
    assert not any(place.missing for place in seen)


@pytest.mark.parametrize("name", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("coding", ["pyramid", "open groups"])
def test_no_neighbour_stands_for_a_lost_picture(tmp_path: Path, coding: str, name: str) -> None:
    video = coded(tmp_path / f"a.{name}", coding)
    assert shown(video) == {number: number for number in range(FRAMES)}
    for lost in range(22, 34):
        found = shown(without(video, tmp_path / f"b.{name}", {lost}), range(15, 45))
        assert {number: seen for number, seen in found.items() if seen not in (None, number)} == {}, lost
        assert None in found.values()


@pytest.mark.parametrize("packet", [b"", b"\0\0\1", b"\0\0\1\x26\x01", b"\0\0\1\x26\x01\xff" + b"\0" * 50])
def test_what_is_not_understood_is_not_known(packet: bytes) -> None:
    assert HevcCounter(b"").place(packet) is None
