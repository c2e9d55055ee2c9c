"""Measures each stage of a training step alone and together, on the plan, the data and the model of a config."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lavila.config.schema import RunConfig
from lavila.data.drawing import build_drawing
from lavila.data.host.decode import DecodeError
from lavila.data.loader import ClipLoader
from lavila.data.nvdec.chip import chip_of
from lavila.data.pictures import DecoderName, Execution, Payload
from lavila.data.reading import ClipReader
from lavila.doctor.decode import cpu_decoders, decode_rate
from lavila.doctor.findings import Finding
from lavila.doctor.model import ModelBench
from lavila.doctor.rate import CacheState, drop_cache, medians, rate
from lavila.engine import build
from lavila.engine.distributed import Process, join
from lavila.errors import one_line
from lavila.records import ClipPlan, VideoBatch
from lavila.shards.reader import ShardSet

LEAST_BATCH = 8  # the smallest batch of the data stages, if the config has so many clips in a batch
CLIPS_AHEAD = 2000  # number of clips whose tars are dropped from the page cache before a slice
CLIPS_HELD = 32  # number of clips that the stages decode and augment use again and again
HELD_BYTES = 1 << 30  # bytes of decoded frames that stay in memory


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """Rates in clips per second, and the conditions of the measurement."""

    rates: dict[str, float]  # read, decode, augment, loader; also model and together if they were measured
    decoders: dict[DecoderName, float]  # rate of decoding alone, for each decoder that takes the codec here
    decoder: DecoderName  # the decoder of the config
    codec: str
    device: str  # cpu or cuda
    threads: int
    data_batch: int  # clips of a batch of the data stages
    model_batch: int  # clips that the model took at once; 0 = it was not measured
    share: int  # clips of one pass of the config on one rank
    image_size: int  # pixels
    stored: tuple[int, int]  # median height and width in pixels of the clips
    wanted_frames: float  # distinct frames of a clip, on average
    passed_frames: float  # frames that are decoded for them, on average
    clip_bytes: float  # bytes that are read for a clip, on average
    page_cache: CacheState  # the page cache before reading
    data_wait_percent: float | None = None  # share of the time that steps of loader and model waited for data
    notes: tuple[str, ...] = ()  # limits of the measurement
    model_problem: str = ""  # the reason why the model could not be measured


@dataclass(frozen=True, kw_only=True)
class _Data:
    """Some clips of the plan, in the form that each stage takes."""

    plans: list[list[ClipPlan]]  # batches of one size
    payloads: list[list[Payload]]
    decoded: list[list[Any]]  # as `Drawing.decode` returns them


def check_config(config: RunConfig, shards: ShardSet) -> Finding:
    """Check that training with the config can start on this machine, as one process. Measures nothing.

    Raises the errors of building a run: ConfigError, PlanError, LoaderError ...
    """
    with join(config.device) as process:
        loader = build.training_loader(config, shards, process)
        task = build.task_kind(config).describe(build.task_facts(config, shards))
    found = f"{config.name} can start: {len(loader)} steps an epoch of {loader.plan.largest_batch} clips on "
    found += f"{process.device.type}, decoder {loader.decoder}, {task}"
    facts = {"name": config.name, "device": process.device.type, "decoder": loader.decoder, "steps": len(loader)}
    return Finding(name="config", status="ok", found=found, facts=facts)


def measure_step(config: RunConfig, shards: ShardSet, *, nvdec: bool, seconds: float, bar: tqdm[None]) -> StepFacts:
    """Measure all stages, for about `seconds` each. A slow model takes longer. `bar` shows the stage.

    `nvdec`: the GPU decodes the shards' codec, and is compared with the CPU even if the config does not use it.

    Raises the errors of building a run: ConfigError, PlanError, LoaderError ...
    """
    with join(config.device) as process:
        bench = _Bench(config, shards, process, nvdec=nvdec)
        bar.set_postfix_str("read, decode, augment, loader")
        rates = medians(bench.slices(), seconds=seconds)
        decoders = {name: rates.pop(f"decode {name}", rates["decode"]) for name in bench.decoders}
        facts = replace(bench.facts(), rates=rates, decoders=decoders)
        try:
            return _with_model(facts, bench, seconds=seconds, bar=bar)
        except (ValueError, torch.OutOfMemoryError) as error:  # a UserError, or a GPU with too little memory
            return replace(facts, model_problem=one_line(error))


def _with_model(facts: StepFacts, bench: _Bench, *, seconds: float, bar: tqdm[None]) -> StepFacts:
    """The facts with the rate of the model, and of loader and model together."""
    bar.set_postfix_str("model")
    model = ModelBench(bench.config, bench.shards, bench.process)
    rate, size, notes = model.measure(bench.one_batch(), share=bench.share, seconds=seconds)
    facts = replace(facts, rates=facts.rates | {"model": rate}, model_batch=size, notes=tuple(notes))
    bar.set_postfix_str("loader and model together")
    together = bench.together(model, size, rate, seconds=seconds)
    if together is None:
        return facts
    return replace(facts, rates=facts.rates | {"together": together[0]}, data_wait_percent=together[1])


class _Bench:
    """The data stages of a config."""

    def __init__(self, config: RunConfig, shards: ShardSet, process: Process, *, nvdec: bool = False) -> None:
        self._nvdec = nvdec
        self.config, self.shards, self.process = build.with_weights(config, None), shards, process
        self.share = config.data.batch_size // config.optim.accumulate
        cores = len(os.sched_getaffinity(0))
        self.threads = config.data.threads or max(1, cores // process.local_world)
        usable = len(shards.usable_rows())
        self.batch = max(1, min(self.share, max(LEAST_BATCH, 2 * self.threads), usable))
        self.loader = self._loader(self.batch)
        self.plan = self.loader.plan
        self._epoch = 0
        self._reader = ClipReader(shards, threads=self.threads)
        device = process.device
        execution = Execution(
            decoder=self.loader.decoder,
            device_id=device.index or 0 if device.type == "cuda" else None,
            batch_size=self.batch,
            threads=self.threads,
            prefetch=config.data.prefetch,
        )
        self._drawing = build_drawing(self.loader.spec, execution)
        self.page_cache = self._forget(self._planned(0))
        self.data = self._load()

    def _loader(self, batch: int) -> ClipLoader:
        # The order, the frames and the crops of a plan do not depend on its batch size.
        data = replace(self.config.data, batch_size=batch)
        optim = replace(self.config.optim, accumulate=1)
        return build.training_loader(replace(self.config, data=data, optim=optim), self.shards, self.process)

    def _planned(self, epoch: int) -> list[list[ClipPlan]]:
        """The first batches of an epoch: more than a slice can read from a large set."""
        steps = min(self.plan.steps, -(-CLIPS_AHEAD // self.batch))
        return [self.plan.batch(epoch, step) for step in range(steps)]

    def _forget(self, batches: list[list[ClipPlan]]) -> CacheState:
        """Drop the tars of some clips from the page cache."""
        rows = [plan.row for batch in batches for plan in batch]
        numbers = np.unique(np.asarray(self.shards.clips.column("shard").to_numpy())[rows])
        return drop_cache(self.shards.path / self.shards.shards[number].name for number in numbers.tolist())

    def _new_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def _read(self, plan: ClipPlan) -> Payload:
        """What a decoder is given. The host decoder leaves out the same packets by itself, which takes no longer."""
        with self._naming(plan):
            data, frames = self._reader.read_needed(plan)
        return Payload(data=np.frombuffer(data, np.uint8), frames=frames)

    def _load(self) -> _Data:
        clip_bytes = int(np.prod(self._stored())) * 3 * self.plan.frames
        fit = min(CLIPS_HELD, HELD_BYTES // clip_bytes)
        plans = self._planned(0)[: max(1, fit // self.batch)]
        with ThreadPoolExecutor(self.threads) as pool:
            payloads = [list(pool.map(self._read, batch)) for batch in plans]
            decoded = [list(pool.map(self._decode, batch, ones)) for batch, ones in zip(plans, payloads, strict=True)]
        return _Data(plans=plans, payloads=payloads, decoded=decoded)

    def _decode(self, plan: ClipPlan, payload: Payload) -> Any:
        with self._naming(plan):
            return self._drawing.decode(payload)

    @contextmanager
    def _naming(self, plan: ClipPlan) -> Iterator[None]:
        """Name the clip in the error of a bad clip."""
        try:
            yield
        except DecodeError as error:
            clip = self.shards.clips.column("clip_id")[plan.row].as_py()
            again = f"run tools/inspect_shards.py {self.shards.path} --verify"
            raise DecodeError(f"clip {clip} of {self.shards.path} cannot be decoded ({error}); {again}") from error

    def _stored(self) -> tuple[int, int]:
        height, width = (np.asarray(self.shards.clips.column(name).to_numpy()) for name in ("height", "width"))
        return int(np.median(height)), int(np.median(width))

    def slices(self) -> dict[str, Callable[[float], float]]:
        """The stages for `medians`. "decode" uses the config's decoder, "decode <name>" another one."""
        slices: dict[str, Callable[[float], float]] = {
            "read": self._read_slice,
            "decode": functools.partial(self._decode_slice, self.loader.decoder),
            "augment": self._augment_slice,
            "loader": self._loader_slice,
        }
        others = [name for name in self.decoders if name != self.loader.decoder]
        return slices | {f"decode {name}": functools.partial(self._decode_slice, name) for name in others}

    def _read_slice(self, seconds: float) -> float:
        batches = self._planned(self._new_epoch())
        self._forget(batches)
        with ThreadPoolExecutor(self.threads) as pool:
            done, began = 0, time.perf_counter()
            for batch in batches:  # each once, since a second read would come from memory
                done += len(list(pool.map(self._read, batch)))
                if time.perf_counter() - began > seconds:
                    break
            return done / (time.perf_counter() - began)

    @property
    def decoders(self) -> list[DecoderName]:
        """The decoders that take the codec here."""
        on_gpu: list[DecoderName] = ["nvdec"] if self._nvdec or self.loader.decoder == "nvdec" else []
        return on_gpu + cpu_decoders(self.shards.codec)

    def _decode_slice(self, decoder: DecoderName, seconds: float) -> float:
        threads = chip_of(0).engines(self.shards.codec) if decoder == "nvdec" else self.threads
        return decode_rate(decoder, self.data.payloads, threads=threads, seconds=seconds)

    def _augment_slice(self, seconds: float) -> float:
        with closing(self._drawing.draw(list(zip(self.data.plans, self.data.decoded, strict=True)))) as drawn:
            return rate(lambda: next(drawn), seconds=seconds, warm=self.config.data.prefetch + 1)

    def _batches(self, loader: ClipLoader) -> Iterator[VideoBatch]:
        """Batches without end, from epochs that no earlier call has used."""
        while True:
            loader.set_epoch(self._new_epoch())
            yield from loader

    def _loader_slice(self, seconds: float) -> float:
        self._forget(self._planned(self._epoch + 1))
        batches = self._batches(self.loader)
        # Batches that were prefetched before the clock starts would seem to take no time, so they do not count.
        return rate(lambda: len(next(batches)), seconds=seconds, warm=self.config.data.prefetch + 2)

    def one_batch(self) -> VideoBatch:
        return next(self._batches(self.loader))

    def together(
        self, model: ModelBench, size: int, model_rate: float, *, seconds: float
    ) -> tuple[float, float] | None:
        """Clips per second of loader and model at once, and percent of the time spent waiting for data.

        None if the model was not measured, or if three steps take longer than three times `seconds`.
        """
        size = min(size, len(self.shards.usable_rows()))
        if not size or 3 * size / model_rate > 3 * seconds:
            return None
        loader = self._loader(size)
        batches = self._batches(loader)
        for _ in range(2):
            model.step(next(batches))
        waited, clips, began = loader.wait_seconds, 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            batch = next(batches)
            model.step(batch)
            clips += len(batch)
        elapsed = time.perf_counter() - began
        return clips / elapsed, 100 * (loader.wait_seconds - waited) / elapsed

    def facts(self) -> StepFacts:
        payloads = [payload for batch in self.data.payloads for payload in batch]
        return StepFacts(
            rates={},
            decoders={},
            decoder=self.loader.decoder,
            codec=self.shards.codec,
            device=self.process.device.type,
            threads=self.threads,
            data_batch=self.batch,
            model_batch=0,
            share=self.share,
            image_size=self.config.data.image_size,
            stored=self._stored(),
            wanted_frames=float(np.mean([len(payload.frames) for payload in payloads])),
            passed_frames=float(np.mean([payload.frames[-1] + 1 for payload in payloads])),
            clip_bytes=float(np.mean([len(self._reader.read(plan)[0]) for batch in self.data.plans for plan in batch])),
            page_cache=self.page_cache,
        )
