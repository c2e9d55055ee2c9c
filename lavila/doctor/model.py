"""Measures forward and backward of a config's model, from random weights."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from lavila.config.schema import RunConfig
from lavila.engine import build
from lavila.engine.distributed import Process
from lavila.engine.precision import Arithmetic
from lavila.records import VideoBatch
from lavila.shards.reader import ShardSet
from lavila.tasks import Task

STEPS_OF_A_SIZE = 3  # number of steps that must fit into the time of a stage before the batch is doubled again


class ModelBench:
    """Forward and backward of a config's model, from random weights."""

    def __init__(self, config: RunConfig, shards: ShardSet, process: Process) -> None:
        facts = build.task_facts(config, shards)
        # The weights do not change the time.
        text = replace(config.model.text, init=build.RANDOM)
        fresh = replace(config, model=replace(config.model, init=build.RANDOM, text=text))
        model = build.fresh_model(fresh, facts).to(process.device)
        self.task: Task = build.build_task(config, model, facts, shards)
        self.task.model.train()
        self.device, self.arithmetic = process.device, Arithmetic.of_training(config, process.device)

    def step(self, batch: VideoBatch) -> None:
        """Do one forward and backward, and wait for its end."""
        with self.arithmetic.autocast():
            loss, _ = self.task.step(self.arithmetic.fitted(batch))
        loss.backward()
        self.task.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure(self, batch: VideoBatch, *, share: int, seconds: float) -> tuple[float, int, list[str]]:
        """Clips per second, the batch size they were measured at, and notes.

        The batch is doubled up to the size of the config's, while time and memory allow it.
        """
        size, notes, best = 1, [], 0
        while True:
            try:
                part = tiled(batch, size)
                self.step(part)
                elapsed = min(self._seconds(part), self._seconds(part))
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                if not best:
                    raise
                notes.append(
                    f"{size} clips at once do not fit into the GPU's memory: give every rank at most {best} "
                    "(optim.accumulate, model.gradient_checkpointing=true, more ranks)"
                )
                break
            best = size
            if size == share or 2 * elapsed * STEPS_OF_A_SIZE > seconds:
                break
            size = min(2 * size, share)
        if best < share and not notes:
            notes.append(
                f"the model was measured with {best} clip(s) at once, the config has {share}: there was too little time"
            )
        part = tiled(batch, best)
        times: list[float] = []
        while sum(times) < seconds or len(times) < 3:
            times.append(self._seconds(part))
            if sum(times) > 10 * seconds:  # a step takes so long that the median of fewer steps is enough
                break
        return best / float(np.median(times)), best, notes

    def _seconds(self, batch: VideoBatch) -> float:
        began = time.perf_counter()
        self.step(batch)
        return time.perf_counter() - began


def tiled(batch: VideoBatch, size: int) -> VideoBatch:
    """A batch of `size` clips, which repeats those of `batch`."""
    places = np.resize(np.arange(len(batch)), size)
    index = torch.from_numpy(places)
    take = [int(place) for place in places]
    return VideoBatch(
        video=batch.video[index.to(batch.video.device)],
        rows=batch.rows[places],
        positions=batch.positions[places],
        clip_ids=tuple(batch.clip_ids[place] for place in take),
        labels={name: values[index.to(values.device)] for name, values in batch.labels.items()},
        label_sets=tuple(batch.label_sets[place] for place in take),
        narrations=tuple(batch.narrations[place] for place in take),
        sources=tuple(batch.sources[place] for place in take),
        chosen=batch.chosen[places],
        draws=batch.draws[places],
    )
