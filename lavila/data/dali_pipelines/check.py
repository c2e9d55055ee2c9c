"""Checks that DALI decodes every frame of a video, in bounded memory.

DALI's own result does not show it: it gives as many pictures as the header promises, even where there is nothing to
decode. So FFmpeg decodes the video first, on the CPU, and DALI after it.

Only the pictures grow with a video's length, and they take most of the time. DALI's CPU decoder decodes all frames up
to the requested one, so the last frame is enough. NVDEC may skip groups of pictures. So it gets requests for pictures
no further apart than SEEK_FRAMES, and for at most HELD_BYTES of them at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from lavila.data.dali_pipelines.errors import decode_problem
from lavila.data.host.decode import video_problem
from lavila.data.pictures import DecoderName

HELD_BYTES = 256 << 20  # bytes of pictures from NVDEC on the GPU at a time
BEYOND = "is out of bounds"  # part of DALI's message about a frame after the last
SEEK_FRAMES = 8  # NVDEC may skip a group of pictures if the next requested frame is more than about ten ahead


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Frames start, start + stride, ...: `length` of them, or fewer at the end of the video."""

    start: int
    stride: int
    length: int
    expected: int  # the number of pictures that a video with the right number of frames gives


def requests(frames: int, *, frame_bytes: int, reads_through: bool) -> list[Request]:
    """The requests that decode each of `frames` frames, and would find one more.

    `reads_through`: whether the decoder decodes all frames up to the requested one.
    """
    fit = max(HELD_BYTES // frame_bytes, 2)
    end = Request(start=frames - 1, stride=1, length=2, expected=1)
    if reads_through:
        return [end]
    if frames < fit:
        return [Request(start=0, stride=1, length=frames + 1, expected=frames)]
    pieces = []
    for start in range(0, frames, fit * SEEK_FRAMES):
        length = math.ceil(min(frames - start, fit * SEEK_FRAMES) / SEEK_FRAMES)
        pieces.append(Request(start=start, stride=SEEK_FRAMES, length=length, expected=length))
    return [*pieces, end]


class VideoCheck:
    """Decodes one video at a time with the operator that training uses."""

    def __init__(self, decoder: DecoderName, *, device_id: int | None = None) -> None:
        assert decoder != "host", "the host decoder is not DALI's"
        self._device = "mixed" if decoder == "nvdec" else "cpu"
        self._device_id = device_id
        self._pipeline: Pipeline | None = None
        self._sample: tuple[npt.NDArray[np.uint8], Request] | None = None

    def problem(self, data: bytes, *, frames: int, height: int, width: int) -> str | None:
        """Why `data` is not an mp4 with that number of frames of that size in pixels, in one line; None if it is one.

        Raises DALI's RuntimeError for faults of the machine, such as too little memory.
        """
        problem = video_problem(data, frames=frames, height=height, width=width)
        if problem is not None:
            return problem
        for request in requests(frames, frame_bytes=height * width * 3, reads_through=self._device == "cpu"):
            try:
                found = self._decode(data, request)
            except RuntimeError as error:
                self._pipeline = None  # a pipeline that has failed is dead
                reason = decode_problem(error)
                if reason is None:
                    raise
                return f"not the {frames} frames that the table says ({reason})" if BEYOND in reason else reason
            if found[1:] != (height, width, 3):
                return f"pictures of {found[2]}x{found[1]}, the table says {width}x{height}"
            if found[0] != request.expected:
                counted = request.start + found[0] * request.stride
                more = "more than " if found[0] > request.expected else f"{counted} frames, not "
                return f"{more}the {frames} frames that the table says"
        return None

    def _decode(self, data: bytes, request: Request) -> tuple[int, ...]:
        """The shape of the pictures, [F, H, W, 3]."""
        self._sample = (np.frombuffer(data, np.uint8), request)
        if self._pipeline is None:
            self._pipeline = self._build()
        (pictures,) = self._pipeline.run()
        return tuple(pictures.shape()[0])

    def _build(self) -> Pipeline:
        # Without prefetching, the source gives the current sample and not the one after it.
        pipeline = Pipeline(
            batch_size=1, num_threads=1, device_id=self._device_id, prefetch_queue_depth=1, exec_pipelined=False
        )
        with pipeline:
            payload, start, stride, length = fn.external_source(
                source=self._feed,
                num_outputs=4,
                dtype=[types.UINT8, types.INT32, types.INT32, types.INT32],
                ndim=[1, 0, 0, 0],
                batch=True,
            )
            pictures = fn.decoders.video(
                payload, device=self._device, start_frame=start, stride=stride, sequence_length=length, pad_mode="none"
            )
            pipeline.set_outputs(pictures)
        pipeline.build()
        return pipeline

    def _feed(self) -> tuple[list[Any], ...]:
        assert self._sample is not None
        data, request = self._sample
        return [data], *([np.array(value, np.int32)] for value in (request.start, request.stride, request.length))
