"""The CPU's own pictures: colours bit for bit FFmpeg's (and so DALI's), resize and crops those of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from torch.nn.functional import interpolate

from lavila.data.host.colour import Planes, rgb_picture
from lavila.data.host.decode import DecodeError
from lavila.data.host.render import ClipRenderer, linear_taps
from lavila.data.host.runner import _Buffers
from lavila.data.pictures import PictureSpec
from lavila.plan.crops import crop_offsets, resized_size
from lavila.records import BLACK_FRAME, ClipPlan

MEAN, STD = (108.3, 116.7, 104.1), (68.5, 66.6, 70.3)


def random_planes(height: int, width: int, *, seed: int = 0, padding: int = 0) -> Planes:
    """Any legal values, so that colours beyond 0 and 255 occur; lines longer than the picture hold something else.

    Beyond the limited range swscale's numbers overflow here and there: white comes out black.
    """
    random = np.random.default_rng(seed)

    def plane(high: int, wide: int) -> Any:
        return random.integers(16, 236, (high, wide + padding), np.uint8)

    half = ((height + 1) // 2, (width + 1) // 2)
    return Planes(plane(height, width), plane(*half), plane(*half), width)


def ffmpegs_rgb(planes: Planes) -> np.ndarray:
    """By swscale, with the flags under which it equals DALI's CPU decoder."""
    height, wide = len(planes.luma), (planes.width + 1) // 2
    frame = av.VideoFrame(planes.width, height, "yuv420p")
    for theirs, ours, width in zip(
        frame.planes, (planes.luma, planes.blue, planes.red), (planes.width, wide, wide), strict=True
    ):
        lines = np.zeros((theirs.height, theirs.line_size), np.uint8)
        lines[:, :width] = ours[:, :width]
        theirs.update(lines)
    flags = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    picture = frame.reformat(
        format="rgb24", interpolation=flags, src_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.JPEG
    )
    rgb: np.ndarray = picture.to_ndarray()
    return rgb


def our_rgb(planes: Planes) -> np.ndarray:
    out = np.zeros((len(planes.luma), planes.width, 3), np.uint8)
    rgb_picture(planes, out)
    return out


@pytest.mark.parametrize(("height", "width", "padding"), [(32, 48, 0), (288, 512, 0), (48, 56, 8), (16, 16, 48)])
def test_colours_are_ffmpegs_bit_for_bit(height: int, width: int, padding: int) -> None:
    planes = random_planes(height, width, padding=padding)
    assert (our_rgb(planes) == ffmpegs_rgb(planes)).all()


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("length", "size"), [(288, 224), (200, 224), (224, 224), (7, 32), (1, 5), (512, 64), (301, 9)])
def test_a_resize_is_torchs(length: int, size: int, antialias: bool) -> None:
    values = torch.rand(1, 1, length, 2, dtype=torch.float64)
    wanted = interpolate(values, size=(size, 2), mode="bilinear", align_corners=False, antialias=antialias)
    taps = linear_taps(3, length, size, antialias=antialias)
    inputs = np.concatenate([np.full(3, np.nan), values[0, 0, :, 0].numpy(), np.full(3, np.nan)])
    found = sum(weights * inputs[taps.first + k] for k, weights in enumerate(taps.weights))
    np.testing.assert_allclose(found, wanted[0, 0, :, 0].numpy(), atol=1e-6)


def spec(grid: tuple[int, int], frames: int, size: int = 32, **changes: Any) -> PictureSpec:
    values: dict[str, Any] = {"cuts_window": False, "pads_black": True, "mean": MEAN, "std": STD} | changes
    return PictureSpec(frames=frames, size=size, view_grid=grid, **values)


def by_torch(planes: Sequence[Planes], plan: ClipPlan, size: int, *, antialias: bool) -> np.ndarray:
    """[K, S, T, 3, size, size]"""
    top, left, height, width = plan.window
    rgb = np.stack([ffmpegs_rgb(one) for one in planes] + [np.zeros((len(planes[0].luma), planes[0].width, 3))])
    window = torch.from_numpy(rgb[:, top : top + height, left : left + width]).permute(0, 3, 1, 2).float()
    resized = interpolate(window, size=plan.resized, mode="bilinear", align_corners=False, antialias=antialias)
    views = []
    for y, x in plan.crops:
        crop = resized[..., y : y + size, x : x + size]
        views.append((crop.flip(-1) if plan.flip else crop)[plan.gather()])
    normalised = (torch.stack(views, 1) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return normalised.numpy()


def a_plan(frames: Any, *, window: tuple[int, int, int, int], resized: tuple[int, int], **rest: Any) -> ClipPlan:
    rest = {"crops": np.zeros((1, 2), np.int32), "flip": False} | rest
    chosen = np.array(frames, np.int32)
    return ClipPlan(position=0, row=0, frames=chosen, window=window, resized=resized, caption=0.0, **rest)


WHOLE = (0, 0, 64, 112)
PLANS = {
    "training": a_plan([[1, 4, 6]], window=(5, 11, 47, 61), resized=(32, 32)),
    "mirrored": a_plan([[1, 4, 6]], window=(5, 11, 47, 61), resized=(32, 32), flip=True),
    "enlarged": a_plan([[2]], window=(50, 90, 14, 22), resized=(32, 32)),
    "three crops": a_plan(
        [[1, 4, 4], [4, 6, BLACK_FRAME]],
        window=WHOLE,
        resized=resized_size(64, 112, 32),
        crops=crop_offsets(32, 56, 32, "three"),
    ),
    "one crop": a_plan([[1, 1]], window=WHOLE, resized=(32, 56), crops=crop_offsets(32, 56, 32, "center")),
    "black": a_plan([[BLACK_FRAME, BLACK_FRAME]], window=WHOLE, resized=(32, 32)),
}


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_pictures_are_those_of_torch(name: str, antialias: bool) -> None:
    plan = PLANS[name]
    planes = [random_planes(64, 112, seed=i, padding=16) for i in range(len(plan.distinct_frames()))]
    clips, crops = len(plan.frames), len(plan.crops)
    out = np.full((clips, crops, plan.frames.shape[1], 3, 32, 32), np.nan, np.float32)
    ClipRenderer(spec((clips, crops), plan.frames.shape[1], antialias=antialias)).render(plan, planes, out)
    wanted = by_torch(planes, plan, 32, antialias=antialias)
    assert np.abs(out - wanted).max() < 2e-5  # of float32 values up to 2.6; pictures of noise
    half = out.astype(np.float16)
    again = np.empty_like(half)
    ClipRenderer(spec((clips, crops), plan.frames.shape[1], antialias=antialias, half=True)).render(plan, planes, again)
    assert (again == half).all()


def test_pictures_smaller_than_the_table_says_are_an_error() -> None:
    plan = PLANS["one crop"]
    out = np.empty((1, 1, 2, 3, 32, 32), np.float32)
    with pytest.raises(DecodeError, match=r"96x64.*112x64"):
        ClipRenderer(spec((1, 1), 2)).render(plan, [random_planes(64, 96)], out)


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    buffers = _Buffers((2, 3), half=False, most=4)
    first = buffers.take(4)
    kept = torch.utils.dlpack.from_dlpack(first)[1:]  # what a caller may hold on to
    place = first.__array_interface__["data"][0]
    del first
    assert buffers.take(4).__array_interface__["data"][0] != place
    del kept
    again = buffers.take(3)  # the last batch of an epoch is smaller
    assert again.__array_interface__["data"][0] == place and again.shape == (3, 2, 3)
    assert buffers.take(5).shape == (5, 2, 3)
