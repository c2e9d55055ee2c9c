"""ClipLoader: a shard set and a plan -> typed batches on the device.

    plan --[B clips]--> runner --[B,K,S,T,C,H,W], bad clips--> VideoBatch

A runner (`runners.build_runner`) reads, decodes and draws, a few batches ahead of the model. `memory.batches_ahead`
limits the bytes that CPU threads decode ahead. Encoded clips are small, so `prefetch` alone limits them. In training
other clips take the places of bad ones (`batches`). The state of the loader is two integers, (epoch, step). Everything
else follows from the plan.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from lavila.data.batches import PictureBatch
from lavila.data.choice import Trial, choose_decoder
from lavila.data.pictures import Execution, LoaderError, PictureSpec
from lavila.data.reading import ClipReader
from lavila.data.runners import build_runner
from lavila.data.sizes import StoredSizes
from lavila.plan.plans import Plan
from lavila.records import ClipPlan, VideoBatch
from lavila.shards.captions import Captions, choose
from lavila.shards.mapped import Column
from lavila.shards.reader import ShardSet

log = logging.getLogger(__name__)

LABELS = ("verb", "noun", "action")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """How decoded frames become the input of a model."""

    mean: tuple[float, float, float]  # R, G, B on 0..255
    std: tuple[float, float, float]  # R, G, B on 0..255
    antialias: bool = False  # low-pass before shrinking
    half: bool = False  # float16 instead of float32


@dataclass(frozen=True, kw_only=True)
class BadClip:
    """A clip that could not be read or decoded."""

    clip_id: str
    shard: str  # file name of the tar it lies in
    reason: str
    position: int = 0  # its place in the epoch's order
    attempt: int = 0  # as in `lavila.records.ClipPlan`


def clip_sizes(shard_set: ShardSet) -> StoredSizes:
    """The lengths and sizes of the clips of a shard set, for a plan. Clips in quarantine are left out."""
    return StoredSizes(shard_set)


@dataclass(frozen=True)
class _Run:
    """A runner at work."""

    plans: Generator[list[ClipPlan]]
    results: Generator[PictureBatch]
    place: tuple[int, int]  # epoch and step of the next batch

    def close(self) -> None:
        self.results.close()
        self.plans.close()


class ClipLoader:
    """Iterates over the batches of an epoch.

    Example:
        >>> shards = open_shard_set("data/sample/shards/val")
        >>> plan = ViewPlan(clip_sizes(shards), frames=FrameChoice(frames=8), views=ViewChoice(size=64),
        ...                 batch_size=4, ranks=Ranks())
        >>> for batch in ClipLoader(shards, plan, pictures=Pictures(mean=(0, 0, 0), std=(255, 255, 255))):
        ...     batch.video.shape  # [4, 3, 3, 8, 64, 64]

    Args:
        shard_set: the set that holds the clips.
        plan: the choice of clips, frames and crops (`TrainingPlan` or `ViewPlan`).
        pictures: normalisation and number type.
        decoder: auto, nvdec, dali_cpu or host.
        device: the device of the batches.
        threads: number of CPU threads that read and decode; 0 = all cores of this process.
        prefetch: number of batches in flight.
        host_memory_gib: main memory, in GiB, for pictures that CPU threads decode (decoder host). It sets how many
            batches are made ahead. One always is, and a warning says if that one takes more.
        max_bad_clips: the largest number of bad clips in an epoch; one more is an error. The loader counts the clips
            of its rank. A caller that knows the sum over all ranks gives it to `check_bad_clips`. None: the caller
            looks at `bad_clips`, and the loader continues whatever it finds. If no clip that is tried for a place is
            good, the batch becomes smaller.
        captions: the clips' narrations; None = those stored with the shard set.
        epochs: the number of epochs that follow each other. While one ends, the decoder host makes the first batches
            of the next. 0: each epoch stands alone. Call `close` where the last is not reached.

    Raises:
        LoaderError: settings that cannot work; too many bad clips.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        plan: Plan,
        *,
        pictures: Pictures,
        decoder: str = "auto",
        device: str | torch.device = "cpu",
        threads: int = 0,
        prefetch: int = 2,
        host_memory_gib: float = 8.0,
        max_bad_clips: int | None = 100,
        captions: Captions | None = None,
        epochs: int = 0,
    ):
        self.shard_set, self.plan = shard_set, plan
        self.device = torch.device(device)
        self._max_bad_clips = max_bad_clips
        self.spec = PictureSpec(
            frames=plan.frames,
            size=plan.size,
            view_grid=plan.view_grid,
            cuts_window=plan.cuts_window,
            pads_black=plan.pads_black,
            mean=pictures.mean,
            std=pictures.std,
            antialias=pictures.antialias,
            half=pictures.half,
        )
        execution = Execution(
            decoder="host",
            device_id=self.device.index or 0 if self.device.type == "cuda" else None,
            batch_size=plan.largest_batch,
            threads=threads or len(os.sched_getaffinity(0)),
            prefetch=prefetch,
        )
        self._reader = ClipReader(shard_set, threads=execution.threads)
        trial = Trial(
            shard_set=shard_set,
            reader=self._reader,
            spec=self.spec,
            plan=plan,
            execution=execution,
            host_memory_gib=host_memory_gib,
        )
        self.decoder = choose_decoder(decoder, shard_set=shard_set, device=self.device, trial=trial)
        execution = replace(execution, decoder=self.decoder)
        # One runner serves all epochs, so that the memory of batches is used again.
        self._runner = build_runner(self._reader, self.spec, execution, host_memory_gib=host_memory_gib)
        self._clip_ids = shard_set.clips.column("clip_id")
        self.captions = captions or Captions(shard_set)
        self._label_sets = shard_set.clips.column("labels")
        self._labels = {name: Column(shard_set.clips, name, null=-1) for name in LABELS}
        self._epoch, self._step = 0, 0
        self._epochs = epochs if self.decoder == "host" else 0
        self._run: _Run | None = None  # what the epoch before has begun
        self.wait_seconds = 0.0  # seconds that callers waited in next(), since the start
        self.bad_clips: list[BadClip] = []  # the bad clips of the current epoch on this rank

    def __len__(self) -> int:
        """The number of batches in an epoch on this rank."""
        return self.plan.steps

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of an epoch."""
        self._epoch, self._step, self.bad_clips = epoch, 0, []

    def state_dict(self) -> dict[str, int]:
        """The place of the next batch."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state_dict` was taken, with exactly the batches that would have followed."""
        if not 0 <= state["step"] <= len(self):
            raise LoaderError(f"step {state['step']} of a saved loader state: an epoch here has {len(self)} steps")
        self._epoch, self._step, self.bad_clips = state["epoch"], state["step"], []

    def __iter__(self) -> Iterator[VideoBatch]:
        """The batches from the current place to the end of the epoch. Each batch that is handed out moves the place."""
        if self._run is None or self._run.place != (self._epoch, self._step):
            self.close()
            self._run = self._begin()
        run, self._run = self._run, None
        try:
            while self._step < len(self):
                waited = time.perf_counter()
                made = next(run.results)
                batch = self._batch(made)
                self.wait_seconds += time.perf_counter() - waited
                self._step += 1
                self._count_bad_clips(made)
                yield batch
                del made, batch  # frees their memory before this waits for the next batch
            if self._epoch + 1 < self._epochs:
                self._run = replace(run, place=(self._epoch + 1, 0))
            else:
                assert next(run.results, None) is None
        finally:
            if self._run is None:
                run.close()

    def _begin(self) -> _Run:
        """A run from the current place on."""
        stop = max(self._epoch + 1, self._epochs)
        plans = self._reader.planned(self.plan, epoch=self._epoch, step=self._step, stop=stop)
        return _Run(plans, self._runner.run(plans, self.plan.instead), (self._epoch, self._step))

    def close(self) -> None:
        """End what the epoch before has begun of the next. The loader can be used again."""
        if self._run is not None:
            self._run.close()
            self._run = None

    def _batch(self, made: PictureBatch) -> VideoBatch:
        rows = np.array([plan.row for plan in made.plans], np.int64)
        words = [self.captions.of(row) for row in rows.tolist()]
        chosen = [choose(len(texts), plan.caption) for (texts, _), plan in zip(words, made.plans, strict=True)]
        return VideoBatch(
            video=self._video(made.pictures),
            rows=rows,
            positions=np.array([plan.position for plan in made.plans], np.int64),
            clip_ids=tuple(self._clip_ids[row].as_py() for row in rows.tolist()),
            labels=self._labels_of(rows.tolist()),
            label_sets=tuple(tuple(self._label_sets[row].as_py()) for row in rows.tolist()),
            narrations=tuple(texts for texts, _ in words),
            sources=tuple(sources for _, sources in words),
            chosen=np.array(chosen, np.int64),
            draws=np.array([plan.caption for plan in made.plans], np.float64),
        )

    def _labels_of(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Each kind of label, [B] int64. All of them move to a GPU at once, and nothing waits for it."""
        values = torch.tensor([[column[row] for row in rows] for column in self._labels.values()], dtype=torch.int64)
        if self.device.type == "cuda":
            values = values.pin_memory().to(self.device, non_blocking=True)
        return dict(zip(self._labels, values, strict=True))

    def _video(self, pictures: Any) -> torch.Tensor:
        """A view [B, V, C, T, H, W] of the buffer [B, K, S, T, C, H, W], without a copy."""
        if pictures is None:
            views = self.plan.view_grid[0] * self.plan.view_grid[1]
            shape = (0, views, 3, self.plan.frames, self.plan.size, self.plan.size)
            return torch.zeros(shape, dtype=torch.float16 if self.spec.half else torch.float32, device=self.device)
        return from_dlpack(pictures).flatten(1, 2).transpose(2, 3)

    def _count_bad_clips(self, made: PictureBatch) -> None:
        for plan, reason in made.bad:
            shard = f"shard-{self.shard_set.clips.column('shard')[plan.row].as_py():06d}.tar"
            name = self._clip_ids[plan.row].as_py()
            bad = BadClip(clip_id=name, shard=shard, reason=reason, position=plan.position, attempt=plan.attempt)
            self.bad_clips.append(bad)
            log.warning("%s: clip %s in %s is bad and is left out: %s", self.shard_set.path, name, shard, reason)
            if self._max_bad_clips is not None and plan.attempt == self.plan.substitutes:
                raise LoaderError(
                    f"{self.shard_set.path}: {plan.attempt + 1} clips in a row are bad, the last being {name} in "
                    f"{shard} ({reason}); the set or its storage is broken: make the shards again"
                )
        self.check_bad_clips(len(self.bad_clips))

    def check_bad_clips(self, count: int) -> None:
        """Raise LoaderError if `count` bad clips in an epoch are more than `max_bad_clips`."""
        if self._max_bad_clips is None or count <= self._max_bad_clips:
            return
        last = self.bad_clips[-1] if self.bad_clips else None
        which = f", the last being {last.clip_id} in {last.shard} ({last.reason})" if last else ", all on other ranks"
        raise LoaderError(
            f"{self.shard_set.path}: {count} clips of this epoch are bad{which}; make the shards again, "
            f"or allow more with data.max_bad_clips (now {self._max_bad_clips})"
        )
