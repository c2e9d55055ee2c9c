"""What the parts use of a GPU, and stand-ins for machines without one. Nothing else of the benchmark is a stub.

Each stub adds its name to `names`, and the results list them:

    decoder    NVDEC: DALI's CPU decoder for VP9, FFmpeg for H.264 and HEVC
    chip       the driver's answer: an H100's, as documented
    device     the GPU of models, drawing and copies: the CPU
    memory     used GPU memory: 0
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from lavila.data.dali_pipelines.probe import DecodeProbe, FrameArray
from lavila.data.host.decode import decode_frames
from lavila.data.nvdec.chip import Chip, chip_of
from lavila.data.nvdec.driver import CodecCaps
from lavila.data.pictures import DALI_CPU_CODECS, DecoderName, Execution, Payload


class Probe(Protocol):
    """Decodes batches again and again."""

    def run(self) -> Any: ...
    def pictures(self) -> list[FrameArray]: ...


class Gpu:
    """The GPU."""

    device = "cuda:0"
    device_id: int | None = 0

    def __init__(self) -> None:
        self.names: list[str] = []  # of the stubs that were used

    def chip(self) -> Chip:
        """What the driver says."""
        return chip_of(0)

    def decoder(self, name: DecoderName, codec: str) -> DecoderName:
        """The decoder of a loader."""
        return name

    def probe(self, batches: Sequence[Sequence[Payload]], codec: str, *, threads: int, prefetch: int = 2) -> Probe:
        """NVDEC alone."""
        size = max(map(len, batches))
        execution = Execution(decoder="nvdec", device_id=0, batch_size=size, threads=threads, prefetch=prefetch)
        return DecodeProbe(batches, execution=execution)

    def wait(self) -> None:
        """Until the GPU has done everything."""
        torch.cuda.synchronize()

    def memory(self) -> int:
        """Bytes of GPU memory that are in use, by everybody."""
        free, total = torch.cuda.mem_get_info()
        return total - free

    def name(self) -> str | None:
        """The card's name."""
        return torch.cuda.get_device_name()


class FfmpegProbe:
    """Stands for NVDEC where DALI has no CPU decoder."""

    def __init__(self, batches: Sequence[Sequence[Payload]]) -> None:
        self._batches = itertools.cycle(batches)

    def run(self) -> Any:
        return self.pictures()

    def pictures(self) -> list[FrameArray]:
        return [decode_frames(one.data, one.frames) for one in next(self._batches)]


class StubGpu(Gpu):
    """No GPU: each stand-in says its name."""

    device = "cpu"
    device_id = None

    def _used(self, name: str) -> None:
        if name not in self.names:
            self.names.append(name)

    def chip(self) -> Chip:
        self._used("chip")
        caps = CodecCaps(supported=True, engines=7, min_width=48, min_height=16, max_width=8192, max_height=8192)
        return Chip(name="stub", codecs=dict.fromkeys(("h264", "hevc", "vp9"), caps))

    def decoder(self, name: DecoderName, codec: str) -> DecoderName:
        self._used("device")
        if name != "nvdec":
            return name
        self._used("decoder")
        return "dali_cpu" if codec in DALI_CPU_CODECS else "host"

    def probe(self, batches: Sequence[Sequence[Payload]], codec: str, *, threads: int, prefetch: int = 2) -> Probe:
        self._used("decoder")
        if codec not in DALI_CPU_CODECS:
            return FfmpegProbe(batches)
        size = max(map(len, batches))
        execution = Execution(decoder="dali_cpu", device_id=None, batch_size=size, threads=1, prefetch=prefetch)
        return DecodeProbe(batches, execution=execution)

    def wait(self) -> None:
        self._used("device")

    def memory(self) -> int:
        self._used("memory")
        return 0

    def name(self) -> str | None:
        return None


def as_payload(data: bytes, frames: Sequence[int] | np.ndarray) -> Payload:
    """A clip for a probe."""
    return Payload(data=np.frombuffer(data, np.uint8), frames=np.asarray(frames, np.int32))
