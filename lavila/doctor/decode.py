"""Checks the speed of the decoders, and whether their pictures agree, on a small clip that is encoded here."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np

from lavila.data.dali_pipelines.probe import DecodeProbe, picture_difference, picture_tolerance
from lavila.data.host.decode import decode_frames, decode_planes
from lavila.data.nvdec.chip import chip_of
from lavila.data.pictures import DALI_CPU_CODECS, DecoderName, Execution, Payload
from lavila.doctor.findings import Finding
from lavila.doctor.rate import medians, rate
from lavila.ingest.encode import ENCODERS, EncodeSettings, Interval, encode_clip

FOOTAGE = Path(__file__).resolve().parents[2] / "assets" / "bigbuckbunny.mp4"
CLIP_SECONDS, CLIP_FRAMES, SHORT_SIDE = 2.0, 16, 288
NVDEC_BATCH = 32  # clips of a batch; fewer do not keep several engines busy
PREFETCH = 2  # number of batches, as in the loader's default
MUCH = 1.2  # a factor of speed that is worth a change of settings


@dataclass(frozen=True, kw_only=True)
class Samples:
    """One clip in every codec."""

    payloads: dict[str, Payload]  # codec -> the clip
    text: str  # a description of the clip


def make_samples(folder: Path, *, footage: Path = FOOTAGE) -> Samples:
    """Encode the clip. Without footage, its source is a synthetic video that is written into `folder`."""
    source = footage if footage.is_file() else synthetic_video(folder / "synthetic.mp4")
    payloads, size = {}, (0, 0)
    for codec in ENCODERS:
        interval = Interval(start_second=0.0, stop_second=CLIP_SECONDS)
        clip = encode_clip(source, interval=interval, settings=EncodeSettings(codec=codec, short_side=SHORT_SIDE))
        frames = np.linspace(0, clip.num_frames - 1, CLIP_FRAMES).astype(np.int32)
        payloads[codec] = Payload(data=np.frombuffer(clip.data, np.uint8), frames=frames)
        size = (clip.width, clip.height)
    what = "footage" if source == footage else "a synthetic picture"
    return Samples(
        payloads=payloads,
        text=f"{CLIP_FRAMES} frames of {CLIP_SECONDS:g} s of {what} at {size[0]}x{size[1]}",
    )


def synthetic_video(path: Path, *, height: int = SHORT_SIDE, width: int = 512) -> Path:
    """Two and a half seconds of moving stripes and noise, H.264."""
    from lavila.sample.drawing import Encoder

    random = np.random.default_rng(0)
    fps = Fraction(25)
    encoder = Encoder(path, fps=fps, size=(height, width))
    luma = np.add.outer(np.arange(height), np.arange(width)) % 220 + 16
    luma = np.clip(luma + random.integers(-12, 12, luma.shape), 16, 235)
    chroma = np.tile(np.linspace(60, 190, width // 2), (height, 1)).reshape(height // 2, width)
    for number in range(int(fps * 5 / 2)):
        shifted = np.roll(luma, 3 * number, axis=1)
        encoder.add(np.concatenate([shifted, chroma]).astype(np.uint8))
    encoder.finish()
    return path


def execution(decoder: DecoderName, *, threads: int, batch: int) -> Execution:
    """The execution of a decoder here. NVDEC uses the first GPU."""
    device = 0 if decoder == "nvdec" else None
    return Execution(decoder=decoder, device_id=device, batch_size=batch, threads=threads, prefetch=PREFETCH)


def decode_rate(decoder: DecoderName, batches: list[list[Payload]], *, threads: int, seconds: float) -> float:
    """Clips per second of decoding alone. All batches have one size."""
    batch = len(batches[0])
    if decoder == "host":
        clips = [payload for one in batches for payload in one]
        with ThreadPoolExecutor(threads) as pool:

            def decode_all() -> int:
                return sum(frames > 0 for frames in pool.map(_decode, clips))

            return rate(decode_all, seconds=seconds)
    probe = DecodeProbe(batches, execution=execution(decoder, threads=threads, batch=batch))
    return rate(lambda: batch * (probe.run() is not None), seconds=seconds, warm=PREFETCH + 1)


def _decode(payload: Payload) -> int:
    """Decode a clip and do nothing else. Returns the number of frames."""
    return sum(1 for _ in decode_planes(payload.data, payload.frames))


def cpu_decoders(codec: str) -> list[DecoderName]:
    """The decoders that take a codec without a GPU."""
    return ["dali_cpu", "host"] if codec in DALI_CPU_CODECS else ["host"]


def check_cpu_decoders(samples: Samples, *, threads: int, seconds: float) -> Finding:
    """Measure all decoders on the CPU with all codecs that they take, for `seconds` each."""
    slices = {}
    for codec, payload in samples.payloads.items():
        for decoder in cpu_decoders(codec):
            batches = [[payload] * max(2 * threads, 4)]

            def one(
                slice_seconds: float, decoder: DecoderName = decoder, batches: list[list[Payload]] = batches
            ) -> float:
                return decode_rate(decoder, batches, threads=threads, seconds=slice_seconds)

            slices[f"{codec} {decoder}"] = one
    rates = medians(slices, seconds=seconds)
    facts = {"clips_per_second": rates, "threads": threads, "clip": samples.text}
    parts, fix = [], []
    for codec in samples.payloads:
        mine = {decoder: rates[f"{codec} {decoder}"] for decoder in cpu_decoders(codec)}
        parts.append(f"{codec} " + ", ".join(f"{decoder} {value:.0f}" for decoder, value in mine.items()))
        if len(mine) == 2 and mine["host"] > MUCH * mine["dali_cpu"]:
            fix.append(f"train.py ... data.decoder=host   ({mine['host'] / mine['dali_cpu']:.1f}x for {codec} here)")
    found = f"{'; '.join(parts)} clips/s with {threads} thread(s), {samples.text} (dali_cpu is DALI, host is PyAV)"
    return Finding(name="cpu decode", status="note" if fix else "ok", found=found, fix=tuple(fix), facts=facts)


def check_nvdec_rate(samples: Samples, codecs: list[str], *, cpu: dict[str, float], seconds: float) -> Finding:
    """Measure NVDEC with each of `codecs`, a session for each engine. `cpu`: "<codec> <decoder>" -> clips/s there."""
    rates = {}
    for codec in codecs:
        batches = [[samples.payloads[codec]] * NVDEC_BATCH]
        rates[codec] = decode_rate("nvdec", batches, threads=chip_of(0).engines(codec), seconds=seconds)
    parts, fix = [], []
    for codec, value in rates.items():
        best, fastest = max((cpu.get(f"{codec} {name}", 0.0), name) for name in get_args(DecoderName))
        parts.append(f"{codec} {value:.0f} (CPU {best:.0f})")
        if best > MUCH * value:
            fix.append(f"train.py ... data.decoder={fastest}   (with {codec} shards: {best / value:.1f}x NVDEC here)")
    found = f"NVDEC: {'; '.join(parts)} clips/s, {samples.text}"
    facts = {"clips_per_second": rates, "clip": samples.text}
    return Finding(name="gpu decode", status="note" if fix else "ok", found=found, fix=tuple(fix), facts=facts)


def check_pictures(samples: Samples, *, nvdec: list[str]) -> Finding:
    """Compare PyAV's pictures with NVDEC's, for the codecs `nvdec`, and with DALI's on the CPU."""
    pairs: list[tuple[str, DecoderName]] = [(codec, "nvdec") for codec in nvdec]
    pairs += [(codec, "dali_cpu") for codec in samples.payloads if codec in DALI_CPU_CODECS]
    parts, facts, wrong = [], {}, []
    for codec, decoder in pairs:
        payload = samples.payloads[codec]
        probe = DecodeProbe([[payload]], execution=execution(decoder, threads=1, batch=1))
        difference = picture_difference(probe.pictures()[0], decode_frames(payload.data, payload.frames))
        allowed = picture_tolerance("host", decoder)
        parts.append(f"{codec} {decoder} mean {difference.mean:.2f}, most {difference.most:.0f} levels")
        facts[f"{codec} {decoder}"] = {"mean": difference.mean, "most": difference.most}
        if not difference.within(allowed):
            wrong.append(f"{codec} {decoder} (allowed: mean {allowed.mean:g}, most {allowed.most:g})")
    found = f"differences from PyAV's: {'; '.join(parts)}"
    found += "" if nvdec else "; no NVDEC to compare with"
    if wrong:
        fix = ("train.py ... data.decoder=host   (until the reason is known); report it with the output of --json",)
        found = f"decoders disagree: {', '.join(wrong)}; {found}"
        return Finding(name="pictures", status="broken", found=found, fix=fix, facts=facts)
    return Finding(name="pictures", status="ok", found=found, facts=facts)
