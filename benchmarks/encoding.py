"""What each way to store a clip costs in bytes, encoding time, decoding time and similarity to the source.

    python -m benchmarks.encoding [--rounds 5]

Codes the footage in assets/ (5.3 s, 1280x720, animated) with each setting, as tools/shard_videos.py would. Measures
for each second of video the bytes, the seconds of one core to code it, and to decode all or sixteen frames of it. SSIM
(FFmpeg's filter; luma and chroma together, and luma alone) compares with the same pictures, resized but not coded.

Where the machine has an ffmpeg command (or the package imageio-ffmpeg), the script times the same cut with the same
codec settings on one thread. It also times the encoder alone, on pictures that are already resized. Last it stores
sources of other sizes and rates: the times in docs/DATASETS.md follow from these.

Writes benchmarks/results/encoding.json and the tables of docs/SHARDS.md between its markers. Numbers are medians:
compare the rows of one run only.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np

from benchmarks import common
from benchmarks.common import RESULTS, ROOT, fill_docs
from lavila.data.host.decode import decode_frames
from lavila.ingest.encode import ENCODERS, EncodedClip, EncodeSettings, Interval, encode_clip

FOOTAGE, DOCS = ROOT / "assets/bigbuckbunny.mp4", ROOT / "docs/SHARDS.md"
START, STOP = 0.2, 5.2
WHOLE = Interval(start_second=START, stop_second=STOP)
SPARSE = 16  # frames of a view

SETTINGS: dict[str, EncodeSettings] = {
    "vp9 crf 28": EncodeSettings(crf=28),
    "**vp9 crf 36** (default)": EncodeSettings(),
    "vp9 crf 44": EncodeSettings(crf=44),
    "vp9 speed 8 (realtime)": EncodeSettings(speed="8"),
    "h264 crf 19": EncodeSettings(codec="h264", crf=19),
    "**h264 crf 23**": EncodeSettings(codec="h264"),
    "h264 crf 27": EncodeSettings(codec="h264", crf=27),
    "hevc crf 21": EncodeSettings(codec="hevc", crf=21),
    "**hevc crf 25**": EncodeSettings(codec="hevc"),
    "hevc crf 29": EncodeSettings(codec="hevc", crf=29),
    "av1 crf 28": EncodeSettings(codec="av1", crf=28),
    "**av1 crf 35**": EncodeSettings(codec="av1"),
    "av1 crf 42": EncodeSettings(codec="av1", crf=42),
    "vp9 gop 32": EncodeSettings(gop=32),
    "vp9 gop 12 (as in chunks)": EncodeSettings(gop=12),
    "vp9 gop 4": EncodeSettings(gop=4),
    "h264 gop 12": EncodeSettings(codec="h264", gop=12),
    "vp9 short side 224": EncodeSettings(short_side=224),
    "vp9 short side 336": EncodeSettings(short_side=336),
    "vp9 short side 448": EncodeSettings(short_side=448),
    "vp9 fps 12.5": EncodeSettings(fps=12.5),
}

SOURCES = {  # width, height, frames per second of what the datasets hold
    "1920x1080 at 50 (EPIC-KITCHENS)": (1920, 1080, 50),
    "960x540 at 30 (Ego4D video_540ss)": (960, 540, 30),
    "640x480 at 24 (EGTEA)": (640, 480, 24),
    "854x480 at 30 (Charades-Ego)": (854, 480, 30),
}


def seconds_of(once: Callable[[], object], rounds: int) -> float:
    """Median seconds of CPU time of `once`."""
    once()
    times = []
    for _ in range(rounds):
        began = time.process_time()
        once()
        times.append(time.process_time() - began)
    return statistics.median(times)


def likeness(clip: EncodedClip, reference: EncodedClip) -> dict[str, float]:
    """Mean SSIM of the frames of two clips of one size."""
    streams = [av.open(io.BytesIO(made.data)) for made in (clip, reference)]
    graph = av.filter.Graph()
    first = next(av.open(io.BytesIO(clip.data)).decode(video=0))
    picture: dict[str, Any] = {"width": first.width, "height": first.height, "format": first.format}
    sources = [graph.add_buffer(**picture, time_base=first.time_base) for _ in streams]
    ssim, sink = graph.add("ssim"), graph.add("buffersink")
    for place, source in enumerate(sources):
        source.link_to(ssim, 0, place)
    ssim.link_to(sink)
    graph.configure()
    values = []
    for number, pair in enumerate(zip(*(stream.decode(video=0) for stream in streams), strict=True)):
        for source, frame in zip(sources, pair, strict=True):
            frame.pts = number
            source.push(frame)
        scores = dict(sink.pull().metadata)
        values.append((float(scores["lavfi.ssim.All"]), float(scores["lavfi.ssim.Y"])))
    both = np.mean(values, axis=0)
    return {"ssim": float(both[0]), "ssim_luma": float(both[1])}


def uncoded(settings: EncodeSettings) -> EncodedClip:
    """The same pictures, coded without any loss."""
    lossless = EncodeSettings(codec="h264", crf=0, short_side=settings.short_side, fps=settings.fps, speed="ultrafast")
    return encode_clip(FOOTAGE, interval=WHOLE, settings=lossless)


def measure(name: str, settings: EncodeSettings, rounds: int) -> dict[str, Any]:
    """One row of the results."""
    clip = encode_clip(FOOTAGE, interval=WHOLE, settings=settings)
    length = clip.num_frames / clip.fps
    encode = seconds_of(lambda: encode_clip(FOOTAGE, interval=WHOLE, settings=settings), max(rounds // 2, 1))
    every = np.arange(clip.num_frames, dtype=np.int32)
    sparse = np.linspace(0, clip.num_frames - 1, SPARSE).astype(np.int32)
    return {
        "name": name,
        "codec": settings.codec,
        "width": clip.width,
        "height": clip.height,
        "bytes_per_second": len(clip.data) / length,
        "encode_seconds_per_second": encode / length,
        "decode_ms_per_second": 1000 * seconds_of(lambda: decode_frames(clip.data, every), rounds) / length,
        "decode_sixteen_ms": 1000 * seconds_of(lambda: decode_frames(clip.data, sparse), rounds),
        **likeness(clip, uncoded(settings)),
    }


def source_costs(name: str, size: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Cost of storing a clip of a source of some size, with the default settings; the footage is resized to it."""
    width, height, fps = size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "source.mp4"
        with av.open(str(FOOTAGE)) as footage, av.open(str(path), "w") as out:
            stream: Any = out.add_stream(
                "libx264", rate=fps, options={"preset": "veryfast", "crf": "20", "g": str(fps)}
            )
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for number, frame in enumerate(footage.decode(video=0)):
                picture = frame.reformat(width=width, height=height, format="yuv420p")
                picture.pts, picture.time_base = number, Fraction(1, fps)
                out.mux(stream.encode(picture))
            out.mux(stream.encode(None))
        interval = Interval(start_second=0.0, stop_second=2.0)
        clip = encode_clip(path, interval=interval, settings=EncodeSettings())
        seconds = seconds_of(lambda: encode_clip(path, interval=interval, settings=EncodeSettings()), rounds)
    length = clip.num_frames / clip.fps
    return {
        "name": name,
        "width": clip.width,
        "height": clip.height,
        "core_seconds_per_second": seconds / length,
        "bytes_per_second": len(clip.data) / length,
    }


