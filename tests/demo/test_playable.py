from __future__ import annotations

import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from lavila.demo.chores import Stopped
from lavila.demo.playable import SOUND_RATE, Copies, playback, write_copy
from lavila.ingest.source_video import probe_video
from lavila.ingest.video_files import EncodeError
from tests.footage import Coding, decode, numbered_picture, read_numbers, write_numbered_video, write_video


@pytest.mark.parametrize(
    ("name", "codec", "direct"),
    [
        ("a.mp4", "libx264", True),
        ("a.MOV", "libx264", True),
        ("a.mkv", "libx264", True),
        ("a.webm", "libvpx-vp9", True),
        ("a.ts", "libx264", False),
        ("a.avi", "mpeg4", False),
        ("a.mp4", "libx265", False),
    ],
)
def test_what_a_browser_plays_itself(tmp_path: Path, name: str, codec: str, direct: bool) -> None:
    path = write_numbered_video(tmp_path / name.lower(), 30, Coding(codec=codec))
    path = path.rename(tmp_path / name)
    assert playback(path).direct is direct


def test_sound_before_the_first_picture_sets_the_clock_ahead(tmp_path: Path) -> None:
    late = tuple(500 + 40 * number for number in range(10))
    path = write_video(
        tmp_path / "late.mkv", (numbered_picture(n) for n in range(10)), Coding(milliseconds=late, sound=True)
    )
    assert 0.3 < playback(path).lead <= 0.5  # the encoder of the sound begins a little early
    assert playback(write_numbered_video(tmp_path / "a.mp4", 3)).lead == pytest.approx(0, abs=0.05)


def copied(video: Path) -> tuple[Path, Sequence[float]]:
    shares: list[float] = []
    copy = video.with_name("copy.mp4")
    write_copy(video, copy, shares.append)
    return copy, shares


def test_a_copy_has_every_frame_in_its_time_and_the_sound(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.avi", 60, Coding(codec="mpeg4", sound=True, crf=4))
    copy, shares = copied(video)
    assert read_numbers(copy) == list(range(60))
    assert shares == sorted(shares) and shares[-1] > 0.9
    assert probe_video(copy).fps == 25
    with av.open(str(copy)) as opened:
        video_stream, sound = opened.streams.video[0], opened.streams.audio[0]
        assert (video_stream.codec_context.name, sound.codec_context.name) == ("h264", "aac")
        keys = [float(packet.pts * packet.time_base) for packet in opened.demux(video_stream) if packet.is_keyframe]
        assert max(np.diff(keys), default=0) <= 2.0
    with av.open(str(copy)) as opened:
        heard = sum(frame.samples for frame in opened.decode(audio=0))
        assert heard == pytest.approx(SOUND_RATE, rel=0.2)  # a second, and what AAC adds at its ends
    assert copy.read_bytes().index(b"moov") < copy.read_bytes().index(b"mdat")  # it plays before all of it is there


def test_a_copy_is_upright_even_and_not_larger_than_needed(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.mov", 4, Coding(rotation=90), height=120, width=161 - 1)
    copy, _ = copied(video)
    assert decode(copy).shape[1:3] == (160, 128)  # 120 wide, with black edges up to a multiple of 16


def test_files_of_one_video_become_one_copy(tmp_path: Path) -> None:
    folder = tmp_path / "long.mp4"
    folder.mkdir()
    second = Coding(fps=Fraction(10))
    pictures = [numbered_picture(number) for number in range(20)]
    write_video(folder / "0.mp4", pictures[:10], second)
    write_video(folder / "1.mp4", pictures[10:], second)
    assert not playback(folder).direct
    copy, _ = copied(folder)
    assert read_numbers(copy) == list(range(20))


def test_copies_are_kept_until_the_video_changes_and_failures_are_said(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.avi", 3, Coding(codec="mpeg4"))
    copies = Copies(tmp_path / "copies")
    assert copies.file(video) is None
    copies.ask(video)
    copies.close()  # waits for the work
    again = Copies(tmp_path / "copies")
    if (file := again.file(video)) is None:  # it was stopped before it began
        again.ask(video)
        again._chores._pool.shutdown()
        file = again.file(video)
    assert file is not None and again.ask(video).state == "done"
    shutil.copy(write_numbered_video(tmp_path / "b.avi", 5, Coding(codec="mpeg4")), video)
    assert again.file(video) is None


def test_what_cannot_be_read_has_no_copy(tmp_path: Path) -> None:
    broken = tmp_path / "broken.avi"
    broken.write_bytes(b"no video" * 99)
    with pytest.raises(EncodeError, match=r"broken\.avi"):
        write_copy(broken, tmp_path / "copy.mp4", lambda share: None)

    def stop(share: float) -> None:
        raise Stopped

    video = write_numbered_video(tmp_path / "a.avi", 3, Coding(codec="mpeg4"))
    with pytest.raises(Stopped):
        write_copy(video, tmp_path / "copy.mp4", stop)
