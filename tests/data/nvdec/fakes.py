"""The libraries of an NVIDIA driver that answer as a chip's would. No test machine needs a GPU for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from lavila.data.nvdec import chip

Codecs = Mapping[int, tuple[int, int, int, int, int]]
"""Codec number -> engines, least and largest width and height: least width, least height, largest width, height."""

A100_CODECS: Codecs = {4: (5, 48, 16, 4096, 4096), 8: (5, 144, 144, 8192, 8192), 10: (5, 128, 128, 8192, 8192)}
H100_CODECS: Codecs = {number: (7, *sizes) for number, (_, *sizes) in A100_CODECS.items()}  # type: ignore[misc]
ANY_SIZE: Codecs = dict.fromkeys(A100_CODECS, (7, 16, 16, 8192, 8192))


class FakeCuda:
    """libcuda.so.1."""

    def __init__(self, version: int = 13000, *, init: int = 0, name: str = "NVIDIA H100") -> None:
        self.version, self.init, self.current, self.retained, self.name = version, init, 0, 0, name

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = self.version
        return 0

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self.init

    def cuDeviceGet(self, out: Any, number: int) -> int:
        out._obj.value = number
        return 0

    def cuDeviceGetName(self, out: Any, size: int, device: Any) -> int:
        out.value = self.name.encode()[: size - 1]
        return 0

    def cuDeviceGetUuid(self, out: Any, device: Any) -> int:
        out.raw = bytes([device.value, *range(1, 16)])
        return 0

    def cuDevicePrimaryCtxRetain(self, out: Any, device: Any) -> int:
        out._obj.value, self.retained = 0x1234, self.retained + 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:
        self.retained -= 1
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        assert context.value == 0x1234
        self.current += 1
        return 0

    def cuCtxPopCurrent_v2(self, out: Any) -> int:
        self.current -= 1
        return 0


class FakeCuvid:
    """libnvcuvid.so.1: answers for the codecs it is given, and only while a context is current."""

    def __init__(self, cuda: FakeCuda, codecs: Codecs) -> None:
        self.cuda, self.codecs = cuda, codecs

    def cuvidGetDecoderCaps(self, caps: Any) -> int:
        if not self.cuda.current:
            return 201  # CUDA_ERROR_INVALID_CONTEXT
        asked = caps._obj
        assert (asked.chroma, asked.bit_depth_minus_8) == (1, 0)
        if asked.codec in self.codecs:
            asked.supported = 1
            asked.engines, *sizes = self.codecs[asked.codec]
            asked.min_width, asked.min_height, asked.max_width, asked.max_height = sizes
        return 0


def fake_chip(
    monkeypatch: pytest.MonkeyPatch, codecs: Codecs | None = H100_CODECS, *, name: str = "NVIDIA H100", init: int = 0
) -> FakeCuda:
    """From now on the machine seems to have this GPU. `codecs` None: without libnvcuvid.so.1."""
    cuda = FakeCuda(name=name, init=init)
    libraries: dict[str, Any] = {"libcuda.so.1": cuda}
    if codecs is not None:
        libraries["libnvcuvid.so.1"] = FakeCuvid(cuda, codecs)

    def load(library: str) -> Any:
        if library not in libraries:
            raise OSError(f"{library}: cannot open shared object file: No such file or directory")
        return libraries[library]

    monkeypatch.setattr(chip, "load_library", load)
    chip.chip_of.cache_clear()
    return cuda
