"""Where videos are found, and what is said of those that are not."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from lavila.annotations import charades_ego, ego4d, egtea, epic_kitchens
from lavila.annotations.base import AnnotationSet
from lavila.ingest.places import find_videos, why_missing
from lavila.ingest.video_files import EncodeError, find_parts
from lavila.records import Clip

EMPTY = AnnotationSet(clips=[], classes={}, files=[], failures=[])
LAYOUTS = {
    "P01/P01_01.MP4": epic_kitchens.LAYOUTS,
    "uid.mp4": ego4d.LAYOUTS,
    "OP01-R01-Salad/OP01-R01-Salad-1-2-F01-F02.mp4": egtea.LAYOUTS,
    "ABCDEEGO.mp4": charades_ego.LAYOUTS,
}


def clip(video_path: str) -> Clip:
    return Clip(clip_id="c", video_id="v", video_path=video_path, start_second=0.0, stop_second=1.0)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"video")


@pytest.mark.parametrize(
    ("published", "there"),
    [
        ("P01/P01_01.MP4", "P01/P01_01.MP4"),
        ("P01/P01_01.MP4", "P01/videos/P01_01.MP4"),
        ("P01/P01_01.MP4", "EPIC-KITCHENS/P01/videos/P01_01.MP4"),
        ("P01/P01_01.MP4", "videos/train/P01/P01_01.MP4"),
        ("P01/P01_01.MP4", "P01/P01_01.mp4"),
        ("P01/P01_01.MP4", "P01_01.mp4"),
        ("uid.mp4", "v2/full_scale/uid.mp4"),
        ("uid.mp4", "v1/video_540ss/uid.mp4"),
        ("uid.mp4", "full_scale/uid.mp4"),
        ("uid.mp4", "video_5min_chunks_288px/uid.mp4/0.mp4"),
        (
            "OP01-R01-Salad/OP01-R01-Salad-1-2-F01-F02.mp4",
            "cropped_clips/OP01-R01-Salad/OP01-R01-Salad-1-2-F01-F02.mp4",
        ),
        ("OP01-R01-Salad/OP01-R01-Salad-1-2-F01-F02.mp4", "OP01-R01-Salad-1-2-F01-F02.mp4"),
        ("ABCDEEGO.mp4", "CharadesEgo_v1_480/ABCDEEGO.mp4"),
        ("ABCDEEGO.mp4", "Charades_v1_480/ABCDEEGO.mp4"),
    ],
)
def test_a_video_is_found_in_official_layouts(published: str, there: str, tmp_path: Path) -> None:
    touch(tmp_path / there)
    found = find_videos(replace(EMPTY, layouts=LAYOUTS[published]), [clip(published)], tmp_path)
    assert not found.missing
    (placed,) = found.place([clip(published)])
    assert there == placed.video_path or there.startswith(f"{placed.video_path}/")
    assert sum(map(len, found.layouts.values())) == (there != published)


def test_the_annotations_place_comes_first_and_the_order_is_fixed(tmp_path: Path) -> None:
    places = ["uid.mp4", "video_540ss/uid.mp4", "v2/full_scale/uid.mp4", "v1/full_scale/uid.mp4"]
    for place in reversed(places):
        touch(tmp_path / place)
    annotations = replace(EMPTY, layouts=ego4d.LAYOUTS)
    for place in places:
        (placed,) = find_videos(annotations, [clip("uid.mp4")], tmp_path).place([clip("uid.mp4")])
        assert placed.video_path == place
        (tmp_path / place).unlink()


def reason(root: Path, published: str, layouts: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> str:
    found = find_videos(replace(EMPTY, layouts=layouts, whole=whole), [clip(published)], root)
    return found.missing[published]


def test_what_is_not_there(tmp_path: Path) -> None:
    assert reason(tmp_path, "P01/P01_01.MP4", epic_kitchens.LAYOUTS) == "no such video"
    touch(tmp_path / "OP01-R01-Salad.mp4")
    message = reason(tmp_path, "OP01-R01-Salad/OP01-R01-Salad-1-2-F01-F02.mp4", egtea.LAYOUTS, egtea.WHOLE)
    assert "OP01-R01-Salad.mp4" in message and "whole recording" in message


@pytest.mark.parametrize("target", ["DOWNLOAD/P01/videos/P01_01.MP4", "/no/such/disk/P01_01.MP4"])
def test_a_broken_link_is_named_with_its_target(target: str, tmp_path: Path) -> None:
    (tmp_path / "P01").mkdir()
    (tmp_path / "P01/P01_01.MP4").symlink_to(target)
    message = reason(tmp_path, "P01/P01_01.MP4")
    assert "link" in message and target in message
    (tmp_path / "P02").symlink_to(target)  # the folder above it
    message = reason(tmp_path, "P02/P02_01.MP4")
    assert "P02 is a link" in message and target in message
    with pytest.raises(EncodeError, match="link to"):
        find_parts(tmp_path / "P01/P01_01.MP4")


@pytest.mark.parametrize("published", [" P01/P01_01.MP4", "P01/ P01_01.MP4", "P01/P01_01 .MP4", "P01/P01_01\u00a0.MP4"])
def test_a_space_at_the_edge_of_a_name_is_named(published: str, tmp_path: Path) -> None:
    touch(tmp_path / "P01/P01_01.MP4")
    assert "space" in reason(tmp_path, published)


@pytest.mark.parametrize(
    ("there", "word"),
    [
        ("P01_01.MP4.part", "not finished"),
        ("P01_01.MP4.crdownload", "not finished"),
        ("P01_01.MP4.aria2", "not finished"),
        ("p01_01.MP4", "p01_01.MP4"),
        ("P01_01.mkv", "P01_01.mkv"),
        ("P01_01.Mp4", "P01_01.Mp4"),
    ],
)
def test_what_lies_there_instead_is_named(there: str, word: str, tmp_path: Path) -> None:
    touch(tmp_path / "P01" / there)
    assert word in reason(tmp_path, "P01/P01_01.MP4")


def test_accents_written_in_two_ways(tmp_path: Path) -> None:
    touch(tmp_path / unicodedata.normalize("NFD", "küche.mp4"))
    message = why_missing(tmp_path / unicodedata.normalize("NFC", "küche.mp4"))
    assert "same to the letter" in message
