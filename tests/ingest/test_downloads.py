"""Files that are no videos: the reason says what they are and what helps."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from lavila.ingest.downloads import why_unreadable
from lavila.ingest.encode import probe_video
from lavila.ingest.video_files import EncodeError
from tests.footage import write_numbered_video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An mp4 whose table of frames lies at its end, as cameras write it."""
    data = write_numbered_video(tmp_path_factory.mktemp("video") / "v.mp4", 30, height=48, width=64).read_bytes()
    assert data.index(b"mdat") < data.index(b"moov")
    return data


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("v.mp4", content)
    return buffer.getvalue()


def tarred(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("v.mp4")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


KINDS = {
    "empty": (lambda video: b"", "empty (0 bytes)"),
    "broken off": (lambda video: video[: len(video) // 2], "ends early"),
    "only its first bytes": (lambda video: video[:40], "broke off"),
    "without its table": (lambda video: video[: video.index(b"moov") - 4], "moov"),
    "preallocated": (lambda video: bytes(len(video)), "zeros"),
    "a web page": (lambda video: b"\n<!DOCTYPE html><html><body>Please log in</body></html>", "web page"),
    "an error in XML": (lambda video: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
    "a pointer": (lambda video: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "zip": (zipped, "archive (zip)"),
    "tar": (tarred, "archive (tar)"),
    "gzip": (gzip.compress, "archive (gzip)"),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_reason_says_what_it_is(kind: str, video: bytes, tmp_path: Path) -> None:
    make, word = KINDS[kind]
    path = tmp_path / "v.mp4"
    path.write_bytes(make(video))
    with pytest.raises(EncodeError) as caught:
        probe_video(path)
    assert word in str(caught.value) and "not a readable video" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_download_that_has_not_ended(video: bytes, tmp_path: Path) -> None:
    """aria2 gives the file its name and size at once, and removes its own file at the end."""
    path = tmp_path / "v.mp4"
    path.write_bytes(bytes(100) + video[100:])
    path.with_name("v.mp4.aria2").touch()
    with pytest.raises(EncodeError, match=r"not finished, v\.mp4\.aria2"):
        probe_video(path)


def test_a_sound_file_and_noise_have_no_such_reason(video: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    for content in (video, b"not a video at all" * 100, b"\x1aE\xdf\xa3" + bytes(100)):
        path.write_bytes(content)
        assert why_unreadable(path) is None
    assert why_unreadable(tmp_path / "none.mp4") is None


def test_every_cut_of_an_mp4_is_noticed(video: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    for size in range(0, len(video) - 8, len(video) // 60):
        path.write_bytes(video[:size])
        assert why_unreadable(path) is not None, size
