"""Parts of the data path alone: the same pictures as in the whole, round and round."""

from __future__ import annotations

import io
import itertools

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace, Interpolation

from lavila.data.dali_pipelines.probe import DecodeProbe, augmented, picture_difference, picture_tolerance
from lavila.data.host.decode import decode_frames
from lavila.data.pictures import Execution, Payload, PictureSpec
from lavila.shards.reader import ShardSet
from tests.data.test_loader import training


def execution(decoder: str, batch: int) -> Execution:
    return Execution(decoder=decoder, device_id=None, batch_size=batch, threads=2, prefetch=2)  # type: ignore[arg-type]


def payloads(shards: ShardSet, rows: list[int]) -> list[Payload]:
    made = []
    for row in rows:
        data, frames = shards.read_frames(row, np.array([0, 2, 5], np.int32))
        made.append(Payload(data=np.frombuffer(data, np.uint8), frames=frames))
    return made


def test_decoding_alone_gives_the_host_decoders_pictures(vp9_shards: ShardSet) -> None:
    batches = [payloads(vp9_shards, [0, 1]), payloads(vp9_shards, [2, 3])]
    probe = DecodeProbe(batches, execution=execution("dali_cpu", 2))
    for batch in [*batches, *batches]:  # round and round
        for one, got in zip(batch, probe.pictures(), strict=True):
            difference = picture_difference(got, decode_frames(one.data, one.frames))
            assert difference.within(picture_tolerance("dali_cpu", "host"))


def test_augmenting_alone_goes_round_and_round(vp9_shards: ShardSet) -> None:
    plan = training(vp9_shards).plan
    plans = [plan.batch(0, step) for step in range(2)]
    frames = [
        [decode_frames(*vp9_shards.read_frames(one.row, one.distinct_frames())) for one in batch] for batch in plans
    ]
    spec = PictureSpec(
        frames=plan.frames,
        size=plan.size,
        view_grid=plan.view_grid,
        cuts_window=plan.cuts_window,
        pads_black=plan.pads_black,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    batches = augmented(list(zip(plans, frames, strict=True)), spec, execution("host", plan.largest_batch))
    assert list(itertools.islice(batches, 5)) == [len(plans[step % 2]) for step in range(5)]


def test_tolerances() -> None:
    one = np.zeros((1, 8, 8, 3), np.uint8)
    other = one.copy()
    other[0, 0, 0, 0] = 61
    difference = picture_difference(one, other)
    assert difference.most == 61 and difference.mean == pytest.approx(61 / 192)
    assert not difference.within(picture_tolerance("host", "nvdec"))
    other[:] = 2
    assert not picture_difference(one, other).within(picture_tolerance("host", "nvdec"))  # far off on average
    other[:] = 0
    other[0, 0, 0, 0] = 8
    assert picture_difference(one, other).within(picture_tolerance("nvdec", "dali_cpu"))
    assert not picture_difference(one, other).within(picture_tolerance("host", "dali_cpu"))
    with pytest.raises(ValueError, match="frames"):
        picture_difference(one, one[:, :1])


def test_a_wrong_colour_matrix_is_not_within_the_tolerance_of_nvdec(vp9_shards: ShardSet) -> None:
    """BT.709 in place of BT.601: the mistake that NVDEC's path could make."""
    with av.open(io.BytesIO(vp9_shards.read_video(0))) as container:
        frame = next(container.decode(video=0))
    pictures = []
    for matrix in (Colorspace.ITU601, Colorspace.ITU709):
        rgb = frame.reformat(format="rgb24", src_colorspace=matrix, interpolation=Interpolation.BILINEAR)
        pictures.append(rgb.to_ndarray()[None])
    assert not picture_difference(*pictures).within(picture_tolerance("host", "nvdec"))
