"""Parts of the data path one at a time, for tools that measure or compare them: decoding alone, augmenting alone."""

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

Pictures = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far two decoders' pictures of one video may lie apart, in levels of 0..255."""

    mean: float
    most: float


def picture_tolerance(one: DecoderName, other: DecoderName) -> Tolerance:
    """What two decoders may differ by, before resizing and normalisation.

    The CPU decoders are bit-identical. NVDEC: not measured yet, for want of a GPU. Chip and libavcodec decode a
    conforming stream to the same YCbCr; what may differ is how chroma is upsampled on the way to RGB, which shows at
    coloured edges.
    """
    return Tolerance(mean=3.0, most=60.0) if "nvdec" in (one, other) else Tolerance(mean=0.0, most=0.0)


@dataclass(frozen=True, kw_only=True)
class PictureDifference:
    """How far two decoders' pictures of one video do lie apart, in levels of 0..255."""

    mean: float
    most: float

    def within(self, tolerance: Tolerance) -> bool:
        """Whether they count as the same."""
        return self.mean <= tolerance.mean and self.most <= tolerance.most


def picture_difference(one: Pictures, other: Pictures) -> PictureDifference:
    """Of pictures of the same shape, [U, H, W, 3]. ValueError where the shapes differ."""
    if one.shape != other.shape:
        raise ValueError(f"pictures of shape {one.shape} and {other.shape}: not the same frames of the same video")
    difference = np.abs(one.astype(np.int16) - other.astype(np.int16))
    return PictureDifference(mean=float(difference.mean()), most=float(difference.max()))


class DecodeProbe:
    """Decodes batches of encoded clips, round and round, with the operator of the one graph and nothing after it."""

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

    def pictures(self) -> list[Pictures]:
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
    batches: Sequence[tuple[Sequence[ClipPlan], Sequence[Pictures]]], spec: PictureSpec, execution: Execution
) -> Iterator[int]:
    """Everything after decoding, round and round without end: yields the number of clips of each batch once it is done.

    `batches`: plans, and of each its distinct frames, [U, H, W, 3]. With `execution.device_id` they are copied to that
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
