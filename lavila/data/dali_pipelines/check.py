"""Compares the pictures that one of DALI's decoders makes with those that FFmpeg makes on the CPU.

DALI gives as many pictures as it is asked for, also where there is nothing to decode: on a GPU it then gives what lay
in that memory, without an error. So only a comparison shows that its pictures are right. Whether a video is sound is
FFmpeg's verdict alone (`host.decode.video_problem`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from lavila.data.dali_pipelines.errors import decode_problem
from lavila.data.dali_pipelines.probe import PictureDifference, picture_difference
from lavila.data.host.decode import DecodeError, decode_frames
from lavila.data.pictures import DecoderName
from lavila.data.streams.reduction import reduced


class PictureCheck:
    """Decodes one video at a time with the operator that training uses, and with FFmpeg."""

    def __init__(self, decoder: DecoderName, *, device_id: int | None = None) -> None:
        assert decoder != "host", "the host decoder is FFmpeg's"
        self._device = "mixed" if decoder == "nvdec" else "cpu"
        self._device_id = device_id
        self._pipeline: Pipeline | None = None
        self._sample: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]] | None = None

    def difference(self, data: bytes, frames: Sequence[int] | npt.NDArray[np.int32]) -> PictureDifference:
        """How far the pictures of some frames differ. DALI gets what training gives it: a video with what they need.

        Args:
            data: a whole encoded clip.
            frames: ascending, distinct, 0-based numbers in display order, [U].

        Raises:
            DecodeError: one of the two cannot decode the video, or the pictures differ in size.
            RuntimeError: DALI fails for another reason than the video, such as too little memory.
        """
        expected = decode_frames(data, frames)
        stream = reduced(data, frames)
        found = self._decoded(stream.data, stream.frames)
        if found.shape != expected.shape:
            raise DecodeError(f"pictures of shape {found.shape}, and {expected.shape} by FFmpeg")
        return picture_difference(found, expected)

    def _decoded(self, data: bytes, frames: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
        self._sample = np.frombuffer(data, np.uint8), np.asarray(frames, np.int32)
        try:
            self._pipeline = self._pipeline or self._build()
            (pictures,) = self._pipeline.run()
        except RuntimeError as error:
            self._pipeline = None  # a pipeline that has failed is dead
            reason = decode_problem(error)
            if reason is None:
                raise
            raise DecodeError(reason) from error
        return np.array(pictures.as_cpu()[0])

    def _build(self) -> Pipeline:
        # Without prefetching, the source gives the current sample and not the one after it.
        pipeline = Pipeline(
            batch_size=1, num_threads=1, device_id=self._device_id, prefetch_queue_depth=1, exec_pipelined=False
        )
        with pipeline:
            payload, frames = fn.external_source(
                source=self._feed, num_outputs=2, dtype=[types.UINT8, types.INT32], ndim=[1, 1], batch=True
            )
            pipeline.set_outputs(fn.decoders.video(payload, frames=frames, device=self._device, pad_mode="none"))
        pipeline.build()
        return pipeline

    def _feed(self) -> tuple[list[Any], ...]:
        assert self._sample is not None
        data, frames = self._sample
        return [data], [frames]
