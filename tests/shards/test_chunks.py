"""Layout "chunks" as arithmetic: which chunks a clip needs, where it lies in them, which bytes hold its frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavila.records import Clip
from lavila.shards.chunks import TO_THE_END, ChunkError, ChunkIndex, ChunkTable, Place, chunk_numbers
from lavila.shards.format import CHUNKS_SCHEMA

HEADER = b"H" * 7
FPS, PER_CHUNK = 25, 100


def chunk_bytes(first: int, frames: int, gop: int) -> tuple[bytes, list[int]]:
    """A made-up chunk: a header, then for each group its frames' numbers as two bytes each. And its offsets."""
    data, offsets = HEADER, []
    for start in range(0, frames, gop):
        offsets.append(len(data))
        data += b"".join((first + n).to_bytes(2, "big") for n in range(start, min(start + gop, frames)))
    return data, [*offsets, len(data)]


def a_row(
    first: int, frames: int, *, video: str = "v", offsets: list[int] | None = None, gop: int = 8
) -> dict[str, Any]:
    fixed = {"source_fps": 25.0, "fps": float(FPS), "shard": 0, "offset": 0, "size": 1, "height": 48, "width": 64}
    sizes = {"source_height": 48, "source_width": 64, "scaled_height": 48, "scaled_width": 64}
    own = {"chunk_id": f"{video}_{first // PER_CHUNK:05d}", "video_id": video, "first_frame": first}
    return {
        **fixed,
        **sizes,
        **own,
        "num_frames": frames,
        "gop": gop,
        "gop_offsets": offsets or [7, 9],
        "piece_crc32": [0] * len(offsets or [7, 9]),
        "header_sha256": "h",
    }


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    gop=st.integers(1, 16),
    data=st.data(),
    skip=st.booleans(),
)
def test_byte_ranges_hold_the_frames_asked_for(lengths: list[int], gop: int, data: st.DataObject, skip: bool) -> None:
    firsts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    made = [chunk_bytes(first, count, gop) for first, count in zip(firsts, lengths, strict=False)]
    rows = [a_row(f, n, offsets=m[1], gop=gop) for f, n, m in zip(firsts, lengths, made, strict=False)]
    names = CHUNKS_SCHEMA.names
    table = ChunkTable(pa.Table.from_pylist([{n: row[n] for n in names} for row in rows], schema=CHUNKS_SCHEMA))
    chunk = data.draw(st.integers(0, len(lengths) - 1)) if skip else 0
    available = sum(lengths[chunk:])
    frames = sorted(data.draw(st.sets(st.integers(0, available - 1), min_size=1)))
    pieces, numbers = table.ranges(chunk, frames)
    whole = b"".join(made[piece.chunk][0][piece.start : piece.stop] for piece in pieces)
    assert whole.startswith(HEADER) and whole.count(HEADER) == 1
    held = np.frombuffer(whole[len(HEADER) :], ">u2")
    assert held[numbers].tolist() == [firsts[chunk] + frame for frame in frames]
    groups = {(piece.chunk, piece.start) for piece in pieces}
    assert len(groups) == len(pieces)
    # Not one group more than those that hold a wanted frame.
    wanted = set(frames)
    starts = [(c, s) for c in range(chunk, len(lengths)) for s in range(0, lengths[c], gop)]
    needed = [
        (c, s)
        for c, s in starts
        if wanted & {firsts[c] - firsts[chunk] + n for n in range(s, min(s + gop, lengths[c]))}
    ]
    assert len(held) == sum(min(gop, lengths[c] - s) for c, s in needed)


def a_clip(start: float, stop: float | None, **values: Any) -> Clip:
    return Clip(clip_id="c", video_id="v", video_path="v.mp4", start_second=start, stop_second=stop, **values)


