"""The shape of pixels may change within a broadcast: a clip has the shape of its frames."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from lavila.ingest.encode import EncodeError, EncodeSettings, Interval, encode_clip
from tests.footage import Coding, numbered_picture, read_numbers, write_video

HEIGHT, WIDTH, HALF = 96, 128, 25
SMALL = EncodeSettings(codec="h264", short_side=HEIGHT, speed="ultrafast")


def two_shapes(folder: Path, codec: str) -> Path:
    """A transport stream of two seconds at 25 frames/s, whose second one has pixels of 4:3."""
    parts = []
    for place, aspect in enumerate((Fraction(1), Fraction(4, 3))):
        pictures = [numbered_picture(place * HALF + number, height=HEIGHT, width=WIDTH) for number in range(HALF)]
        coding = Coding(codec=codec, gop=8, crf=20, aspect=aspect)
        parts.append(write_video(folder / f"{place}.ts", pictures, coding))
    with av.open(str(folder / "both.ts"), "w") as output:
        copy: Any = None
        for place, part in enumerate(parts):
            with av.open(str(part)) as container:
                stream = container.streams.video[0]
                copy = copy or output.add_stream_from_template(stream)
                shift = round((place + 1) / stream.time_base) - (stream.start_time or 0)
                for packet in [packet for packet in container.demux(stream) if packet.size]:
                    assert packet.pts is not None and packet.dts is not None
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                    output.mux(packet)
    return folder / "both.ts"


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_a_clip_has_the_shape_of_its_pixels(tmp_path: Path, codec: str) -> None:
    video = two_shapes(tmp_path, codec)
    for start, stop, width in ((0.0, 0.5, 128), (0.5, 1.0, 128), (1.0, 1.6, 171), (1.4, None, 171)):
        clip = encode_clip(video, interval=Interval(start_second=start, stop_second=stop), settings=SMALL)
        assert (clip.source_height, clip.source_width) == (HEIGHT, width)
        first = round(start * HALF)
        assert read_numbers(clip.data) == list(range(first, first + clip.num_frames))
    with pytest.raises(EncodeError, match="4/3"):
        encode_clip(video, interval=Interval(start_second=0.8, stop_second=1.2), settings=SMALL)
