"""Files that hold more than a film: thumbnails, telemetry; and a film whose pictures change their size."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from lavila.ingest.encode import EncodeError, EncodeSettings, Interval, encode_chunk, encode_clip, probe_video
from lavila.ingest.video_files import Limits
from tests.footage import numbered_picture, read_numbers

SMALL = EncodeSettings(codec="h264", short_side=48, speed="ultrafast", crf=18)
RATE = 25
FRAMES = 100  # of the film


def cut(path: Path, start: float, stop: float) -> list[int]:
    return read_numbers(encode_clip(path, interval=Interval(start_second=start, stop_second=stop), settings=SMALL).data)


def add_pictures(out: Any, stream: Any, numbers: range, *, first: int = 0) -> None:
    """Encode numbered pictures of the stream's size; the first one is shown at tick `first`."""
    for place, number in enumerate(numbers):
        picture = numbered_picture(number, height=stream.height, width=stream.width)
        frame: Any = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
        frame.pts, frame.time_base = first + place, Fraction(1, RATE)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def add_stream(out: Any, codec: str, *, height: int, width: int) -> Any:
    stream = out.add_stream(codec, rate=RATE, options={"g": "12", "bf": "0"})
    stream.height, stream.width = height, width
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    stream.codec_context.time_base = Fraction(1, RATE)
    return stream


@pytest.mark.parametrize(("height", "width"), [(24, 32), (144, 192)], ids=["smaller", "larger"])
@pytest.mark.parametrize("frames", [1, 30], ids=["one picture", "a part"])
@pytest.mark.parametrize("codec", ["mjpeg", "libx264"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_a_thumbnail_before_the_film_is_not_taken_for_it(
    tmp_path: Path, name: str, codec: str, frames: int, height: int, width: int
) -> None:
    video = tmp_path / name
    with av.open(str(video), "w") as out:
        thumbnail = add_stream(out, codec, height=height, width=width)
        film = add_stream(out, "libx264", height=48, width=64)
        add_pictures(out, thumbnail, range(4000, 4000 + frames))
        add_pictures(out, film, range(FRAMES))
    facts = probe_video(video, Limits())
    assert (facts.height, facts.width) == (48, 64)
    assert facts.seconds == pytest.approx(FRAMES / RATE, abs=0.05)
    assert cut(video, 0.0, 0.19) == list(range(5))
    assert cut(video, 3.0, 3.19) == list(range(75, 80))


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_telemetry_before_the_film_is_left_aside(tmp_path: Path, name: str) -> None:
    video = tmp_path / name
    with av.open(str(video), "w", options={"strict": "unofficial"}) as out:
        data: Any = out.add_data_stream("bin_data")
        film = add_stream(out, "libx264", height=48, width=64)
        for second in range(FRAMES // RATE):
            packet = av.Packet(b"place and speed")
            packet.stream, packet.pts, packet.dts, packet.time_base = data, second, second, Fraction(1)
            out.mux(packet)
        add_pictures(out, film, range(FRAMES))
    assert cut(video, 3.0, 3.19) == list(range(75, 80))


def test_a_film_whose_pictures_change_their_size_is_cut_before_and_after_it(tmp_path: Path) -> None:
    """Recorders do so when a screen is turned. What is stored has one size, so the clip over the change is refused."""
    video = tmp_path / "a.ts"
    data = b""
    for piece, (height, width) in enumerate([(48, 64), (96, 128)]):
        path = tmp_path / f"{piece}.ts"
        with av.open(str(path), "w") as out:
            stream = add_stream(out, "libx264", height=height, width=width)
            add_pictures(out, stream, range(piece * FRAMES, (piece + 1) * FRAMES), first=piece * FRAMES)
        data += path.read_bytes()
    video.write_bytes(data)
    assert cut(video, 1.0, 1.19) == list(range(25, 30))
    assert cut(video, 5.0, 5.19) == list(range(125, 130))
    with pytest.raises(EncodeError, match="64x48 to 128x96"):
        cut(video, 3.5, 4.5)
    with pytest.raises(EncodeError, match="64x48 to 128x96"):
        encode_chunk(video, number=0, seconds=60.0, settings=SMALL)
