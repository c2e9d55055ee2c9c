"""The page: whole in itself, with nothing that a caption could break."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from lavila.demo.moments import Moment
from lavila.demo.page import PageOf, is_embedded, page, short_clock

HOSTILE = "</script><script>alert(1)</script> \"quoted\" & 'more' <b>"


def moments(*texts: str) -> list[Moment]:
    return [
        Moment(start=2.0 * n, stop=2.0 * n + 2, text=text, nll=1.0, others=(f"other {text}",), key_frame=b"JPEG")
        for n, text in enumerate(texts)
    ]


def made(video: Path, texts: list[str], folder: Path, *, embed_mib: float = 1.0, seconds: float = 8.0) -> str:
    of = PageOf(video=video, seconds=seconds, facts=["8.0 s", "2 moments"], embed_mib=embed_mib)
    return page(of, moments(*texts), folder=folder)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "my vidéo #1.mp4"
    path.write_bytes(b"\0\1video")
    return path


def test_a_small_video_is_in_the_page(video: Path, tmp_path: Path) -> None:
    found = made(video, ["cuts"], tmp_path / "out")
    (data,) = re.findall(r'<video[^>]* src="data:video/mp4;base64,([^"]*)"', found)
    assert base64.b64decode(data) == video.read_bytes()


def test_a_large_video_is_referred_to_from_where_the_page_lies(video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "deep"
    folder.mkdir(parents=True)
    found = made(video, ["cuts"], folder, embed_mib=1e-6)
    (source,) = re.findall(r'<video[^>]* src="([^"]*)"', found)
    assert (folder / unquote(html.unescape(source))).resolve() == video.resolve()
    assert "#" not in source  # which would end the path


def test_a_folder_of_files_has_key_frames_alone(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").mkdir()
    found = made(tmp_path / "x.mp4", ["cuts"], tmp_path)
    assert "<video" not in found and "cuts" in found
    assert not is_embedded(PageOf(video=tmp_path / "x.mp4", seconds=1, facts=[], embed_mib=1))


def test_cues_key_frames_and_other_texts_are_in_the_page(video: Path, tmp_path: Path) -> None:
    found = made(video, ["cuts the leek", "stirs"], tmp_path)
    (cues,) = re.findall(r'<script type="application/json" id="cues">(.*)</script>', found)
    assert json.loads(cues) == [
        {"start": 0.0, "stop": 2.0, "text": "cuts the leek"},
        {"start": 2.0, "stop": 4.0, "text": "stirs"},
    ]
    key_frame = "data:image/jpeg;base64," + base64.b64encode(b"JPEG").decode()
    assert found.count(f'<img src="{key_frame}"') == 2 and found.count(f'poster="{key_frame}"') == 1
    assert "other stirs" in found and "left:25.0%;width:25.0%" in found
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', found)  # nothing is fetched


def test_a_caption_cannot_leave_its_place(video: Path, tmp_path: Path) -> None:
    found = made(video, [HOSTILE], tmp_path)
    assert found.count("<script") == found.count("</script>") == 2
    assert "alert(1)</script>" not in found and "<b>" not in found.replace("<b>my", "").replace("<b>data", "")
    (cues,) = re.findall(r'id="cues">(.*)</script>', found)
    assert json.loads(cues)[0]["text"] == HOSTILE


def test_a_video_without_moments_has_a_page_too(video: Path, tmp_path: Path) -> None:
    assert "No moment" in made(video, [], tmp_path)


@pytest.mark.parametrize(
    ("second", "text"), [(0, "0:00"), (65.9, "1:05.9"), (59.99, "1:00"), (3600, "1:00:00"), (36061.04, "10:01:01")]
)
def test_short_clock(second: float, text: str) -> None:
    assert short_clock(second) == text
