"""What a chip says that it decodes, against the pictures of a shard set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lavila.data.nvdec import chip
from lavila.data.nvdec.chip import Chip, chip_of, nvdec_problem
from lavila.shards.pictures import StoredPictures, not_on_common_chips
from lavila.shards.reader import ShardSet
from tests.data.nvdec.fakes import A100_CODECS, fake_chip


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    yield
    chip.chip_of.cache_clear()


def pictures(codec: str, *sizes: tuple[int, int]) -> StoredPictures:
    return StoredPictures.of_sizes(codec, sizes)


def test_a_chip_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake_chip(monkeypatch, name="NVIDIA H200")
    found = chip_of(0)
    assert (found.name, found.problem, len(found.uuid)) == ("NVIDIA H200", "", 32)
    assert found.engines("h264") == 7 and found.engines("av1") == 1
    cuda.name = "another"
    assert chip_of(0) is found and chip_of(1).uuid != found.uuid


@pytest.mark.parametrize(
    ("codec", "size", "words"),
    [
        ("h264", (112, 64), None),
        ("hevc", (512, 288), None),
        ("hevc", (256, 128), "144x144"),
        ("vp9", (128, 128), None),
        ("vp9", (128, 112), "128x112"),
        ("vp9", (112, 128), "112x128"),
        ("h264", (4112, 2000), "4096x4096"),
        ("h264", (2000, 4112), "2000x4112"),
        ("mjpeg", (512, 288), "no decoder for mjpeg"),
    ],
)
def test_sizes_and_codecs(
    monkeypatch: pytest.MonkeyPatch, codec: str, size: tuple[int, int], words: str | None
) -> None:
    fake_chip(monkeypatch)
    problem = nvdec_problem(chip_of(0), pictures(codec, (512, 288), size))
    assert (problem is None) == (words is None)
    assert words is None or words in str(problem)


def test_av1_is_refused_even_by_a_chip_that_decodes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_chip(monkeypatch, {**A100_CODECS, 11: (2, 128, 128, 8192, 8192)})
    assert chip_of(0).codecs["av1"].supported
    assert "hidden" in str(nvdec_problem(chip_of(0), pictures("av1", (512, 288))))


@pytest.mark.parametrize(("codecs", "init", "words"), [(None, 0, "libnvcuvid"), (A100_CODECS, 100, "no GPU")])
def test_a_driver_that_cannot_be_asked_is_a_problem_and_no_error(
    monkeypatch: pytest.MonkeyPatch, codecs: object, init: int, words: str
) -> None:
    fake_chip(monkeypatch, codecs, init=init)  # type: ignore[arg-type]
    assert words in str(nvdec_problem(chip_of(0), pictures("h264", (512, 288))))


def test_a_driver_without_a_call_is_a_problem_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chip, "load_library", lambda name: object())
    chip_of.cache_clear()
    assert chip_of(0).problem


def test_the_range_of_a_set(vp9_shards: ShardSet) -> None:
    found = StoredPictures.of(vp9_shards)
    assert found == pictures("vp9", (64, 112), (112, 64))
    assert nvdec_problem(Chip(problem="none here"), found) == "none here"


@pytest.mark.parametrize(
    ("codec", "size", "cure"),
    [
        ("vp9", (512, 288), None),
        ("vp9", (160, 96), "--short-side of at least 128"),
        ("hevc", (240, 128), "--short-side of at least 144"),
        ("h264", (112, 64), None),
        ("av1", (512, 288), "--codec"),
    ],
)
def test_what_common_chips_decode(codec: str, size: tuple[int, int], cure: str | None) -> None:
    note = not_on_common_chips(pictures(codec, (512, 288), size))
    assert (note is None) == (cure is None)
    assert cure is None or cure in str(note)
