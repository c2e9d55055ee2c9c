"""No stored VP9 frame is hidden: NVDEC through DALI counts every decoded frame as one that is shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lavila.data.streams.headers import pictures_in, vp9_superframe
from lavila.data.streams.mp4 import Packets, read_mp4
from tests.data.streams.videos import FRAMES, LAYOUTS, Video

Find = Callable[[str, str], Video]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", ["vp9", "h264", "hevc"])
def test_as_many_pictures_are_decoded_as_shown(codec: str, layout: str, video_of: Find) -> None:
    assert pictures_in(read_mp4(video_of(codec, layout).data).packets) == FRAMES


def test_hidden_pictures_of_av1_are_counted(video_of: Find) -> None:
    packets = read_mp4(video_of("av1", "one group").data).packets
    shown_again = sum(size < 8 for size in packets.sizes)  # a packet that only shows a frame that was hidden before
    assert shown_again > 10
    assert pictures_in(packets) == FRAMES, "each frame is decoded once, hidden or not"


def test_a_hidden_vp9_frame_is_seen() -> None:
    """A packet with two frames ends with an index: a marker, the size of each frame, and the marker once more."""
    marker = 0b110_00_001  # sizes of one byte, two frames
    packet = bytes(10) + bytes(20) + bytes([marker, 10, 20, marker])
    assert vp9_superframe(packet) == 2
    assert vp9_superframe(packet[:-4]) == vp9_superframe(packet[:-4] + bytes([0, 10, 20, marker])) == 0
    packets = Packets("vp9", b"", 3 * packet, [0, 34, 68], [34] * 3, [0, 1, 2], [True] * 3)
    assert pictures_in(packets) == 6
