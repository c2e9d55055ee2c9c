"""Reads the frames that plans name from a shard set, and stretches of the tars before their clips are due."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor

from lavila.data.host.decode import DecodeError
from lavila.data.streams.boxes import OtherForm, TableError
from lavila.data.streams.headers import pictures_in
from lavila.data.streams.mp4 import read_mp4
from lavila.data.streams.reduction import reduced
from lavila.plan.plans import Plan
from lavila.records import ClipPlan, Frames
from lavila.shards.format import DamagedClip, UnreadableClip, shard_name
from lavila.shards.reader import ShardSet

log = logging.getLogger(__name__)

Read = Callable[[ClipPlan], tuple[bytes, Frames]]
"""Plan -> a video, and the numbers in it of the plan's distinct frames."""


class ClipReader:
    """Reads planned clips of a shard set. Any thread may call it."""

    def __init__(self, shard_set: ShardSet, *, threads: int) -> None:
        """`threads`: number of threads that read ahead."""
        self._shard_set, self._threads = shard_set, threads
        self._not_ahead: set[int | None] = set()  # error numbers (errno) of reading ahead that were logged

    @property
    def codec(self) -> str:
        """vp9, h264, hevc or av1."""
        return self._shard_set.codec

    def read(self, plan: ClipPlan) -> tuple[bytes, Frames]:
        """A video with the plan's distinct frames, and their ascending numbers in it, [U].

        Raises:
            DecodeError: the bytes cannot be read, or are not those that were stored. So the clip counts as one that
                cannot be decoded.
            ShardSetError: the frames are not stored.
        """
        try:
            return self._shard_set.read_frames(plan.row, plan.distinct_frames())
        except (DamagedClip, UnreadableClip) as error:
            raise DecodeError(str(error)) from error

    def read_or_reason(self, plan: ClipPlan) -> tuple[bytes, Frames] | str:
        """As `read`, with the reason in place of DecodeError."""
        try:
            return self.read(plan)
        except DecodeError as error:
            return str(error)

    def read_needed(self, plan: ClipPlan) -> tuple[bytes, Frames]:
        """As `read`, without the packets that the frames do not need: for a decoder that decodes all it is given.

        Raises as `read`, and DecodeError for a video whose tables do not fit its bytes.
        """
        data, frames = self.read(plan)
        try:
            stream = reduced(data, frames)
        except TableError as error:
            raise DecodeError(str(error)) from error
        return stream.data, stream.frames

    def read_for_nvdec(self, plan: ClipPlan) -> tuple[bytes, Frames]:
        """As `read_needed`, for a decoder that counts every picture that it decodes as shown.

        Raises as `read_needed`, and DecodeError for a video in which such a count could be wrong.
        """
        data, frames = self.read_needed(plan)
        try:
            packets = read_mp4(data).packets
        except OtherForm as other:
            raise DecodeError(f"NVDEC may count other frames in it: not as our encoder writes it ({other})") from other
        hidden = pictures_in(packets) - len(packets.sizes)
        if hidden:
            raise DecodeError(f"NVDEC would count its {hidden} hidden frames as shown; use data.decoder=host")
        return data, frames

    def planned(self, plan: Plan, *, epoch: int, step: int, stop: int) -> Generator[list[ClipPlan]]:
        """The clips of each step from `step` of an epoch on, up to the end of the epoch before `stop`.

        It also reads ahead the stretches that the plan names. A caller that stops early must close it.

        Storage that cannot read ahead gives a warning. A tar that cannot be used is named when its clips are read.
        """
        asked: deque[tuple[int, Future[None]]] = deque()
        try:
            with ThreadPoolExecutor(self._threads, thread_name_prefix="read-ahead") as pool:
                for current in range(step, (stop - epoch) * plan.steps):
                    later, place = divmod(current, plan.steps)
                    for first, last in plan.ahead(epoch + later, place):
                        asked.append((first, pool.submit(self._shard_set.read_ahead, first, last)))
                    while asked and asked[0][1].done():
                        self._check_read_ahead(*asked.popleft())
                    yield plan.batch(epoch + later, place)
                for one in asked:
                    self._check_read_ahead(*one)
        finally:
            self._shard_set.rest()

    def _check_read_ahead(self, row: int, done: Future[None]) -> None:
        """Warn once for each error number of storage that cannot read ahead."""
        try:
            done.result()
        except UnreadableClip:
            pass  # its clips are bad, which is found when their turn comes
        except OSError as error:
            if error.errno not in self._not_ahead:
                self._not_ahead.add(error.errno)
                log.warning(
                    "%s: cannot be read ahead (%s); its clips are read when their turn comes",
                    self._shard_set.path / shard_name(self._shard_set.clips.column("shard")[row].as_py()),
                    error.strerror,
                )
