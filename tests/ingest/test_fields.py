"""Interlaced H.264 whose fields are coded one by one: a frame is stored once, at its own time, whatever the packets."""

from __future__ import annotations

from pathlib import Path

import pytest

from lavila.ingest.encode import EncodeSettings, Interval, encode_chunk, encode_clip
from tests.footage import numbered_picture, read_numbers
from tests.ingest.fields import write_fields

SMALL = EncodeSettings(codec="h264", short_side=64, speed="ultrafast", crf=12)
FRAMES = 40


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.flv"])
def test_a_frame_of_two_fields_is_one_frame(tmp_path: Path, name: str, apart: bool) -> None:
    """Remuxed files have a packet for each field, and state as many frames as fields."""
    pictures = [numbered_picture(number, height=64, width=64) for number in range(FRAMES)]
    video = write_fields(tmp_path / name, pictures, apart=apart)
    clip = encode_clip(video, interval=Interval(start_second=0.0, stop_second=None), settings=SMALL)
    assert (clip.source_fps, clip.num_frames, clip.fps_stated) == (25.0, FRAMES, not apart)
    assert read_numbers(clip.data) == list(range(FRAMES))
    for start in (0.2, 0.76, 1.2):
        clip = encode_clip(video, interval=Interval(start_second=start, stop_second=start + 0.2), settings=SMALL)
        assert read_numbers(clip.data) == list(range(round(25 * start), round(25 * start) + 5))
    chunk = encode_chunk(video, number=1, seconds=1.0, settings=SMALL)
    assert read_numbers(chunk.data) == list(range(25, FRAMES))


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.flv"])
def test_an_encoder_that_counts_in_its_own_way_has_lost_nothing(tmp_path: Path, name: str) -> None:
    """Its frame numbers look as if every second frame were missing, but no time is."""
    pictures = [numbered_picture(number, height=64, width=64) for number in range(FRAMES)]
    video = write_fields(tmp_path / name, pictures, apart=False, step=2)
    clip = encode_clip(video, interval=Interval(start_second=0.0, stop_second=None), settings=SMALL)
    assert read_numbers(clip.data) == list(range(FRAMES))
