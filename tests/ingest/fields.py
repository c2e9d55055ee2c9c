"""H.264 whose frames are coded as two fields each (PAFF), written bit by bit: no encoder at hand makes it.

Every macroblock is I_PCM, its samples as they are. Names are those of ITU-T H.264.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from tests.footage import Picture

START = b"\0\0\0\1"
SEQUENCE, PICTURE, IDR, OTHER = 0x67, 0x68, 0x65, 0x41  # first bytes of units
I_PCM, I_SLICE = 25, 7
GROUP = 10  # frames from one IDR picture to the next


def golomb(number: int) -> str:
    """ue(v)."""
    digits = f"{number + 1:b}"
    return "0" * (len(digits) - 1) + digits


def packed(bits: str, *, stop: bool = True) -> bytes:
    """Bits as bytes; `stop`: with the bit that ends a unit."""
    bits += "1" if stop else ""
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def unit(first: int, content: bytes) -> bytes:
    """A unit with its start code, and without others in its content."""
    out, zeros = bytearray(), 0
    for byte in content:
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = 0 if byte else zeros + 1
    return START + bytes([first]) + bytes(out)


def parameter_sets(height: int, width: int) -> bytes:
    """For pictures whose sides are multiples of 32 and 16."""
    head = f"{77:08b}{0:08b}{30:08b}" + golomb(0)  # Main
    numbers = golomb(4) + golomb(0) + golomb(4) + golomb(2) + "0"  # frame_num and order count of 8 bits
    sides = golomb(width // 16 - 1) + golomb(height // 32 - 1)
    sequence = head + numbers + sides + "0" + "0" + "1" + "0" + "0"  # fields, no frames of both kinds
    picture = golomb(0) * 2 + "00" + golomb(0) * 3 + "000" + golomb(0) * 3 + "000"
    return unit(SEQUENCE, packed(sequence)) + unit(PICTURE, packed(picture))


def field(number: int, luma: npt.NDArray[np.uint8], *, bottom: bool, step: int) -> bytes:
    """One field of frame `number`; luma: [H / 2, W]; step: by so much frame_num rises, by the standard 1."""
    in_group = number % GROUP
    idr = in_group == 0 and not bottom
    bits = golomb(0) + golomb(I_SLICE) + golomb(0) + f"{step * in_group:08b}" + "1" + str(int(bottom))
    bits += (golomb(number // GROUP % 2) if idr else "") + f"{2 * in_group + bottom:08b}"
    bits += ("00" if idr else "0") + golomb(0)
    grey = bytes([128]) * 128
    content = b""
    for top in range(0, len(luma), 16):
        for left in range(0, luma.shape[1], 16):
            block = luma[top : top + 16, left : left + 16].tobytes()
            content += packed(bits + golomb(I_PCM), stop=False) + block + grey
            bits = ""
    return unit(IDR if idr else OTHER, content + b"\x80")


def fields(number: int, picture: Picture, *, step: int = 1) -> tuple[bytes, bytes]:
    """Both fields of a frame, the upper one first; picture: [H, W, 3]."""
    luma = np.ascontiguousarray(picture[..., 0])
    return field(number, luma[0::2], bottom=False, step=step), field(number, luma[1::2], bottom=True, step=step)


def write_fields(path: Path, pictures: Sequence[Picture], *, apart: bool, rate: int = 25, step: int = 1) -> Path:
    """A video of frames of two fields. `apart`: each field is a separate packet, shown half a frame after the other.

    pictures: [H, W, 3], H a multiple of 32 and W of 16. step: by so much frame_num rises.
    """
    height, width = pictures[0].shape[:2]
    pairs = [fields(number, picture, step=step) for number, picture in enumerate(pictures)]
    sets = parameter_sets(height, width)
    raw = path.with_suffix(".h264")
    raw.write_bytes(sets + b"".join(pairs[0]))
    with av.open(str(raw)) as source, av.open(str(path), "w") as out:
        copy: Any = out.add_stream_from_template(source.streams.video[0])
        for number, pair in enumerate(pairs):
            begin = sets if number % GROUP == 0 else b""
            for place, data in enumerate(pair if apart else [b"".join(pair)]):
                packet: Any = av.Packet((b"" if place else begin) + data)
                packet.time_base = Fraction(1, 2 * rate)
                packet.pts = packet.dts = 2 * number + place
                packet.duration = 1 if apart else 2
                packet.is_keyframe = number % GROUP == 0 and not place
                packet.stream = copy
                out.mux(packet)
    raw.unlink()
    return path