@pytest.mark.parametrize(
    ("clip", "margin", "duration", "expected"),
    [
        (a_clip(0, 1), 0.0, None, [0]),
        (a_clip(3.5, 4.5), 0.0, None, [0, 1]),  # crosses a boundary
        (a_clip(1, 2.5), 0.0, None, [0, 1]),  # so that a short clip can be continued
        (a_clip(4.2, 5), 0.0, None, [1]),
        (a_clip(4.2, 5), 0.5, None, [0, 1]),
        (a_clip(1, 2.5), 0.0, 3.0, [0]),  # the video ends there
        (a_clip(1, None), 0.0, 13.0, [0, 1, 2, 3]),
        (a_clip(9, 9.5), 0.0, 4.0, [2]),  # after the end: asked for, and then refused by name
    ],
)
def test_the_chunks_that_a_clip_needs(clip: Clip, margin: float, duration: float | None, expected: list[int]) -> None:
    assert list(chunk_numbers(clip, seconds=4.0, margin=margin, duration=duration)) == expected


def index(*rows: dict[str, Any], **failures: str) -> ChunkIndex:
    return ChunkIndex(rows, failures)


IDS = ["v_00000", "v_00001", "v_00002"]
THREE = (a_row(0, 100), a_row(100, 100), a_row(200, 60))


def test_a_clip_lies_in_its_chunk_or_across_two() -> None:
    inside = index(*THREE).locate(a_clip(1.0, 2.0), chunk_ids=IDS[:1], rule="edges")
    assert inside == Place(chunk=0, first_frame=25, num_frames=25, frames_after=210)
    across = index(*THREE).locate(a_clip(3.6, 4.6), chunk_ids=IDS[:2], rule="edges")
    assert across == Place(chunk=0, first_frame=90, num_frames=25, frames_after=145)
    assert index(*THREE).locate(a_clip(4.0, 4.01), chunk_ids=IDS[:2], rule="duration").num_frames == 1
    to_the_end = index(*THREE).locate(a_clip(8.0, None), chunk_ids=IDS, rule="edges")
    assert to_the_end == Place(chunk=2, first_frame=0, num_frames=60, frames_after=0)
    assert to_the_end.num_frames < TO_THE_END


def test_a_clip_that_reaches_past_the_end_stops_there() -> None:
    place = index(*THREE).locate(a_clip(10.0, 14.0), chunk_ids=["v_00002", "v_00003"], rule="edges")
    assert place == Place(chunk=2, first_frame=50, num_frames=10, frames_after=0)
    with pytest.raises(ChunkError, match=r"11\.00 s.*10\.36 s"):
        index(*THREE).locate(a_clip(11.0, 14.0), chunk_ids=["v_00002", "v_00003"], rule="edges")
    with pytest.raises(ChunkError):
        index(*THREE).locate(a_clip(20.0, 21.0), chunk_ids=["v_00005"], rule="edges")


def test_a_lost_chunk_takes_only_the_clips_that_lie_in_it() -> None:
    holed = index(THREE[0], THREE[2], v_00001="damaged after 5.00 s")
    assert holed.locate(a_clip(1.0, 2.0), chunk_ids=IDS[:2], rule="edges").num_frames == 25
    assert holed.locate(a_clip(8.1, 9.0), chunk_ids=IDS[1:], rule="edges").chunk == 1
    for start, stop in ((3.5, 4.5), (4.5, 5.0), (7.5, 8.5)):
        with pytest.raises(ChunkError, match="damaged"):
            holed.locate(a_clip(start, stop), chunk_ids=IDS, rule="edges")
    with pytest.raises(ChunkError, match="damaged"):
        index(v_00001="damaged").locate(a_clip(4.5, 5.0), chunk_ids=["v_00001"], rule="edges")


def test_chunks_of_other_videos_or_with_other_headers_do_not_join() -> None:
    other = index(THREE[0], a_row(100, 100, video="w"))
    assert other.locate(a_clip(3.0, 3.9), chunk_ids=IDS[:1], rule="edges").frames_after == 2
    changed = index(THREE[0], {**THREE[1], "header_sha256": "other"})
    assert changed.locate(a_clip(3.0, 3.9), chunk_ids=IDS[:2], rule="edges").frames_after == 2
    with pytest.raises(ChunkError, match=r"4\.00 s"):
        changed.locate(a_clip(3.5, 4.5), chunk_ids=IDS[:2], rule="edges")
