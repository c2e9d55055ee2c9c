"""Which decoder a loader uses: the one that is named, or the one that `auto` stands for.

Without a GPU `auto` is host. On a GPU it is host where the chip cannot decode the set. Else it is nvdec or host,
whichever a short measurement finds faster (`nvdec.fastest`). Imports without DALI.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import get_args

import torch

from lavila.data.nvdec import fastest
from lavila.data.nvdec.chip import chip_of, nvdec_problem
from lavila.data.pictures import DALI_CPU_CODECS, DecoderName, Execution, LoaderError, PictureSpec
from lavila.data.reading import ClipReader
from lavila.data.runners import Runner, build_runner
from lavila.plan.plans import Plan
from lavila.records import ClipPlan
from lavila.shards.pictures import StoredPictures
from lavila.shards.reader import ShardSet

log = logging.getLogger(__name__)

STEPS = 4  # steps of the first epoch whose clips are used again and again in a measurement
SECONDS = 1.5  # of measuring a decoder, after a warm-up

_said: set[str] = set()  # the lines that were logged; every loader of a process chooses anew


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A loader as it would be with any decoder, for measuring."""

    shard_set: ShardSet
    reader: ClipReader
    spec: PictureSpec
    plan: Plan
    execution: Execution  # its decoder does not count
    host_memory_gib: float

    def rate(self, decoder: DecoderName) -> float:
        """Clips per second of reading, decoding and drawing."""
        execution = replace(self.execution, decoder=decoder)
        runner = build_runner(self.reader, self.spec, execution, host_memory_gib=self.host_memory_gib)
        return runner_rate(runner, itertools.cycle(self._steps()), warm=execution.prefetch + 2, seconds=SECONDS)

    def warm_up_storage(self) -> None:
        """Read the clips once, so that the first decoder that is measured is not the one that waits for the disk."""
        for plan in itertools.chain(*self._steps()):
            self.reader.read_or_reason(plan)

    def _steps(self) -> list[list[ClipPlan]]:
        return [self.plan.batch(0, step) for step in range(min(STEPS, self.plan.steps))]

    def situation(self, gpu: str) -> fastest.Situation:
        """What a measurement of this loader is valid for."""
        return fastest.Situation(
            gpu=gpu,
            threads=self.execution.threads,
            shard_set=str(self.shard_set.path.resolve()),
            codec=self.shard_set.codec,
            clips=self.execution.batch_size,
            views=self.spec.view_grid,
            frames=self.spec.frames,
            size=self.spec.size,
            half=self.spec.half,
        )


def runner_rate(runner: Runner, batches: Iterable[list[ClipPlan]], *, warm: int, seconds: float) -> float:
    """Clips per second of a runner over endless batches, after the first `warm`, of which some were made at once."""
    with closing(runner.run(batches)) as made:
        for _ in range(warm):
            next(made)
        _wait_for_gpu()
        began, clips = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            clips += len(next(made).plans)
        _wait_for_gpu()
        return clips / (time.perf_counter() - began)


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def choose_decoder(decoder: str, *, shard_set: ShardSet, device: torch.device, trial: Trial) -> DecoderName:
    """The decoder that `auto` stands for, or the named one if it can work here.

    One line in the log says why `auto` is what it is on a GPU machine.

    Raises:
        LoaderError: the named decoder cannot work; the message says what to use instead.
    """
    if decoder not in ("auto", *get_args(DecoderName)):
        raise LoaderError(f"data.decoder={decoder}: must be one of auto, nvdec, dali_cpu, host")
    if decoder == "dali_cpu" and shard_set.codec not in DALI_CPU_CODECS:
        raise LoaderError(
            f"data.decoder=dali_cpu: the shards hold {shard_set.codec}, which DALI decodes on a GPU only (on the CPU: "
            f"{', '.join(DALI_CPU_CODECS)}); use data.decoder=host or auto, or make the shards with --codec vp9"
        )
    if decoder == "nvdec":
        _check_nvdec(shard_set, device)
    if decoder != "auto":
        return decoder  # type: ignore[return-value]
    return _auto(shard_set, trial) if device.type == "cuda" else "host"


def _check_nvdec(shard_set: ShardSet, device: torch.device) -> None:
    if device.type != "cuda":
        driver = "" if torch.cuda.is_available() else " and this machine has no usable NVIDIA driver"
        raise LoaderError(
            f"data.decoder=nvdec decodes on a GPU, but device is {device.type}{driver}; use data.decoder=auto"
        )
    problem = nvdec_problem(chip_of(device.index or 0), StoredPictures.of(shard_set))
    if problem:
        raise LoaderError(f"data.decoder=nvdec: {problem}; use data.decoder=auto or host")


def _auto(shard_set: ShardSet, trial: Trial) -> DecoderName:
    chip = chip_of(trial.execution.device_id or 0)
    problem = nvdec_problem(chip, StoredPictures.of(shard_set))
    if problem:
        _say(f"{shard_set.path}: data.decoder=auto is host, not nvdec: {problem}", logging.WARNING)
        return "host"

    def measure(decoder: DecoderName) -> float:
        if decoder == fastest.CANDIDATES[0]:
            trial.warm_up_storage()
        return trial.rate(decoder)

    chosen, why = fastest.fastest(trial.situation(chip.name), measure)
    _say(f"{shard_set.path}: data.decoder=auto is {chosen}: {why}", logging.INFO)
    return chosen


def _say(line: str, level: int) -> None:
    """Log a line once in a process."""
    if line not in _said:
        _said.add(line)
        log.log(level, line)
