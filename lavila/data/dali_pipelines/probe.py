"""Single parts of the data path, for tools that measure or compare them: decoding alone, augmenting alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from lavila.data.batches import LoadedBatch
from lavila.data.dali_pipelines.restarts import RestartingPipeline
from lavila.data.pictures import DecoderName, Execution, Payload, PictureSpec
from lavila.records import ClipPlan

FrameArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The allowed difference of two decoders' pictures of one video, in levels of 0..255."""

    mean: float
    most: float


def picture_tolerance(one: DecoderName, other: DecoderName) -> Tolerance:
    """The allowed difference of two decoders, before resizing and normalisation.

    The CPU decoders are bit-identical. The bound for NVDEC is reasoned, not measured. Chip and libavcodec decode a
    conforming stream to the same YCbCr, and both conversions to RGB are BT.601 with centred bilinear chroma. So they
    differ by rounding: a level or two, less than half a level on average. A wrong colour matrix differs by 3 levels on
    average and 25 at most (BT.709 in place of BT.601), and must not pass.
    """
    return Tolerance(mean=1.0, most=8.0) if "nvdec" in (one, other) else Tolerance(mean=0.0, most=0.0)


@dataclass(frozen=True, kw_only=True)
class PictureDifference:
    """The measured difference of two decoders' pictures of one video, in levels of 0..255."""

    mean: float
    most: float

    def within(self, tolerance: Tolerance) -> bool:
        """Whether the pictures count as the same."""
        return self.mean <= tolerance.mean and self.most <= tolerance.most


def picture_difference(one: FrameArray, other: FrameArray) -> PictureDifference:
    """The difference of pictures of the same shape, [U, H, W, 3]. ValueError if the shapes differ."""
    if one.shape != other.shape:
        raise ValueError(f"pictures of shape {one.shape} and {other.shape}: not the same frames of the same video")
    difference = np.abs(one.astype(np.int16) - other.astype(np.int16))
    return PictureDifference(mean=float(difference.mean()), most=float(difference.max()))


class DecodeProbe:
    """Decodes batches of encoded clips again and again, with the operator of the graph and nothing after it."""

    def __init__(self, batches: Sequence[Sequence[Payload]], *, execution: Execution) -> None:
        """`execution.decoder`: nvdec or dali_cpu. Payloads hold encoded bytes."""
        assert execution.decoder != "host", "the host decoder is not DALI's"
        feeds = [([payload.data for payload in batch], [payload.frames for payload in batch]) for batch in batches]
        self._feeds = itertools.cycle(feeds)
        self._pipeline = self._build(execution)

    def run(self) -> Any:
        """Decode the next batch; returns DALI's pictures once they are all there. Prefetches as the loader does."""
        (pictures,) = self._pipeline.run()
        return pictures

    def pictures(self) -> list[FrameArray]:
        """Decode the next batch and copy it to the host: [U, H, W, 3] uint8 RGB of each clip."""
        found = self.run().as_cpu()
        return [np.array(found[place]) for place in range(len(found))]

    def _build(self, execution: Execution) -> Pipeline:
        pipeline = Pipeline(
            batch_size=execution.batch_size,
            num_threads=execution.threads,
            device_id=execution.device_id,
            prefetch_queue_depth=execution.prefetch,
        )
        with pipeline:
            payload, frames = fn.external_source(
                source=lambda: next(self._feeds),
                num_outputs=2,
                dtype=[types.UINT8, types.INT32],
                ndim=[1, 1],
                batch=True,
            )
            device = "mixed" if execution.decoder == "nvdec" else "cpu"
            pipeline.set_outputs(fn.decoders.video(payload, frames=frames, device=device, pad_mode="none"))
        pipeline.build()
        return pipeline


def augmented(
    batches: Sequence[tuple[Sequence[ClipPlan], Sequence[FrameArray]]], spec: PictureSpec, execution: Execution
) -> Iterator[int]:
    """Run everything after decoding on the batches again and again, without end. Yields each batch's number of clips.

    `batches`: plans, and the distinct frames of each, [U, H, W, 3]. With `execution.device_id` these are copied to that
    GPU first.
    """
    assert execution.decoder == "host", execution.decoder
    loaded = [
        LoadedBatch(
            plans=tuple(plans),
            payloads=tuple(
                Payload(data=one, frames=plan.distinct_frames()) for plan, one in zip(plans, frames, strict=True)
            ),
        )
        for plans, frames in batches
    ]
    for done in RestartingPipeline(spec, execution).run(itertools.cycle(loaded)):
        yield len(done.plans)
