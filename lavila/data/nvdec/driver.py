"""Asks the CUDA driver for its version, for a GPU's name and for its video decoders, without any CUDA package.

libcuda.so.1 and libnvcuvid.so.1 belong to the driver. The layout of CUVIDDECODECAPS and the numbers of the codecs are
those that NVIDIA documents in cuviddec.h of its Video Codec SDK.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_int, c_ubyte, c_uint, c_ushort, c_void_p, create_string_buffer
from dataclasses import dataclass
from typing import Any, ClassVar

Load = Callable[[str], Any]

CODECS = {"h264": 4, "hevc": 8, "vp9": 10, "av1": 11}  # cudaVideoCodec
CHROMA_420 = 1  # cudaVideoChromaFormat
ERROR_NO_DEVICE = 100  # CUresult
NAME_BYTES, UUID_BYTES = 128, 16


class DriverError(RuntimeError):
    """A call into the driver failed."""


class DecodeCaps(ctypes.Structure):
    """CUVIDDECODECAPS: the first three fields are the question, the others the answer."""

    _fields_: ClassVar = [
        ("codec", c_int),
        ("chroma", c_int),
        ("bit_depth_minus_8", c_uint),
        ("reserved1", c_uint * 3),
        ("supported", c_ubyte),
        ("engines", c_ubyte),
        ("output_formats", c_ushort),
        ("max_width", c_uint),
        ("max_height", c_uint),
        ("max_macroblocks", c_uint),
        ("min_width", c_ushort),
        ("min_height", c_ushort),
        ("histogram", c_ubyte),
        ("counter_bit_depth", c_ubyte),
        ("max_histogram_bins", c_ushort),
        ("reserved3", c_uint * 10),
    ]


@dataclass(frozen=True, kw_only=True)
class CodecCaps:
    """How a GPU decodes 8-bit 4:2:0 video of one codec."""

    supported: bool
    engines: int = 0  # number of NVDEC units for the codec
    min_width: int = 0  # pixels
    min_height: int = 0  # pixels
    max_width: int = 0  # pixels
    max_height: int = 0  # pixels


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU as the driver knows it."""

    name: str  # as nvidia-smi shows it
    uuid: str  # 32 hexadecimal digits; the same in every process, whatever CUDA_VISIBLE_DEVICES says


def driver_cuda(load: Load) -> tuple[int, int] | None:
    """The newest CUDA release that the driver runs, as (major, minor); None without a driver library."""
    try:
        cuda = load("libcuda.so.1")
    except OSError:
        return None
    version = c_int(0)
    _check("cuDriverGetVersion", cuda.cuDriverGetVersion(byref(version)))
    return version.value // 1000, version.value % 1000 // 10


def decode_caps(load: Load, *, device: int = 0) -> dict[str, CodecCaps]:
    """Codec -> how GPU number `device` decodes it.

    Raises:
        OSError: libnvcuvid.so.1 or libcuda.so.1 cannot be loaded.
        DriverError: a call fails.
    """
    cuvid, cuda = load("libnvcuvid.so.1"), load("libcuda.so.1")
    found = {}
    with _context(cuda, device):
        for name, number in CODECS.items():
            caps = DecodeCaps(codec=number, chroma=CHROMA_420, bit_depth_minus_8=0)
            _check("cuvidGetDecoderCaps", cuvid.cuvidGetDecoderCaps(byref(caps)))
            # The driver sets the other fields only if it supports the codec.
            found[name] = CodecCaps(supported=False)
            if caps.supported:
                found[name] = CodecCaps(
                    supported=True,
                    engines=caps.engines,
                    min_width=caps.min_width,
                    min_height=caps.min_height,
                    max_width=caps.max_width,
                    max_height=caps.max_height,
                )
    return found


def device_of(load: Load, *, device: int = 0) -> Device:
    """Name and UUID of GPU number `device`. Raises as `decode_caps`."""
    cuda = load("libcuda.so.1")
    handle, name, uuid = c_int(0), create_string_buffer(NAME_BYTES), create_string_buffer(UUID_BYTES)
    _check("cuInit", cuda.cuInit(0))
    _check("cuDeviceGet", cuda.cuDeviceGet(byref(handle), device))
    _check("cuDeviceGetName", cuda.cuDeviceGetName(name, NAME_BYTES, handle))
    _check("cuDeviceGetUuid", cuda.cuDeviceGetUuid(uuid, handle))
    return Device(name=name.value.decode(errors="replace"), uuid=uuid.raw.hex())


@contextmanager
def _context(cuda: Any, device: int) -> Iterator[None]:
    """Make the device's primary context current within the block. PyTorch and DALI use the same context."""
    handle, context, popped = c_int(0), c_void_p(), c_void_p()
    _check("cuInit", cuda.cuInit(0))
    _check("cuDeviceGet", cuda.cuDeviceGet(byref(handle), device))
    _check("cuDevicePrimaryCtxRetain", cuda.cuDevicePrimaryCtxRetain(byref(context), handle))
    try:
        _check("cuCtxPushCurrent", cuda.cuCtxPushCurrent_v2(context))
        try:
            yield
        finally:
            cuda.cuCtxPopCurrent_v2(byref(popped))
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(handle)


def _check(call: str, status: int) -> None:
    if status == ERROR_NO_DEVICE:
        raise DriverError(f"{call}: the driver sees no GPU")
    if status:
        raise DriverError(f"{call}: CUDA error {status}")
