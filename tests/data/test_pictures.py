"""The graph's pictures against the reference's, from the same input frames, and the graph's devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lavila.data.dali_pipelines import graph
from lavila.data.dali_pipelines.graph import build_pipeline
from lavila.data.pictures import Execution, Payload, PictureSpec
from lavila.plan.crops import crop_offsets, resized_size
from lavila.records import BLACK_FRAME, ClipPlan
from tests.golden_files import GOLDEN, golden_json

TENSORS = load_file(GOLDEN / "preprocess.safetensors")
FACTS = golden_json("preprocess")
STATISTICS = {"openai": FACTS["normalisation"]["OPENAI models"], "imagenet": FACTS["normalisation"]["other models"]}
SIZE = 32
# 1e-3 of the 0..255 range, in units of the narrowest standard deviation. DALI's linear resize interpolates in fixed
# steps of the weights, torchvision in float; the largest difference seen is 0.004 of a level.
TOLERANCE = 0.255 / 57.0
# With antialiasing DALI takes the triangle filter from a table, torchvision computes it: on these noisy pictures up to
# 3.0 levels, 0.4 on average.
ANTIALIAS_MOST, ANTIALIAS_MEAN = 3.5, 0.6


def spec(views: tuple[int, int], frames: int, *, norm: str = "openai", **changes: Any) -> PictureSpec:
    values: dict[str, Any] = {
        "frames": frames,
        "size": SIZE,
        "view_grid": views,
        "cuts_window": False,
        "pads_black": False,
        "mean": tuple(STATISTICS[norm]["mean"]),
        "std": tuple(STATISTICS[norm]["std"]),
    }
    return PictureSpec(**values | changes)


def assert_same(got: np.ndarray, wanted: np.ndarray, *, levels: float, antialias: bool) -> None:
    """Equal pictures; `levels`: how many levels of 0..255 one unit is."""
    difference = np.abs(got - wanted)
    if antialias:
        assert difference.max() * levels < ANTIALIAS_MOST and difference.mean() * levels < ANTIALIAS_MEAN
    else:
        assert difference.max() * levels < 0.255


def once(plan: ClipPlan, frames: np.ndarray) -> Callable[[], Any]:
    """A source with one clip whose decoded frames are given."""
    distinct = plan.distinct_frames()
    source: Iterator[Any] = iter([([plan], [Payload(data=frames[distinct], frames=distinct)])])
    return lambda: next(source)


def render(plan: ClipPlan, frames: np.ndarray, picture_spec: PictureSpec) -> np.ndarray:
    """[K, S, C, T, size, size] as the graph makes it."""
    pipeline = build_pipeline(
        once(plan, frames), picture_spec, Execution(decoder="host", device_id=None, batch_size=1, threads=1, prefetch=1)
    )
    pipeline.build()
    (out,) = pipeline.run()
    return np.array(out[0]).swapaxes(2, 3)


def whole_picture_plan(frames: np.ndarray, chosen: np.ndarray, crops: Any) -> ClipPlan:
    height, width = frames.shape[1:3]
    resized = resized_size(height, width, SIZE)
    return ClipPlan(
        position=0,
        row=0,
        frames=chosen.astype(np.int32),
        window=(0, 0, height, width),
        resized=resized,
        crops=crop_offsets(*resized, SIZE, crops),
        flip=False,
        caption=0.0,
    )


@pytest.mark.parametrize("name", sorted(k for k in TENSORS if k.startswith("val.")))
def test_centre_crop_pictures_equal_the_reference(name: str) -> None:
    _, size, norm, *rest = name.split(".")
    frames = TENSORS[f"in.{size}"]
    plan = whole_picture_plan(frames, np.arange(4)[None], "center")
    got = render(plan, frames, spec((1, 1), 4, norm=norm, antialias=bool(rest)))
    assert_same(got[0, 0], TENSORS[name], levels=max(STATISTICS[norm]["std"]), antialias=bool(rest))


@pytest.mark.parametrize("size", ["64x96", "96x64"])
def test_three_crops_of_three_clips_equal_the_reference(size: str) -> None:
    frames, case = TENSORS[f"in.multi.{size}"], FACTS["cases"][f"multi.{size}.crops3"]
    chosen = np.arange(case["num_clips"])[:, None] * case["temporal_stride"] + np.arange(case["frames_per_clip"])
    got = render(whole_picture_plan(frames, chosen, "three"), frames, spec((3, 3), 2))
    assert np.abs(got.reshape(9, 3, 2, SIZE, SIZE) - TENSORS[f"multi.{size}.crops3"]).max() < TOLERANCE


def test_the_published_protocol_computes_its_one_distinct_crop() -> None:
    """The reference crops the centre first, so that its three crops are equal; ours is that picture, once."""
    frames, wanted = TENSORS["in.multi.64x96"], TENSORS["multi_after_centre_crop.64x96.crops3"]
    chosen = np.arange(3)[:, None] * 2 + np.arange(2)
    got = render(whole_picture_plan(frames, chosen, "center_repeated"), frames, spec((3, 1), 2))
    assert np.abs(got.repeat(3, axis=1).reshape(wanted.shape) - wanted).max() < TOLERANCE


@pytest.mark.parametrize("name", sorted(k for k in TENSORS if k.startswith("resized_crop.")))
def test_windows_equal_the_reference(name: str) -> None:
    _, number, *rest = name.split(".")
    frames, box = TENSORS["in.64x96"], FACTS["cases"][f"resized_crop.{number}"]
    plan = ClipPlan(
        position=0,
        row=0,
        frames=np.arange(4, dtype=np.int32)[None],
        window=(box["top"], box["left"], box["height"], box["width"]),
        resized=(SIZE, SIZE),
        crops=np.zeros((1, 2), np.int32),
        flip=rest == ["normalised_flipped"],
        caption=0.0,
    )
    plain = not rest or rest == ["antialias"]
    statistics: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)} if plain else {}
    picture_spec = spec((1, 1), 4, cuts_window=True, antialias=rest == ["antialias"], **statistics)
    got = render(plan, frames, picture_spec)[0, 0]
    assert_same(got, TENSORS[name], levels=1.0 if plain else 70.4, antialias=rest == ["antialias"])


def test_black_frames_are_zero_before_normalisation() -> None:
    frames = TENSORS["in.64x96"]
    chosen = np.array([[0, 2, BLACK_FRAME, BLACK_FRAME]])
    got = render(whole_picture_plan(frames, chosen, "three"), frames, spec((1, 3), 4, pads_black=True))
    black = np.array(FACTS["zero_frame_after_normalisation"]["openai"])[:, None, None, None]
    assert np.abs(got[0, :, :, 2:] - black).max() < 1e-5 and np.abs(got[0, 1, :, :2] - black).max() > 1


def test_repeated_and_unordered_frames_come_back_in_their_places() -> None:
    frames = TENSORS["in.64x96"]
    plain = render(whole_picture_plan(frames, np.arange(4)[None], "center"), frames, spec((1, 1), 4))
    mixed = render(whole_picture_plan(frames, np.array([[3, 1], [1, 1]]), "center"), frames, spec((2, 1), 2))
    assert (mixed[0, 0] == plain[0, 0][:, [3, 1]]).all() and (mixed[1, 0] == plain[0, 0][:, [1, 1]]).all()


def test_half_precision_is_the_same_picture_rounded() -> None:
    frames = TENSORS["in.64x96"]
    plan = whole_picture_plan(frames, np.arange(4)[None], "center")
    full, half = (render(plan, frames, spec((1, 1), 4, half=half)) for half in (False, True))
    assert half.dtype == np.float16 and np.abs(full - half).max() < 2e-3


def _never() -> Any:
    raise AssertionError("a pipeline that is only constructed takes no data")


@pytest.mark.parametrize("training", [True, False], ids=["training", "views"])
@pytest.mark.parametrize("decoder", ["nvdec", "dali_cpu", "host"])
def test_every_operator_of_the_gpu_graph_is_on_its_device(decoder: Any, training: bool) -> None:
    """Constructed without a driver: pictures on the GPU from the decoder on, arguments on the CPU."""
    picture_spec = spec((1, 1) if training else (2, 3), 4, cuts_window=training, pads_black=not training)
    pipeline = build_pipeline(
        _never, picture_spec, Execution(decoder=decoder, device_id=0, batch_size=2, threads=1, prefetch=2)
    )
    pipeline._build_graph()
    operators = [
        (
            type(operator._op).__name__,
            [str(operator.spec.InputDevice(i)) for i in range(operator.spec.NumInput())],
            str(operator.spec.OutputDevice(0)),
        )
        for operator in pipeline._ops
    ]
    names = [name for name, _, _ in operators]
    crops = picture_spec.view_grid[1]
    assert names.count("CropMirrorNormalize") == crops and names.count("Resize") == 1
    assert names.count("Video") == (decoder != "host") and names.count("Slice") == training
    assert names.count("Pad") == (not training)
    for name, inputs, output in operators:
        if name in {"ExternalSource", "_TensorSubscript"}:
            assert output == "cpu" and set(inputs) <= {"cpu"}, name
        elif name == "Video":
            assert inputs == ["cpu", "cpu"] and output == ("gpu" if decoder == "nvdec" else "cpu")
        else:
            pictures = crops if name == "Stack" else 1
            assert output == "gpu" and set(inputs[:pictures]) == {"gpu"}, name
            assert set(inputs[pictures:]) <= {"cpu"}, f"{name}: arguments are read on the CPU"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_a_gpu_pipeline_without_a_driver_says_so() -> None:
    pipeline = build_pipeline(
        _never, spec((1, 1), 4), Execution(decoder="nvdec", device_id=0, batch_size=1, threads=1, prefetch=1)
    )
    with pytest.raises(RuntimeError, match="CUDA"):
        pipeline.build()


@pytest.mark.parametrize(("crops", "stacks"), [(1, 0), (3, 1)])
def test_a_single_crop_is_not_stacked(monkeypatch: pytest.MonkeyPatch, crops: int, stacks: int) -> None:
    """Stacking copies every picture."""
    called = []
    real = graph.fn.stack
    monkeypatch.setattr(
        graph.fn, "stack", lambda *given, **options: called.append(len(given)) or real(*given, **options)
    )
    frames = TENSORS["in.64x96"]
    plan = whole_picture_plan(frames, np.arange(4)[None], "center" if crops == 1 else "three")
    assert render(plan, frames, spec((1, crops), 4)).shape == (1, crops, 3, 4, SIZE, SIZE)
    assert len(called) == stacks
