"""Parts of the GPU benchmark that measure decoding and loading."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.gpu.material import CODECS, Material
from benchmarks.gpu.stubs import Gpu, Probe, as_payload
from lavila.data.choice import runner_rate
from lavila.data.dali_pipelines import restarts
from lavila.data.dali_pipelines.errors import cause
from lavila.data.dali_pipelines.runner import PipelineRunner
from lavila.data.loader import ClipLoader, Pictures, clip_sizes
from lavila.data.pictures import DecoderName, Execution
from lavila.data.reading import ClipReader
from lavila.data.runners import build_runner
from lavila.data.sizes import ChosenSizes
from lavila.data.streams.mp4 import read_mp4
from lavila.data.streams.reduction import reduced
from lavila.plan.crops import CropChoice, ViewChoice
from lavila.plan.frames import FrameChoice
from lavila.plan.plans import Plan, Ranks, TrainingPlan, ViewPlan
from lavila.shards.reader import ShardSet

if TYPE_CHECKING:
    from benchmarks.gpu.parts import Results

FRAMES, SIZE, BATCH = 16, 224, 16
ENGINES = 7  # of an H100 and an H200
THREADS = (1, 4, 14, 28)  # besides ENGINES; 28 last, since it may fail
LAST = (15, 89, 899)  # the last wanted frame
SECONDS = 0.6  # of each figure
MANY = 2000  # clips
MEAN, STD = (108.3272985, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)


def probe_rate(probe: Probe, gpu: Gpu, *, clips: int, warm: int, seconds: float = SECONDS) -> float:
    """Clips per second of a probe, whose batches have `clips` clips."""
    for _ in range(warm):
        probe.run()
    gpu.wait()
    began, done = time.perf_counter(), 0
    while not done or time.perf_counter() - began < seconds:
        probe.run()
        done += clips
    gpu.wait()
    return done / (time.perf_counter() - began)


def rates(gpu: Gpu, material: Material, results: Results) -> None:
    """NVDEC alone: by what a clip's frames need, and by the number of sessions."""
    lasts = [min(last, material.seconds * 30 - 1) for last in LAST]
    for last, codec, form in itertools.product(dict.fromkeys(lasts), CODECS, ("whole", "reduced")):
        rate_row(gpu, material, results, codec=codec, last=last, form=form, threads=ENGINES)
    for threads, codec in itertools.product(THREADS, CODECS):
        rate_row(gpu, material, results, codec=codec, last=lasts[1], form="reduced", threads=threads)


def rate_row(gpu: Gpu, material: Material, results: Results, *, codec: str, last: int, form: str, threads: int) -> None:
    """Measure one combination, and continue after an error."""
    data = material.clip(codec, "long" if last >= 90 else "short")
    frames = np.linspace(0, last, FRAMES).astype(np.int32)
    given = reduced(data, frames) if form == "reduced" else None
    one = as_payload(given.data, given.frames) if given else as_payload(data, frames)
    clips = 4 if material.tiny else 2 * max(threads, ENGINES)
    prefetch = 1 if last > 100 else 2
    what: dict[str, Any] = {"codec": codec, "last": last, "form": form, "threads": threads}
    what["packets"] = len(read_mp4(one.data.tobytes()).packets.sizes)
    try:
        probe = gpu.probe([[one] * clips], codec, threads=threads, prefetch=prefetch)
        rate = probe_rate(probe, gpu, clips=clips, warm=prefetch, seconds=0.05 if material.tiny else SECONDS)
    except RuntimeError as error:
        results.add(**what, error=cause(error))
        return
    results.add(**what, clips_per_second=rate, pictures_per_second=rate * what["packets"])


def pictures_of(*, half: bool) -> Pictures:
    """LaViLa's normalisation."""
    return Pictures(mean=MEAN, std=STD, half=half)


def training_plan(shards: ShardSet, material: Material, *, batch: int, turns: int = 32) -> Plan:
    """16 frames of 224 pixels of each clip, `turns` times an epoch."""
    once = clip_sizes(shards)
    sizes = ChosenSizes(of=once, indices=np.tile(np.arange(len(once)), 1 if material.tiny else turns))
    size = 64 if material.tiny else SIZE
    crop = CropChoice(size=size)
    return TrainingPlan(sizes, frames=FrameChoice(frames=FRAMES), crop=crop, batch_size=batch, seed=0, ranks=Ranks())


def view_plan(shards: ShardSet, material: Material) -> Plan:
    """10 temporal clips x 3 crops."""
    size = 64 if material.tiny else SIZE
    views = ViewChoice(size=size, clips=10, crops="three")
    frames = FrameChoice(frames=FRAMES, sampling="strided", stride=2)
    return ViewPlan(clip_sizes(shards), frames=frames, views=views, batch_size=2, ranks=Ranks())


