"""One part of the GPU benchmark, in a separate process: `python -m benchmarks.gpu.parts NAME --out DIR ...`.

`run` starts it, and says what each part is for.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.gpu.material import CODECS, Material
from benchmarks.gpu.stubs import Gpu, StubGpu, as_payload
from lavila.data.dali_pipelines.errors import cause
from lavila.data.dali_pipelines.probe import picture_difference
from lavila.data.host.decode import DecodeError, decode_frames
from lavila.data.streams.mp4 import read_mp4
from lavila.data.streams.reduction import reduced
from lavila.files import user_path
from lavila.records import Frames

FRAMES = 16  # of a view
SHIFTS = range(-8, 9)  # frames by which pictures may be shifted


class Results:
    """Rows of a part, written to a file after each."""

    def __init__(self, path: Path, gpu: Gpu, *, tiny: bool) -> None:
        self._path, self._gpu, self._tiny = path, gpu, tiny
        self.rows: list[dict[str, Any]] = []
        self._machine = common.machine("torch", "nvidia-dali-cuda130", "av", gpu=gpu.name())

    def add(self, **row: Any) -> None:
        """Keep a row, and print it."""
        self.rows.append(row)
        report = {"machine": self._machine, "stubs": self._gpu.names, "tiny": self._tiny, "rows": self.rows}
        self._path.write_text(json.dumps(report, indent=1) + "\n")
        print("  ", *(f"{name}={_short(value)}" for name, value in row.items()), flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def small(gpu: Gpu, material: Material, results: Results) -> None:
    """A clip below the least size. The first row is kept if this process dies."""
    results.add(clip="vp9 64x112", outcome="died while it was decoded")
    outcome = decoded(gpu, material.clip("vp9", "small"), "vp9", range(4))
    results.rows.clear()
    results.add(clip="vp9 64x112", **outcome)


def decoded(gpu: Gpu, data: bytes, codec: str, frames: Sequence[int] | Frames, expected: Any = None) -> dict[str, Any]:
    """What NVDEC makes of a video: an error, or pictures and how far they are from those of FFmpeg (or `expected`)."""
    began = time.perf_counter()
    try:
        (found,) = gpu.probe([[as_payload(data, frames)]], codec, threads=1, prefetch=1).pictures()
    except RuntimeError as error:
        return {"outcome": "error", "error": cause(error)}
    except DecodeError as error:  # of a stub
        return {"outcome": "error", "error": str(error)}
    expected = decode_frames(data, list(frames)) if expected is None else expected
    if found.shape != expected.shape:
        return {"outcome": "pictures", "shape": list(found.shape), "expected": list(expected.shape)}
    wrong = sum(picture_difference(a[None], b[None]).most > 8 for a, b in zip(found, expected, strict=True))
    seconds = time.perf_counter() - began
    return {"outcome": "pictures", **asdict(picture_difference(found, expected)), "wrong": wrong, "seconds": seconds}


def chip(gpu: Gpu, material: Material, results: Results) -> None:
    """What the driver says."""
    found = gpu.chip()
    results.add(
        name=found.name, problem=found.problem, codecs={name: asdict(one) for name, one in found.codecs.items()}
    )


def pictures(gpu: Gpu, material: Material, results: Results) -> None:
    """NVDEC's pictures against the CPU's. Where they differ, the shift that fits best shows hidden frames."""
    for codec in CODECS:
        for kind in ("short", "chunk"):
            data = material.clip(codec, kind)
            count = len(read_mp4(data).packets.sizes)
            frames = np.linspace(0, count - 1, FRAMES).astype(np.int32)
            stream = reduced(data, frames)
            for form, given, numbers in (("whole", data, frames), ("reduced", stream.data, stream.frames)):
                found = decoded(gpu, given, codec, numbers)
                if found.get("wrong"):
                    found["shift"] = best_shift(gpu, given, codec)
                results.add(codec=codec, layout=kind, form=form, frames=len(numbers), **found)


def best_shift(gpu: Gpu, data: bytes, codec: str) -> int:
    """By how many frames NVDEC's pictures of the middle of a clip come from another place than they should."""
    count = len(read_mp4(data).packets.sizes)
    (found,) = gpu.probe([[as_payload(data, [count // 2])]], codec, threads=1, prefetch=1).pictures()
    places = [count // 2 + shift for shift in SHIFTS if 0 <= count // 2 + shift < count]
    every = decode_frames(data, places)
    differences = [picture_difference(found, one[None]).mean for one in every]
    return places[int(np.argmin(differences))] - count // 2


def zeroed(gpu: Gpu, material: Material, results: Results) -> None:
    """Clips with damage inside: does NVDEC say so? `wrong` counts frames that are not those of the sound clip."""
    for codec in CODECS:
        data = material.clip(codec, "short")
        packets = read_mp4(data).packets
        frames = np.linspace(0, len(packets.sizes) - 1, FRAMES).astype(np.int32)
        sound, middle = decode_frames(data, frames), len(packets.sizes) // 2
        for name, places in (("one packet", [middle]), ("half of the packets", range(middle, len(packets.sizes)))):
            broken = bytearray(data)
            for place in places:
                start, size = packets.starts[place], packets.sizes[place]
                at = data.index(packets.data[start : start + size])
                broken[at : at + size] = bytes(size)
            results.add(codec=codec, damage=name, **decoded(gpu, bytes(broken), codec, frames, sound))
        results.add(codec=codec, damage="cut off", **decoded(gpu, data[: len(data) * 2 // 3], codec, frames, sound))


def material_only(gpu: Gpu, material: Material, results: Results) -> None:
    """Make the clips."""
    began = time.perf_counter()
    material.make()
    results.add(seconds=time.perf_counter() - began)


def later(module: str, name: str) -> Callable[[Gpu, Material, Results], None]:
    """A part of another module, which is imported when it runs: what is not installed costs that part alone."""

    def part(gpu: Gpu, material: Material, results: Results) -> None:
        getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)(gpu, material, results)

    return part


PARTS: dict[str, Callable[[Gpu, Material, Results], None]] = {
    "material": material_only,
    "small": small,
    "chip": chip,
    "pictures": pictures,
    "zeroed": zeroed,
    **{name: later("speed", name) for name in ("rates", "host", "decoders", "stream")},
    **{name: later("learning", name) for name in ("step", "model", "narrator")},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a part; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--out", type=user_path, required=True)
    parser.add_argument("--material", type=user_path, required=True)
    parser.add_argument("--stub", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    gpu = StubGpu() if args.stub else Gpu()
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out / f"{args.part}.json", gpu, tiny=args.tiny)
    PARTS[args.part](gpu, Material(folder=args.material, tiny=args.tiny), results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
