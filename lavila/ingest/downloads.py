"""What a file is that FFmpeg cannot open as a video: a download that broke off, a web page, an archive ..."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

HEAD = 4096  # bytes that are looked at first
BOX_HEADER = 8  # bytes of size and type before the content of an mp4's box
ARCHIVES = {b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"\xfd7zXZ": "xz"}
UNFINISHED = (".part", ".crdownload", ".aria2", ".download", ".tmp", ".partial")  # what downloaders add to a name
AGAIN = "fetch it again"


def why_unreadable(path: Path) -> str | None:
    """The reason, with what helps; None if the file shows none."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD)
            if control := next((end for end in UNFINISHED if path.with_name(path.name + end).exists()), None):
                return f"its download is not finished, {path.name}{control} is there; let it finish"
            if not size:
                return f"is empty (0 bytes); {AGAIN}"
            if not any(head):
                return f"begins with zeros, so its download was not finished; {AGAIN}"
            return _other_kind(head) or _early_end(file, size)
    except OSError:
        return None


def _other_kind(head: bytes) -> str | None:
    """What the first bytes show, if it is no video."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    page = text.startswith((b"<!doctype html", b"<html", b"<head"))
    if page or (text.startswith(b"<") and (b"<html" in text or b"<error" in text)):  # a server's errors are XML
        return f"is a web page, not a video; {AGAIN}, and look whether the site asks for a login"
    if text.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the video; run git lfs pull"
    kind = next((kind for magic, kind in ARCHIVES.items() if head.startswith(magic)), None)
    if head[257:262] == b"ustar":
        kind = "tar"
    return f"is an archive ({kind}), not a video; unpack it" if kind else None


def _early_end(file: BinaryIO, size: int) -> str | None:
    """Whether an mp4 (mov) lacks its end, or the table of its frames, by the boxes that it consists of."""
    at = 0
    kinds: list[bytes] = []
    while at + BOX_HEADER <= size:
        file.seek(at)
        header = file.read(2 * BOX_HEADER)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if not kinds and kind not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return None  # another container
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:
            length = size - at
        if length < BOX_HEADER:
            return None
        kinds.append(kind)
        at += length
    if at > size:
        return f"ends early: it has {size:,} of the {at:,} bytes that its header promises; {AGAIN}"
    if kinds and b"moov" not in kinds:
        return f"holds no table of its frames (moov): the recording or the download broke off; {AGAIN}"
    return None
