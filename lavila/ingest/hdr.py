"""HDR pictures (HLG, PQ) -> the range of ordinary video, as a player shows them on a screen of ordinary brightness.

1. The signal becomes light in cd/m2: by the EOTF of ITU-R BT.2100, for HLG with the system gamma of a screen of 1000.
2. The EETF of ITU-R BT.2390 (5.4.1) compresses up to PEAK into up to reference white (203 cd/m2, ITU-R BT.2408), by the
   largest of the three channels, so that hues stay. What is darker than about 85 cd/m2 does not change.
3. The primaries become those of BT.709; what lies outside is cut off.
4. Light becomes a signal for screens of BT.1886, with reference white at its top.

Whatever a file says of its peak, of this scene's or of its mastering screen is not used. So a level means the same
in all clips.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# TransferCharacteristics of ITU-T H.273, which FFmpeg uses as AVCOL_TRC.
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
# ColourPrimaries of H.273: x and y of red, green, blue and white.
BT709, BT2020, P3 = 1, 9, 12
PRIMARIES = {
    BT709: (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290),
    BT2020: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),
    P3: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290),
}
PEAK, WHITE = 1000.0, 203.0  # cd/m2: the brightest that is distinguished, and reference white
SCREEN_GAMMA = 2.4  # BT.1886
SYSTEM_GAMMA = 1.2  # of HLG, for a screen of 1000 cd/m2
# The constants of PQ and of HLG (BT.2100, tables 4 and 5).
M1, M2, C1, C2, C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
HLG_A = 0.17883277
HLG_B, HLG_C = 1 - 4 * HLG_A, 0.5 - HLG_A * float(np.log(4 * HLG_A))
LEVEL = 8  # of the table: a cube of LEVEL^2 points on each side


def pq_light(signal: Any) -> Any:
    """PQ signal, 0 to 1 -> light in cd/m2, up to 10,000."""
    power = np.power(np.maximum(signal, 0), 1 / M2)
    return 10_000 * np.power(np.maximum(power - C1, 0) / (C2 - C3 * power), 1 / M1)


def pq_signal(light: Any) -> Any:
    """Light in cd/m2 -> PQ signal."""
    power = np.power(np.maximum(light, 0) / 10_000, M1)
    return np.power((C1 + C2 * power) / (1 + C3 * power), M2)


def hlg_light(signal: Floats, primaries: int = BT2020) -> Floats:
    """HLG signal, [..., 3] of 0 to 1 -> light of a screen of PEAK in cd/m2, [..., 3]."""
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - HLG_C) / HLG_A) + HLG_B) / 12)
    luminance = scene @ _to_xyz(primaries)[1]
    light: Floats = PEAK * np.power(luminance, SYSTEM_GAMMA - 1)[..., None] * scene
    return light


def compressed(light: Any) -> Any:
    """Light up to PEAK -> light up to WHITE: the EETF of BT.2390 for black at 0, in cd/m2."""
    peak = pq_signal(PEAK)
    most = pq_signal(WHITE) / peak
    knee = 1.5 * most - 0.5
    level = np.minimum(pq_signal(light) / peak, 1)
    t = np.maximum(level - knee, 0) / (1 - knee)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return pq_light(np.where(level < knee, level, bent) * peak)


def tone_mapped(signal: Floats, *, transfer: int, primaries: int) -> Floats:
    """HDR signal R, G, B, [..., 3] of 0 to 1 -> signal for an ordinary screen with BT.709's primaries, the same."""
    primaries = primaries if primaries in PRIMARIES else BT2020
    light = pq_light(signal) if HDR_TRANSFERS[transfer] == "PQ" else hlg_light(signal, primaries)
    top = light.max(-1, keepdims=True)
    light = light * (compressed(top) / np.maximum(top, 1e-9)) / WHITE
    linear = light @ (np.linalg.inv(_to_xyz(BT709)) @ _to_xyz(primaries)).T
    found: Floats = np.clip(linear, 0, 1) ** (1 / SCREEN_GAMMA)
    return found


def _to_xyz(primaries: int) -> Floats:
    """[3, 3]: linear R, G, B -> CIE XYZ, with a luminance of 1 for white."""
    x, y = np.array(PRIMARIES[primaries]).reshape(4, 2).T
    columns = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    matrix: Floats = columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])
    return matrix


@cache
def table(transfer: int, primaries: int) -> npt.NDArray[np.uint16]:
    """`tone_mapped` as a picture for FFmpeg's filter haldclut, [LEVEL^3, LEVEL^3, 3] of R, G, B."""
    side = LEVEL**2
    levels = np.arange(side) / (side - 1)
    blue, green, red = np.meshgrid(levels, levels, levels, indexing="ij")
    mapped = tone_mapped(np.stack([red, green, blue], -1), transfer=transfer, primaries=primaries)
    return np.rint(mapped * 65535).astype(np.uint16).reshape(LEVEL**3, LEVEL**3, 3)