def ffmpeg_command() -> str | None:
    """The ffmpeg of the package imageio-ffmpeg, which has encoders as new as ours, or else that of this machine."""
    try:
        import imageio_ffmpeg
    except ImportError:
        return shutil.which("ffmpeg")
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def ffmpeg_options(settings: EncodeSettings) -> list[str]:
    """What makes ffmpeg code as `settings` say."""
    encoder = ENCODERS[settings.codec]
    options = {**encoder.options, encoder.speed_option: settings.speed, "crf": str(settings.crf), "g": "65536"}
    options["b:v"] = options.pop("b", "0") if settings.codec == "vp9" else options.pop("b", "")
    tag = options.pop("tag", "")
    listed = [part for name, value in options.items() if value for part in (f"-{name}", value)]
    return ["-c:v", encoder.name, "-threads", "1", *listed, *(["-tag:v", tag] if tag else [])]


def child_seconds(command: list[str]) -> float:
    """CPU seconds of a command."""
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def against_ffmpeg(ffmpeg: str, codec: str, rounds: int) -> dict[str, Any]:
    """The same cut by the ffmpeg command and by us, and the encoder alone; CPU seconds for a second of video."""
    settings = EncodeSettings(codec=codec)
    length = STOP - START
    scale = (
        "scale=512:288:flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp:out_color_matrix=bt601,format=yuv420p"
    )
    with tempfile.TemporaryDirectory() as folder:
        out, raw = Path(folder) / "out.mp4", Path(folder) / "raw.y4m"
        quiet = [ffmpeg, "-y", "-hide_banner", "-loglevel", "error", "-nostdin"]
        cut = [
            *quiet,
            "-threads",
            "1",
            "-ss",
            str(START),
            "-t",
            str(length),
            "-i",
            str(FOOTAGE),
            "-filter_threads",
            "1",
        ]
        whole = [*cut, "-vf", scale, "-an", *ffmpeg_options(settings), str(out)]
        subprocess.run([*cut, "-vf", scale, "-an", str(raw)], check=True)
        alone = [*quiet, "-i", str(raw), *ffmpeg_options(settings), str(out)]
        ours, theirs, only = [], [], []
        for _ in range(rounds):  # in turn, since other work on the machine comes and goes
            ours.append(seconds_of(lambda: encode_clip(FOOTAGE, interval=WHOLE, settings=settings), 1))
            theirs.append(child_seconds(whole))
            only.append(child_seconds(alone))
        size = out.stat().st_size
        clip = encode_clip(FOOTAGE, interval=WHOLE, settings=settings)
        made = replace(clip, data=out.read_bytes())
        alike = likeness(made, uncoded(settings))["ssim"]
    us, them = statistics.median(ours) / length, statistics.median(theirs) / length
    return {
        "codec": codec,
        "ours": us,
        "ffmpeg": them,
        "encoder_alone": statistics.median(only) / length,
        "ratio": them / us,
        "bytes_ratio": len(clip.data) / size,
        "ssim": likeness(clip, uncoded(settings))["ssim"],
        "ssim_ffmpeg": alike,
    }


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def tables(result: dict[str, Any]) -> str:
    """The Markdown of docs/SHARDS.md."""
    rows, peers, sources = result["rows"], result["against_ffmpeg"], result["sources"]
    header = ["setting", "picture", "KB for 1 s", "SSIM", "luma", "core s to code 1 s", "ms to decode 1 s", "16 of 5 s"]
    costs = markdown(
        header,
        (
            [
                row["name"],
                f"{row['width']}x{row['height']}",
                f"{row['bytes_per_second'] / 1000:.1f}",
                f"{row['ssim']:.4f}",
                f"{row['ssim_luma']:.4f}",
                f"{row['encode_seconds_per_second']:.2f}",
                f"{row['decode_ms_per_second']:.1f}",
                f"{row['decode_sixteen_ms']:.1f} ms",
            ]
            for row in rows
        ),
    )
    header = ["source", "stored as", "core s to store 1 s", "KB for 1 s"]
    of_sources = markdown(
        header,
        (
            [
                source["name"],
                f"{source['width']}x{source['height']}",
                f"{source['core_seconds_per_second']:.2f}",
                f"{source['bytes_per_second'] / 1000:.1f}",
            ]
            for source in sources
        ),
    )
    if not peers:
        return f"{costs}\n\n{of_sources}"
    header = ["default of", "ours, core s for 1 s", "ffmpeg", "encoder alone", "ffmpeg / ours", "bytes", "SSIM"]
    against = markdown(
        header,
        (
            [
                peer["codec"],
                *(f"{peer[name]:.2f}" for name in ("ours", "ffmpeg", "encoder_alone", "ratio")),
                f"{peer['bytes_ratio']:.2f} of ffmpeg's",
                f"{peer['ssim']:.4f}, ffmpeg {peer['ssim_ffmpeg']:.4f}",
            ]
            for peer in peers
        ),
    )
    return f"{costs}\n\n{of_sources}\n\n{against}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timings of each figure (5)")
    args = parser.parse_args()
    rows = []
    for name, settings in SETTINGS.items():
        rows.append(measure(name, settings, args.rounds))
        row = rows[-1]
        print(
            f"{name.replace('*', ''):28} {row['bytes_per_second'] / 1000:6.1f} KB/s  SSIM {row['ssim']:.4f}  code "
            f"{row['encode_seconds_per_second']:.2f} s  decode {row['decode_ms_per_second']:.1f} ms",
            flush=True,
        )
    sources = [source_costs(name, size, max(args.rounds // 2, 1)) for name, size in SOURCES.items()]
    ffmpeg = ffmpeg_command()
    peers = [against_ffmpeg(ffmpeg, codec, args.rounds) for codec in ENCODERS] if ffmpeg else []
    for peer in peers:
        print(f"{peer['codec']:5} ffmpeg / ours {peer['ratio']:.2f}, bytes {peer['bytes_ratio']:.2f}")
    if not ffmpeg:
        print("no ffmpeg command here: not compared with it (pip install imageio-ffmpeg brings one)")
    machine = common.machine("av", "imageio-ffmpeg")
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine, "rounds": args.rounds, "rows": rows, "sources": sources, "against_ffmpeg": peers}
    (RESULTS / "encoding.json").write_text(json.dumps(result, indent=1) + "\n")
    fill_docs("encoding", tables(result), DOCS)
    print(f"written: {(RESULTS / 'encoding.json').relative_to(ROOT)}, and the tables of {DOCS.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
