"""ClipLoader: a shard set and a plan -> typed batches on the device.

    shard set --read bytes (threads)--> DALI pipeline        --[B,K,S,T,C,H,W]--> VideoBatch
    shard set --read, decode, draw (threads, no GPU)------------^

Reading runs a few batches ahead of decoding, and decoding a few ahead of the model. What CPU threads decode ahead is
bounded by bytes (`memory.batches_ahead`); encoded clips are small, and bounded by `prefetch`. The state of the loader
is two integers, (epoch, step): everything else follows from the plan.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.dlpack import from_dlpack

from lavila.data.host.decode import DecodeError, decode_frames
from lavila.data.host.runner import HELD, HostRunner
from lavila.data.memory import GIB, Work, batches_ahead
from lavila.data.pictures import (
    Execution,
    LoadedBatch,
    LoaderError,
    Payload,
    PictureSpec,
    choose_decoder,
)
from lavila.data.sizes import StoredSizes
from lavila.plan.plans import Plan
from lavila.records import ClipPlan, VideoBatch
from lavila.shards.captions import Captions, choose
from lavila.shards.format import DamagedClip, shard_name
from lavila.shards.mapped import Column
from lavila.shards.reader import ShardSet

log = logging.getLogger(__name__)

LABELS = ("verb", "noun", "action")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """How decoded frames become model input."""

    mean: tuple[float, float, float]  # R, G, B on 0..255
    std: tuple[float, float, float]  # R, G, B on 0..255
    antialias: bool = False  # low-pass before shrinking
    half: bool = False  # float16 instead of float32


@dataclass(frozen=True, kw_only=True)
class BadClip:
    """A clip that could not be decoded."""

    clip_id: str
    shard: str  # file name of the tar it lies in
    reason: str


def clip_sizes(shard_set: ShardSet) -> StoredSizes:
    """What a plan needs to know of the clips of a shard set. Clips in quarantine are left out."""
    return StoredSizes(shard_set)


class ClipLoader:
    """Iterates over the batches of an epoch.

    Example:
        >>> shards = open_shard_set("data/sample/shards/val")
        >>> plan = ViewPlan(clip_sizes(shards), frames=FrameChoice(frames=8), views=ViewChoice(size=64),
        ...                 batch_size=4, ranks=Ranks())
        >>> for batch in ClipLoader(shards, plan, pictures=Pictures(mean=(0, 0, 0), std=(255, 255, 255))):
        ...     batch.video.shape  # [4, 3, 3, 8, 64, 64]

    Args:
        shard_set: where the clips lie.
        plan: which clips, frames and crops (`TrainingPlan` or `ViewPlan`).
        pictures: normalisation and number type.
        decoder: auto, nvdec, dali_cpu or host.
        device: where the batches go.
        threads: CPU threads for reading and decoding; 0 = all cores of this process.
        prefetch: batches in flight.
        host_memory_gib: main memory for pictures that CPU threads decode (decoder host), GiB. It sets how many batches
            are made ahead; one always is, and a warning says where that takes more.
        max_bad_clips: an epoch with more undecodable clips than this stops. The loader counts its own rank's; whoever
            knows the sum over all ranks gives it to `check_bad_clips`.
        captions: the clips' narrations; None = those that the shard set came with.

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
        max_bad_clips: int = 100,
        captions: Captions | None = None,
    ):
        self.shard_set, self.plan = shard_set, plan
        self.device = torch.device(device)
        self.decoder = choose_decoder(decoder, codec=shard_set.codec, device=self.device)
        self._threads = threads or len(os.sched_getaffinity(0))
        self._prefetch, self._max_bad_clips = prefetch, max_bad_clips
        self.spec = PictureSpec(  # what is the same for every clip
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
        self._host_runner: HostRunner | None = None
        self._ahead = prefetch + 1  # batches that are read before DALI asks for them
        if self.decoder == "host" and self.device.type == "cpu":
            work = self._work(HostRunner.clip_bytes(self.spec), held=HELD)
            self._ahead = batches_ahead(work, memory_gib=host_memory_gib)
            # One for all epochs: it holds on to the memory of batches.
            self._host_runner = HostRunner(self.spec, self._read, threads=self._threads, ahead=self._ahead)
        elif self.decoder == "host":
            # DALI holds one batch more than it prefetches, each as we hand it over and as its own copy.
            clip_bytes = self._largest_picture() * self.spec.view_grid[0] * self.spec.frames
            fit = int(host_memory_gib * GIB) // max(clip_bytes * plan.largest_batch, 1)
            self._prefetch = max(1, min(prefetch, fit // 4 - 1))
            work = self._work(clip_bytes, held=2 * (self._prefetch + 1))
            self._ahead = batches_ahead(work, memory_gib=host_memory_gib)
        self._clip_ids = shard_set.clips.column("clip_id")
        self.captions = captions or Captions(shard_set)
        self._label_sets = shard_set.clips.column("labels")
        self._labels = {name: Column(shard_set.clips, name, null=-1) for name in LABELS}
        self._not_ahead: set[int | None] = set()  # numbers of the errors of reading ahead that were logged
        self._epoch, self._step = 0, 0
        self.wait_seconds = 0.0  # time callers spent waiting in next(), since the start
        self.bad_clips: list[BadClip] = []  # of the current epoch, on this rank

    def _work(self, clip_bytes: int, *, held: int) -> Work:
        return Work(
            batch_size=self.plan.largest_batch,
            batch_bytes=self.plan.largest_batch * clip_bytes,
            threads=self._threads,
            prefetch=self._prefetch,
            held=held,
        )

    def _largest_picture(self) -> int:
        """Bytes of the largest decoded frame of the set."""
        clips = self.shard_set.clips
        pixels = pc.multiply(*(clips.column(name).cast(pa.int64()) for name in ("height", "width")))
        return 3 * int(pc.max(pixels).as_py() or 0)

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        return self.plan.steps

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of an epoch."""
        self._epoch, self._step, self.bad_clips = epoch, 0, []

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from where `state_dict` was taken, with the very batches that would have followed."""
        if not 0 <= state["step"] <= len(self):
            raise LoaderError(f"step {state['step']} of a saved loader state: an epoch here has {len(self)} steps")
        self._epoch, self._step, self.bad_clips = state["epoch"], state["step"], []

    def __iter__(self) -> Iterator[VideoBatch]:
        """The batches from the current place to the end of the epoch. The place moves with each batch handed out."""
        results = self._results()
        try:
            while True:
                waited = time.perf_counter()
                try:
                    loaded, pictures = next(results)
                except StopIteration:
                    return
                batch = self._batch(loaded, pictures)
                self.wait_seconds += time.perf_counter() - waited
                self._step += 1
                self._count_bad_clips(loaded)
                yield batch
        finally:
            results.close()

    def _results(self) -> Generator[tuple[LoadedBatch, Any]]:
        """The batches of the epoch from the current place on, with their pictures."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="clip-reader") as pool:
            plans = self._planned(pool)
            if self._host_runner is not None:
                yield from self._host_runner.run(plans)
                return
            execution = Execution(
                decoder=self.decoder,
                device_id=self.device.index or 0 if self.device.type == "cuda" else None,
                batch_size=self.plan.largest_batch,
                threads=self._threads,
                prefetch=self._prefetch,
            )
            from lavila.data.dali_pipelines.runner import PipelineRunner  # the other way needs no DALI

            yield from PipelineRunner(self.spec, execution).run(self._loaded(pool, plans))

    def _planned(self, pool: ThreadPoolExecutor) -> Iterator[list[ClipPlan]]:
        """The clips of each step from the current place on; has read what the plan wants read ahead of its turn."""
        epoch, asked = self._epoch, deque[tuple[int, Future[None]]]()
        for step in range(self._step, len(self)):
            for first, last in self.plan.ahead(epoch, step):
                asked.append((first, pool.submit(self.shard_set.read_ahead, first, last)))
            while asked and asked[0][1].done():
                self._check_read_ahead(*asked.popleft())
            yield self.plan.batch(epoch, step)
        for one in asked:
            self._check_read_ahead(*one)

    def _check_read_ahead(self, row: int, done: Future[None]) -> None:
        """Storage that only reads ahead badly is told once for each error; a tar that cannot be used ends the run."""
        try:
            done.result()
        except OSError as error:
            if error.errno not in self._not_ahead:
                self._not_ahead.add(error.errno)
                log.warning(
                    "%s: cannot be read ahead (%s); its clips are read when their turn comes",
                    self.shard_set.path / shard_name(self.shard_set.clips.column("shard")[row].as_py()),
                    error.strerror,
                )

    def _loaded(self, pool: ThreadPoolExecutor, batches: Iterator[list[ClipPlan]]) -> Iterator[LoadedBatch]:
        """The batches with their bytes, read (and host-decoded) a few batches ahead."""
        ahead: deque[tuple[list[ClipPlan], list[Future[Any]]]] = deque()
        while True:
            while len(ahead) < self._ahead and (plans := next(batches, None)) is not None:
                ahead.append((plans, [pool.submit(self._payload, plan) for plan in plans]))
            if not ahead:
                return
            plans, futures = ahead.popleft()
            results = [(plan, future.result()) for plan, future in zip(plans, futures, strict=True)]
            good = [(plan, result) for plan, result in results if not isinstance(result, DecodeError)]
            yield LoadedBatch(
                plans=tuple(plan for plan, _ in good),
                payloads=tuple(payload for _, payload in good),
                bad=tuple((plan, str(result)) for plan, result in results if isinstance(result, DecodeError)),
            )

    def _read(self, plan: ClipPlan) -> tuple[bytes, npt.NDArray[np.int32]]:
        try:
            return self.shard_set.read_frames(plan.row, plan.distinct_frames())
        except DamagedClip as error:
            raise DecodeError(str(error)) from error  # a bad clip, like one that does not decode

    def _payload(self, plan: ClipPlan) -> Payload | DecodeError:
        try:
            data, frames = self._read(plan)
            if self.decoder != "host":
                return Payload(data=np.frombuffer(data, np.uint8), frames=frames)
            return Payload(data=decode_frames(data, frames), frames=frames)
        except DecodeError as error:
            return error

    def _batch(self, loaded: LoadedBatch, pictures: Any) -> VideoBatch:
        rows = np.array([plan.row for plan in loaded.plans], np.int64)
        words = [self.captions.of(row) for row in rows.tolist()]
        chosen = [choose(len(texts), plan.caption) for (texts, _), plan in zip(words, loaded.plans, strict=True)]
        return VideoBatch(
            video=self._video(pictures),
            rows=rows,
            positions=np.array([plan.position for plan in loaded.plans], np.int64),
            clip_ids=tuple(self._clip_ids[row].as_py() for row in rows.tolist()),
            labels={
                name: torch.tensor([values[row] for row in rows.tolist()], dtype=torch.int64).to(self.device)
                for name, values in self._labels.items()
            },
            label_sets=tuple(tuple(self._label_sets[row].as_py()) for row in rows.tolist()),
            narrations=tuple(texts for texts, _ in words),
            sources=tuple(sources for _, sources in words),
            chosen=np.array(chosen, np.int64),
        )

    def _video(self, pictures: Any) -> torch.Tensor:
        """[B, V, C, T, H, W] without a copy: the buffer is [B, K, S, T, C, H, W]."""
        if pictures is None:
            views = self.plan.view_grid[0] * self.plan.view_grid[1]
            shape = (0, views, 3, self.plan.frames, self.plan.size, self.plan.size)
            return torch.zeros(shape, dtype=torch.float16 if self.spec.half else torch.float32, device=self.device)
        return from_dlpack(pictures).flatten(1, 2).transpose(2, 3)

    def _count_bad_clips(self, loaded: LoadedBatch) -> None:
        for plan, reason in loaded.bad:
            shard = f"shard-{self.shard_set.clips.column('shard')[plan.row].as_py():06d}.tar"
            bad = BadClip(clip_id=self._clip_ids[plan.row].as_py(), shard=shard, reason=reason)
            self.bad_clips.append(bad)
            log.warning(
                "%s: clip %s in %s cannot be decoded and is left out: %s",
                self.shard_set.path,
                bad.clip_id,
                shard,
                reason,
            )
        self.check_bad_clips(len(self.bad_clips))

    def check_bad_clips(self, count: int) -> None:
        """Raise LoaderError where so many clips of an epoch cannot be decoded and fewer are allowed."""
        if count <= self._max_bad_clips:
            return
        last = self.bad_clips[-1] if self.bad_clips else None
        told = f", the last being {last.clip_id} in {last.shard} ({last.reason})" if last else ", told by other ranks"
        raise LoaderError(
            f"{self.shard_set.path}: {count} clips of this epoch cannot be decoded{told}; make the shards again, "
            f"or allow more with data.max_bad_clips (now {self._max_bad_clips})"
        )
