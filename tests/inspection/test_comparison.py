"""The second pass of a verification compares pictures with the CPU's. DALI's CPU decoder stands for NVDEC."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lavila.data.dali_pipelines import check
from lavila.data.dali_pipelines.check import PictureCheck
from lavila.data.host.decode import DecodeError, decode_frames
from lavila.inspection.comparison import NoNvdecError, check_nvdec, compare
from lavila.shards.reader import ShardSet
from tests.data.nvdec.fakes import ANY_SIZE, H100_CODECS, fake_chip
from tests.data.test_loader import damaged
from tests.inspection import test_verify
from tests.inspection.test_verify import write_chunks

encoded = test_verify.encoded  # the fixture


def test_equal_pictures(vp9_shards: ShardSet) -> None:
    done: list[int] = []
    found = compare(vp9_shards, "dali_cpu", clips=5, on_clip=done.append)
    assert (found.clips, found.differing, found.most, sum(done)) == (5, (), 0.0, 5)
    assert compare(vp9_shards, "dali_cpu", clips=100).clips == 12
    assert "12 of 12" in compare(vp9_shards, "dali_cpu", clips=100).text


def test_equal_pictures_of_chunks(tmp_path: Any) -> None:
    assert compare(write_chunks(tmp_path / "chunked"), "dali_cpu", clips=4).differing == ()


def test_other_pictures_are_named_with_their_clip(vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's frames are one further than the asked ones, as after a hidden frame."""
    real = check.reduced
    wrong = vp9_shards.read_video(3)

    def shifted(data: bytes, frames: Any) -> Any:
        stream = real(data, frames)
        return type(stream)(data, frames + 1) if data == wrong else stream

    monkeypatch.setattr(check, "reduced", shifted)
    monkeypatch.setattr("lavila.inspection.comparison.MOST_FRAMES", 8)
    monkeypatch.setattr("lavila.inspection.comparison.readable_frames", lambda row, manifest: np.arange(8))
    found = compare(vp9_shards, "dali_cpu", clips=12)
    assert [one.clip_id for one in found.differing] == [vp9_shards.clips["clip_id"][3].as_py()]
    assert "levels" in found.differing[0].reason
    assert found.most == 0 and "data.decoder=host" in found.text and "differs" in found.text


def test_a_clip_that_does_not_decode_is_named(vp9_shards: ShardSet, tmp_path: Any) -> None:
    shards = damaged(vp9_shards, tmp_path, 1, 4)
    found = compare(shards, "dali_cpu", clips=12)
    assert len(found.differing) == 2


def test_a_difference_is_a_number(vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    check_one = PictureCheck("dali_cpu")
    data = vp9_shards.read_video(0)
    assert check_one.difference(data, [0, 3, 9]).most == 0
    monkeypatch.setattr(check, "decode_frames", lambda data, frames: decode_frames(data, frames)[:, :-2])
    with pytest.raises(DecodeError, match="shape"):
        check_one.difference(data, [0, 3, 9])


def test_nvdec_must_be_able_to_decode_the_set(vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_chip(monkeypatch, H100_CODECS)
    with pytest.raises(NoNvdecError, match="128x128"):
        check_nvdec(vp9_shards)
    fake_chip(monkeypatch, ANY_SIZE)
    check_nvdec(vp9_shards)
