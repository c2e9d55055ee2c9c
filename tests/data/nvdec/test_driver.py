"""The calls into the driver's libraries."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from lavila.data.nvdec.driver import CodecCaps, DecodeCaps, DriverError, decode_caps, device_of, driver_cuda
from tests.data.nvdec.fakes import A100_CODECS, FakeCuda, FakeCuvid


def test_capabilities_are_asked_with_a_context_only() -> None:
    cuda = FakeCuda()
    with pytest.raises(DriverError, match="cuInit"):
        decode_caps({"libcuda.so.1": FakeCuda(init=100), "libnvcuvid.so.1": None}.__getitem__)
    with pytest.raises(DriverError, match="201"):
        stranger = FakeCuvid(FakeCuda(), A100_CODECS)  # looks at another library's contexts
        decode_caps({"libcuda.so.1": cuda, "libnvcuvid.so.1": stranger}.__getitem__)
    assert (cuda.current, cuda.retained) == (0, 0)
    assert driver_cuda({"libcuda.so.1": FakeCuda(12040)}.__getitem__) == (12, 4)


C_LIBRARY = """
#include <string.h>
/* A driver whose video decoder knows one codec. The members are those of NVIDIA's documentation, in their order. */
struct caps {
    int codec, chroma; unsigned int depth, reserved1[3];
    unsigned char supported, engines; unsigned short formats;
    unsigned int width, height, blocks; unsigned short min_width, min_height;
    unsigned char histogram, counter; unsigned short bins; unsigned int reserved3[10];
};
int cuDriverGetVersion(int *out) { *out = 13010; return 0; }
int cuInit(unsigned int flags) { return (int)flags; }
int cuDeviceGet(int *out, int number) { *out = number; return 0; }
int cuDeviceGetName(char *out, int size, int device) { return device || size < 5 ? 1 : (memcpy(out, "A100", 5), 0); }
int cuDeviceGetUuid(char *out, int device) { for (int i = 0; i < 16; i++) out[i] = i; return device; }
int cuDevicePrimaryCtxRetain(void **out, int device) { *out = (void *)0x123456789abcL; return device; }
int cuDevicePrimaryCtxRelease_v2(int device) { return device; }
static void *current;
int cuCtxPushCurrent_v2(void *context) { current = context; return 0; }
int cuCtxPopCurrent_v2(void **out) { *out = current; return 0; }
int cuvidGetDecoderCaps(struct caps *caps) {
    if (current != (void *)0x123456789abcL || caps->chroma != 1 || sizeof(struct caps) != SIZE) return 1;
    caps->supported = caps->codec == 10;
    if (caps->supported) { caps->engines = 7; caps->width = 8192; caps->height = 4320; caps->min_width = 128;
                           caps->min_height = 96; caps->reserved3[9] = 1; }
    return 0;
}
"""


def test_the_calls_reach_a_real_library(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    source, library = tmp_path / "driver.c", tmp_path / "driver.so"
    source.write_text(C_LIBRARY)
    size = f"-DSIZE={ctypes.sizeof(DecodeCaps)}"
    subprocess.run([compiler, "-shared", "-fPIC", size, "-o", str(library), str(source)], check=True, timeout=60)
    caps = decode_caps(lambda name: ctypes.CDLL(str(library)))
    assert driver_cuda(lambda name: ctypes.CDLL(str(library))) == (13, 1)
    assert {name: one.supported for name, one in caps.items()} == {
        "h264": False, "hevc": False, "vp9": True, "av1": False,
    }  # fmt: skip
    assert caps["vp9"] == CodecCaps(
        supported=True, engines=7, min_width=128, min_height=96, max_width=8192, max_height=4320
    )
    device = device_of(lambda name: ctypes.CDLL(str(library)))
    assert (device.name, device.uuid) == ("A100", bytes(range(16)).hex())
