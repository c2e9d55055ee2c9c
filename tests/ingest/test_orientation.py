"""Turned and mirrored pictures: each of the eight orientations is stored as a player shows it, in three containers."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from lavila.ingest.encode import EncodeError, EncodeSettings, Interval, encode_clip
from lavila.ingest.orientation import UPRIGHT, matrix_orientation
from tests.footage import Picture, decode, write_video

ONE = 1 << 16  # 1.0 as a number of a display matrix
COLOURS = {"R": (220, 40, 40), "G": (40, 220, 40), "B": (40, 40, 220), "W": (230, 230, 230)}
# (a, b, c, d) of the matrix -> the corners of the shown picture, where the coded one has R G above B W. Each is where
# (x, y) -> (a x + c y, b x + d y) puts the corner, worked out by hand.
SHOWN = {
    (1, 0, 0, 1): "RGBW",
    (-1, 0, 0, 1): "GRWB",
    (1, 0, 0, -1): "BWRG",
    (-1, 0, 0, -1): "WBGR",
    (0, 1, -1, 0): "BRWG",
    (0, -1, 1, 0): "GWRB",
    (0, 1, 1, 0): "RBGW",
    (0, -1, -1, 0): "WGBR",
}
EACH = pytest.mark.parametrize("matrix", SHOWN, ids=lambda matrix: "".join(map(str, matrix)))


def cornered(height: int = 96, width: int = 128) -> Picture:
    picture = np.full((height, width, 3), 100, np.uint8)
    for (rows, columns), colour in zip(
        [(slice(0, 32), slice(0, 32)), (slice(0, 32), slice(-32, None)),
         (slice(-32, None), slice(0, 32)), (slice(-32, None), slice(-32, None))],
        COLOURS.values(), strict=True,
    ):  # fmt: skip
        picture[rows, columns] = colour
    return picture


def corners(picture: Picture) -> str:
    places = [picture[10, 10], picture[10, -10], picture[-10, 10], picture[-10, -10]]
    near = [min(COLOURS, key=lambda name: np.abs(place.astype(int) - COLOURS[name]).sum()) for place in places]
    return "".join(near)


def stored(path: Path) -> Picture:
    settings = EncodeSettings(codec="h264", short_side=96, speed="ultrafast", crf=16)
    clip = encode_clip(path, interval=Interval(start_second=0.0, stop_second=None), settings=settings)
    picture: Picture = decode(clip.data)[0]
    assert picture.shape[:2] == (clip.height, clip.width) == (clip.source_height, clip.source_width)
    return picture


def with_matrix(path: Path, values: list[float]) -> Path:
    """An mp4 with a, b, c, d in the matrix of its track."""
    data = bytearray(write_video(path, [cornered()] * 3).read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (round(value * ONE) for value in values)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@EACH
def test_an_mp4_is_stored_as_it_is_shown(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    picture = stored(with_matrix(tmp_path / "a.mp4", [float(value) for value in matrix]))
    assert corners(picture) == SHOWN[matrix]
    assert picture.shape[:2] == ((96, 128) if matrix[0] else (128, 96))


@EACH
@pytest.mark.parametrize("container", ["mov", "mkv"])
def test_other_containers_state_it_too(tmp_path: Path, matrix: tuple[int, ...], container: str) -> None:
    a, b, c, d = (ONE * value for value in matrix)
    path = tmp_path / f"a.{container}"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for number in range(3):
            frame: Any = av.VideoFrame.from_ndarray(cornered(), format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert corners(stored(path)) == SHOWN[matrix]


def test_a_turn_that_only_some_frames_state_is_refused(tmp_path: Path) -> None:
    """H.264 may state it in a message of a keyframe, and players differ in what the frames after it are."""
    plain = write_video(tmp_path / "plain.mp4", [cornered()] * 3)
    path = tmp_path / "a.mkv"
    with av.open(str(plain)) as source, av.open(str(path), "w") as out:
        stream = source.streams.video[0]
        copy: Any = out.add_stream_from_template(stream)
        change = BitStreamFilterContext("h264_metadata=display_orientation=insert:flip=horizontal", stream)
        for packet in source.demux(stream):
            for changed in change.filter(packet if packet.size else None):
                changed.stream = copy
                out.mux(changed)
    with pytest.raises(EncodeError, match="hflip"):
        stored(path)


def turned(matrix: tuple[int, ...], degrees: float) -> list[float]:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    a, b, c, d = matrix
    return [a * cosine - b * sine, a * sine + b * cosine, c * cosine - d * sine, c * sine + d * cosine]


@EACH
@pytest.mark.parametrize("degrees", [-0.9, 0.3, 0.9])
def test_small_deviations_are_ignored_as_players_do(matrix: tuple[int, ...], degrees: float) -> None:
    a, b, c, d = (round(ONE * value) for value in turned(matrix, degrees))
    found = matrix_orientation([a, b, 0, c, d, 0, 0, 0, 1 << 30])
    assert (*found.right, *found.down) == matrix


def test_scale_is_no_orientation_and_nothing_is_upright() -> None:
    assert matrix_orientation([0, 3 * ONE, 0, -ONE // 2, 0, 0, 9, 9, 1 << 30]).right == (0, 1)
    assert matrix_orientation([0] * 9) == UPRIGHT


@pytest.mark.parametrize("values", [turned((1, 0, 0, 1), 5.0), turned((0, 1, 1, 0), 45.0), [1.0, 0.0, 1.0, 0.0]])
def test_other_turns_are_refused(tmp_path: Path, values: list[float]) -> None:
    with pytest.raises(EncodeError):
        stored(with_matrix(tmp_path / "a.mp4", values))


def test_a_turn_within_the_clip_is_refused(tmp_path: Path) -> None:
    """Two parts of one video, the second of which is mirrored."""
    folder = tmp_path / "a.mp4"
    folder.mkdir()
    write_video(folder / "0.mp4", [cornered()] * 25)
    with_matrix(folder / "1.mp4", [-1, 0, 0, 1])
    interval, settings = Interval(start_second=0.9, stop_second=1.1), EncodeSettings(codec="h264", short_side=96)
    with pytest.raises(EncodeError, match="hflip"):
        encode_clip(folder, interval=interval, settings=settings)
