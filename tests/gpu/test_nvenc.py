"""NVENC: clips and chunks coded on a GPU. Not run yet on one, for want of such a GPU; that the encoders know
their options is tested without (tests/ingest/test_encode_pictures.py).

H100 and A100 have no NVENC; a test is skipped where the GPU at hand cannot code.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lavila.ingest.codecs import NVENC
from lavila.ingest.encode import EncodeSettings, Interval, check_encoder, encode_chunk, encode_clip
from tests.footage import Coding, decode, read_numbers, write_numbered_video

pytestmark = pytest.mark.gpu


def nvenc(codec: str, **others: Any) -> EncodeSettings:
    settings = EncodeSettings(**{"codec": codec, "encoder": "nvenc", "short_side": 192, **others})
    try:
        check_encoder(settings)
    except ValueError as error:
        pytest.skip(str(error))
    return settings


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    return write_numbered_video(path, 60, Coding(), height=192, width=256)


@pytest.mark.parametrize("codec", list(NVENC))
def test_clips_are_those_of_the_cpu(video: Path, codec: str) -> None:
    interval = Interval(start_second=0.4, stop_second=2.0)
    clip = encode_clip(video, interval=interval, settings=nvenc(codec, gop=8))
    assert read_numbers(clip.data) == list(range(10, 50))
    cpu = encode_clip(video, interval=interval, settings=EncodeSettings(codec=codec, short_side=192, gop=8))
    assert np.abs(decode(clip.data).astype(int) - decode(cpu.data).astype(int)).mean() < 3
    with av.open(io.BytesIO(clip.data)) as container:
        frames = list(container.decode(video=0))
    assert (frames[0].format.name, frames[0].colorspace, frames[0].color_range) == ("yuv420p", 6, 1)
    assert [number for number, frame in enumerate(frames) if frame.key_frame] == list(range(0, 40, 8))


@pytest.mark.parametrize("codec", list(NVENC))
def test_groups_of_chunks_can_be_combined(video: Path, codec: str) -> None:
    first, second = (encode_chunk(video, number=n, seconds=1.0, settings=nvenc(codec, gop=5)) for n in (0, 1))
    assert first.data[: first.header_size] == second.data[: second.header_size]
    pieces = [first.data[: first.header_size]]
    pieces += [first.data[slice(*first.gop_offsets[n : n + 2])] for n in (1, 3)]
    pieces += [second.data[slice(*second.gop_offsets[n : n + 2])] for n in (0, 4)]
    assert read_numbers(b"".join(pieces)) == [*range(5, 10), *range(15, 20), *range(25, 30), *range(45, 50)]
