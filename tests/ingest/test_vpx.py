"""The sizes that VP8 and VP9 state, and that none above the limit reaches libvpx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest

from lavila.ingest import decoded
from lavila.ingest.encode import EncodeError, EncodeSettings, Interval, Limits, encode_clip
from lavila.ingest.vpx import stated_sizes
from lavila.libav import careful_decoder
from tests.footage import Coding, write_numbered_video

HEIGHT, WIDTH = 96, 160
GROUP = 8


def packets(video: Path) -> list[tuple[bool, bytes]]:
    with av.open(str(video)) as container:
        return [(packet.is_keyframe, bytes(packet)) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "gbrp"])
def test_keyframes_of_vp9_state_their_size(tmp_path: Path, pix_fmt: str) -> None:
    """Profiles 0 and 1, and RGB."""
    coding = Coding(codec="libvpx-vp9", gop=GROUP, crf=30, pix_fmt=pix_fmt)
    video = write_numbered_video(tmp_path / "a.webm", 20, coding, height=HEIGHT, width=WIDTH)
    for key, packet in packets(video):
        assert list(stated_sizes("libvpx-vp9", packet)) == [(WIDTH, HEIGHT)] * key


def test_keyframes_of_vp8_state_their_size(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.webm", 20, Coding(codec="libvpx", gop=GROUP), height=HEIGHT, width=WIDTH)
    for key, packet in packets(video):
        assert list(stated_sizes("libvpx", packet)) == [(WIDTH, HEIGHT)] * key


def test_each_frame_of_a_superframe_is_looked_at(tmp_path: Path) -> None:
    video = write_numbered_video(
        tmp_path / "a.webm", 9, Coding(codec="libvpx-vp9", gop=GROUP, crf=30), height=HEIGHT, width=WIDTH
    )
    (_, first), (_, second) = packets(video)[:2]
    mark = bytes([0b110_01_001])  # two frames, sizes of two bytes
    sizes = b"".join(len(one).to_bytes(2, "little") for one in (second, first))
    assert list(stated_sizes("libvpx-vp9", second + first + mark + sizes + mark)) == [(WIDTH, HEIGHT)]
    for damaged in (b"", first[:3], b"\0" * 20, second[:2]):
        assert list(stated_sizes("libvpx-vp9", damaged)) == []


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_libvpx_gets_no_picture_above_the_limit(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container may state a smaller one."""
    video = write_numbered_video(
        tmp_path / "a.webm", 20, Coding(codec=codec, gop=GROUP, crf=30), height=HEIGHT, width=WIDTH
    )
    data = video.read_bytes()
    sides = b"\xb0\x81%c\xba\x81%c"
    assert data.count(sides % (WIDTH, HEIGHT)) == 1
    video.write_bytes(data.replace(sides % (WIDTH, HEIGHT), sides % (64, 48)))
    fed: list[Any] = []

    class Counting:
        def __init__(self, context: Any) -> None:
            object.__setattr__(self, "context", careful_decoder(context))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.context, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(self.context, name, value)

        def decode(self, packet: Any) -> Any:
            fed.append(packet)
            return self.context.decode(packet)

    monkeypatch.setattr(decoded, "careful_decoder", Counting)
    for pixels, allowed in ((HEIGHT * WIDTH, True), (HEIGHT * WIDTH - 1, False)):
        fed.clear()
        try:
            clip = encode_clip(
                video,
                interval=Interval(start_second=0.0, stop_second=0.4),
                settings=EncodeSettings(codec="h264", short_side=48, speed="ultrafast"),
                limits=Limits(pixels=pixels),
            )
            assert allowed and clip.num_frames == 10 and fed
        except EncodeError as error:
            assert not allowed and not fed and f"{WIDTH}x{HEIGHT}" in str(error)