def loader(gpu: Gpu, shards: ShardSet, plan: Plan, decoder: DecoderName, *, half: bool = True) -> ClipLoader:
    """Our loader."""
    name = gpu.decoder(decoder, shards.codec)
    return ClipLoader(shards, plan, pictures=pictures_of(half=half), decoder=name, device=gpu.device)


def host(gpu: Gpu, material: Material, results: Results) -> None:
    """All ways to a batch on the GPU, with all cores: whole runners on real plans."""
    seconds, cores = (0.05 if material.tiny else 1.5), len(os.sched_getaffinity(0))
    for codec, half in itertools.product(CODECS, (True, False)):
        shards = material.shard_set(codec)
        plan = training_plan(shards, material, batch=BATCH if not material.tiny else 4)
        spec = loader(gpu, shards, plan, "host", half=half).spec
        reader = ClipReader(shards, threads=cores)

        def execution(decoder: DecoderName, shards: ShardSet = shards, plan: Plan = plan) -> Execution:
            return Execution(
                decoder=gpu.decoder(decoder, shards.codec),
                device_id=gpu.device_id,
                batch_size=plan.largest_batch,
                threads=cores,
                prefetch=2,
            )

        runners: dict[str, Any] = {
            "nvdec": build_runner(reader, spec, execution("nvdec"), host_memory_gib=8.0),
            "host, drawn by threads": build_runner(reader, spec, execution("host"), host_memory_gib=8.0),
            "host, drawn by the GPU": PipelineRunner(spec, reader.read, execution("host"), ahead=3),
        }
        for name, runner in runners.items():
            batches = itertools.cycle([plan.batch(0, step) for step in range(plan.steps)])
            rate = runner_rate(runner, batches, warm=4, seconds=seconds)
            results.add(codec=codec, half=half, way=name, threads=cores, clips_per_second=rate)


def decoders(gpu: Gpu, material: Material, results: Results) -> None:
    """GPU memory and the time of batches over many clips. DALI does not say when it makes a decoder: it takes some
    50 ms, so batches of changing sizes show it."""
    one, other = (material.shard_set("h264", short_side=material.short_side - less) for less in (0, 32))
    whole = [as_payload(data, range(0, 80, 5)) for data in map(one.read_video, range(len(one)))]
    mixed = [as_payload(data, range(0, 80, 5)) for data in map(other.read_video, range(len(other)))]
    clips = 2 * len(whole)
    alternating = [[*whole, *mixed], [*mixed, *whole]]
    for name, batches in (("one size", [[*whole, *whole]]), ("two sizes", alternating)):
        before = gpu.memory()
        probe = gpu.probe(batches, "h264", threads=ENGINES)
        times, memory = [], []
        for _ in range(1 if material.tiny else MANY // clips):
            began = time.perf_counter()
            probe.run()
            times.append(1000 * (time.perf_counter() - began))
            memory.append((gpu.memory() - before) >> 20)
        median, high, most = (float(np.percentile(times, share)) for share in (50, 95, 100))
        results.add(
            sizes=name,
            clips=clips * len(times),
            batch_ms={"median": median, "p95": high, "most": most},
            memory_mib={"first": memory[0], "last": memory[-1], "most": max(memory)},
        )
        del probe


def stream(gpu: Gpu, material: Material, results: Results) -> None:
    """A loop with work on the GPU: DALI's outputs on PyTorch's stream, or waited for by the host."""
    shards = material.shard_set("hevc")
    work = torch.randn(256 if material.tiny else 8192, 256 if material.tiny else 8192, device=gpu.device)
    real = restarts.RestartingPipeline._run
    found: dict[str, list[float]] = {"on the stream": [], "waited for": []}
    for _ in range(1 if material.tiny else 3):
        for name in found:
            waiting = lambda self, pipeline: pipeline.run()  # noqa: E731
            restarts.RestartingPipeline._run = real if name == "on the stream" else waiting  # type: ignore[method-assign]
            plan = training_plan(shards, material, batch=BATCH if not material.tiny else 4, turns=16)
            made = iter(loader(gpu, shards, plan, "nvdec"))
            next(made)
            gpu.wait()
            began, clips = time.perf_counter(), 0
            for batch in made:
                for _ in range(2):
                    work = work @ work * 1e-4
                clips += len(batch)
            gpu.wait()
            found[name].append(clips / (time.perf_counter() - began))
    restarts.RestartingPipeline._run = real  # type: ignore[method-assign]
    for name, values in found.items():
        results.add(outputs=name, clips_per_second=statistics.median(values))
