"""What the times in a file say: the rate of its film, whether its clock ever jumps, and where its last frame ends.

Most containers have a table of all frames, or were written by one muxer with one clock. Others are read through once,
without decoding: pieces that were joined end to end, and streams without any table. The result is kept for the process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from lavila.ingest.broadcast import begins_soundly
from lavila.ingest.h264 import PictureCounter
from lavila.ingest.matroska import matroska_end
from lavila.ingest.video_files import (
    Deadline,
    EncodeError,
    Limits,
    Part,
    allowed_rate,
    frame_rate,
    is_avi_cut_short,
    open_video,
    seconds_of_tag,
)
from lavila.libav import DAMAGE, reason
from lavila.records import Ints

# A frame that stands so much longer than the others is a pause: it says nothing of the rate of the film.
PAUSE_SECONDS, PAUSE_FRAMES = 1, 10
FALSE_RATE = Fraction(3, 2)  # a stated rate that is wrong by this factor is not that of the film
MOST_FRAMES_WITHOUT_PLACE = Fraction(3, 2)  # by so many frames a table may end early through rounding
EXACT_RATE = Fraction(1, 1000)  # mean and nominal rate of film without a pause agree this well
NEAR_RATE = 0.005  # a measured rate so near to a usual one is that
USUAL_RATES = [
    *(Fraction(1000 * rate, 1001) for rate in (24, 30, 48, 60, 120)),
    *map(Fraction, (10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120)),
]
REGULAR_SHARE, NEAR_FRAME = 0.9, 0.25  # of the distances; by so much of a frame these may differ from one
CLOCK_GAP_SECONDS = 10  # FFmpeg takes a longer gap in a broadcast stream for another clock, too
MOST_REORDERED = 16  # the most frames by which H.264 and HEVC decode a frame early
FEW_GAPS = 0.1  # share of numbers that may be missing where an encoder numbers its pictures as the standard says
HEAD_PACKETS = 256  # packets that show the rate of a file, and whether it has times of presentation
CLOCKED = ("mpegts", "mpeg", "ogg")  # containers whose clock may begin anew
KNOWN_FILES = 4096  # files whose times are kept


@dataclass(frozen=True, kw_only=True)
class FileTimes:
    """The times of one file."""

    fps: Fraction  # frames per second of the film
    stated: bool = True  # whether the header states `fps`; else it is estimated from the times of the frames
    by_order: bool = False  # whether the frames have no times of presentation, only an order
    keyframes: tuple[int, ...] = ()  # decoding times of the keyframes, for `by_order`
    last_dts: int | None = None  # decoding time of the last packet, if a table lists it
    hold: Fraction | None = None  # the seconds for which the last frame is shown, by that table
    first: int | None = None  # time of the first frame in ticks, if the header states another
    stop: Fraction | None = None  # when the last frame ends, in seconds from the first, if there is no such table
    suspect: frozenset[int] = frozenset()  # times of frames of which the packet before says that a part may be lost
    # Times in ticks by what lists frames apart from them: the keyframes in Matroska, all frames in AVI.
    indexed: Sequence[int] = ()
    sizes: Mapping[int, int] = field(default_factory=dict)  # bytes of each frame by its time, by that index; AVI only
    clusters: tuple[int, ...] = ()  # the bytes at which that index finds them; Matroska only
    # Whether its pictures are numbered as the standard says, at its head; H.264 only. None = `is_numbered` reads it.
    numbered: bool | None = None
    regular: bool = False  # whether nearly all frames have the same distance; only where the file is read through


_known: dict[tuple[str, int, int], FileTimes | EncodeError] = {}


def is_numbered(part: Part, container: Any, stream: Any, limits: Limits, deadline: Deadline) -> bool:
    """Whether the pictures of a file are numbered as the standard says, at its head. Reads nothing of `container`."""
    times = file_times(part, container, stream, limits, deadline)
    if times.numbered is None:
        head = _Reading(part, container, stream, limits, deadline).packets(HEAD_PACKETS)
        times = _known[_key(part)] = replace(times, numbered=head.numbered)
    return bool(times.numbered)


def _key(part: Part) -> tuple[str, int, int]:
    status = part.path.stat()
    return str(part.path), status.st_size, status.st_mtime_ns


def file_times(part: Part, container: Any, stream: Any, limits: Limits, deadline: Deadline) -> FileTimes:
    """The times of an open file. Reads nothing of `container`. Raises EncodeError if the clock of the file jumps."""
    key = _key(part)
    if key not in _known:
        if len(_known) >= KNOWN_FILES:
            _known.clear()
        try:
            _known[key] = _Reading(part, container, stream, limits, deadline).times()
        except EncodeError as error:
            _known[key] = error
    found = _known[key]
    if isinstance(found, EncodeError):
        raise EncodeError(str(found))
    return found


@dataclass(frozen=True)
class _Packets:
    """The packets of a stream, in decoding order. Of frames whose two fields are packets, the first ones."""

    shown: Ints  # when each is shown, in ticks; where that is missing, when it is decoded
    dts: Ints  # when each is decoded
    keys: Ints  # whether each is a keyframe
    stop: int  # when the last one ends, in ticks
    by_order: bool  # whether times of presentation are missing
    fields: bool  # whether there are frames whose two fields are packets
    numbered: bool  # whether nearly all numbers of pictures follow each other
    laced: bool  # whether there are packets without a time behind another one at the same place; Matroska only
    first_size: int  # bytes of the first one
    first_key: int  # the byte at which the first keyframe begins; without one, the first packet
    suspect: frozenset[int]  # times of presentation of packets behind one that says that something lacks


@dataclass(frozen=True)
class _Reading:
    part: Part
    container: Any
    stream: Any
    limits: Limits
    deadline: Deadline

    def times(self) -> FileTimes:
        kind = self.container.format.name
        if kind.startswith("mov") and self.stream.frames:
            return self._of_table()
        if kind == "avi":
            return self._of_avi()
        if kind.startswith("matroska"):
            end, size = matroska_end(self.part.path), self.part.path.stat().st_size
            if end is not None and end >= size:  # one muxer wrote one clock
                return self._of_head(whole=end == size)
        return self._of_all(self.packets(None))

    def _of_table(self) -> FileTimes:
        """An mp4 whose table lists all frames. `average_rate` counts a pause; `base_rate` is that of the ticks."""
        stream, tick = self.stream, self.stream.time_base
        entries = stream.index_entries
        stated = frame_rate(self.part.name, stream)
        base = stream.base_rate
        times = FileTimes(fps=stated)
        if len(entries):
            last = entries[-1].timestamp
            ticks = 0 if stream.duration is None else entries[0].timestamp + stream.duration - last
            # An edit list may leave frames out at the end, and then FFmpeg shortens the duration, too.
            early = stream.duration is None or ticks * tick * stated > MOST_FRAMES_WITHOUT_PLACE
            if len(entries) < stream.frames and early:
                raise EncodeError(
                    f"{self.part.name}: its table lists {stream.frames} frames and the places of {len(entries)}, so it "
                    "is damaged; fetch the file again"
                )
            times = FileTimes(fps=stated, last_dts=last, hold=Fraction(ticks * tick))
        if len(entries) > 1 and not (base and abs(stated / base - 1) <= EXACT_RATE):
            stamps = np.array([entry.timestamp for entry in entries], np.int64)
            film, pause = film_rate(stamps, tick, last=ticks)
            if pause and film is not None:
                times = replace(times, fps=film, stated=False)
        if (counter := self._counter(stream)) is not None and counter.may_have_fields:
            head = self.packets(HEAD_PACKETS)
            if head.fields:  # the table counts fields
                fps, is_stated = self._rate(head)
                times = replace(times, fps=fps, stated=is_stated)
        # With times of presentation, the first frame of a stream with B-frames is decoded before its time.
        if stream.codec_context.has_b_frames and len(entries) and entries[0].timestamp == (stream.start_time or 0):
            head = self.packets(HEAD_PACKETS)
            if head.by_order or (head.shown == head.dts).all():
                times = replace(times, by_order=True, keyframes=_keyframes(entries))
        return times

    def _of_avi(self) -> FileTimes:
        """An AVI counts its frames in decoding order, and has no times of presentation.

        So a frame that is missing shifts all behind it. A file that is cut short lacks only the last ones.
        """
        stream = self.stream
        entries, keyframes = stream.index_entries, _keyframes(stream.index_entries)
        whole = len(entries) == stream.frames
        head = self.packets(HEAD_PACKETS if whole else None)
        if len(entries) and entries[0].is_keyframe and len(head.keys) and not head.keys[0]:
            raise EncodeError(
                f"{self.part.name}: its index begins with a keyframe that is not there, so all that follows would be "
                "early; fetch the file again"
            )
        if whole and head.first_size != entries[0].size:  # the index is not that of the file, or the frame is lost
            head, whole = self.packets(None), False
        if not whole and stream.frames and not is_avi_cut_short(self.part.path):
            keyframes = ()  # the index is not that of the file
            count = int(head.dts[-1] - head.dts[0]) + 1 if len(head.dts) else 0
            if count != stream.frames:
                raise EncodeError(
                    f"{self.part.name}: holds {count} frames, its header says {stream.frames}; their times follow from "
                    "their order, and nothing says where frames are missing; fetch the file again"
                )
        indexed: Sequence[int] = tuple(entry.timestamp for entry in entries if entry.size) if keyframes else ()
        if not whole and stream.frames and not keyframes and len(head.dts):
            indexed = range(int(head.dts[0]), int(head.dts[-1]) + 1)  # nothing says that one is empty on purpose
        return FileTimes(
            fps=frame_rate(self.part.name, stream),
            by_order=True,
            keyframes=keyframes,
            first=int(head.dts[0]) if len(head.dts) else None,
            indexed=indexed,
            sizes={entry.timestamp: entry.size for entry in entries} if keyframes else {},
            numbered=head.numbered,
        )

    def _of_head(self, *, whole: bool) -> FileTimes:
        stop = seconds_of_tag(self.stream) if whole else None
        head = self.packets(HEAD_PACKETS)
        fps, stated = self._rate(head)
        if not stated:
            fps, stated = self._rate(self.packets(None))
        indexed, clusters = self._indexed()
        return FileTimes(
            fps=fps,
            stated=stated,
            by_order=head.by_order,
            stop=stop,
            indexed=indexed,
            clusters=clusters,
            numbered=head.numbered,
        )

    def _indexed(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The times and the places of the keyframes, by the index, both ascending."""
        container, stream = open_video(self.part, self.limits, self.deadline)
        try:
            container.seek(stream.start_time or 0, stream=stream)  # with the first seek, FFmpeg reads the index
            entries = list(stream.index_entries)
            return tuple(sorted(one.timestamp for one in entries)), tuple(sorted({one.pos for one in entries}))
        except DAMAGE:
            return (), ()
        finally:
            container.close()

    def _of_all(self, packets: _Packets) -> FileTimes:
        tick = self.stream.time_base
        clocked = self.container.format.name in CLOCKED
        dts = None if self.container.format.name.startswith("matroska") else packets.dts
        jump = clock_jump(packets.shown, packets.keys, dts=dts, most=CLOCK_GAP_SECONDS / tick if clocked else None)
        if jump is not None:
            before, after = (float((stamp - packets.shown[0]) * tick) for stamp in jump)
            raise EncodeError(
                f"{self.part.name}: its clock jumps from {before:.2f} s to {after:.2f} s, as in files that were joined "
                "end to end; give it one clock, for example with ffmpeg -i FILE -c copy NEW.mp4"
            )
        if not begins_soundly(self.part.path, packets.first_key, kind=self.container.format.name):
            raise EncodeError(
                f"{self.part.name}: damaged before its first keyframe, so nothing says when its first frame was shown; "
                "fetch it again, or give it a sound beginning, for example with ffmpeg -i FILE -c copy NEW.mp4"
            )
        fps, stated = self._rate(packets)
        stop = Fraction((packets.stop - int(packets.shown.min())) * tick) if len(packets.shown) else None
        regular = is_regular(packets.shown, fps * tick)
        return FileTimes(
            fps=fps,
            stated=stated,
            by_order=packets.by_order,
            stop=stop,
            regular=regular,
            suspect=packets.suspect,
            numbered=packets.numbered,
        )

    def _rate(self, packets: _Packets) -> tuple[Fraction, bool]:
        """Frames per second, and whether the header states them."""
        if packets.laced and self.container.format.name.startswith("matroska"):
            raise EncodeError(
                f"{self.part.name}: its blocks hold several frames each (lacing) and it states no DefaultDuration, so "
                "these frames have no times; remux it from its source, without lacing"
            )
        measured, _ = film_rate(packets.shown, self.stream.time_base)
        stated = self.stream.average_rate
        if measured is None or (stated and 1 / FALSE_RATE <= measured / stated <= FALSE_RATE):
            return frame_rate(self.part.name, self.stream), True
        return allowed_rate(self.part.name, measured), False

    @staticmethod
    def _counter(stream: Any) -> PictureCounter | None:
        context = stream.codec_context
        return PictureCounter(bytes(context.extradata or b"")) if context.name == "h264" else None

    def packets(self, most: int | None) -> _Packets:
        """The first `most` packets; None = all. Opens the file anew."""
        container, stream = open_video(self.part, self.limits, self.deadline)
        counter, fields, flagged = self._counter(stream), False, False
        counted, gaps = 0, 0
        suspect: set[int] = set()
        first, first_key, first_size = 0, None, 0
        laced, last_pos = False, None
        shown: list[int] = []
        dts, keys, untimed, stop = [], [], 0, 0
        try:
            for packet in container.demux(stream):
                self.deadline.check()
                decoded = packet.pts if packet.dts is None else packet.dts
                laced |= decoded is None and packet.size > 0 and packet.pos is not None and packet.pos == last_pos
                last_pos = packet.pos
                if decoded is None or not packet.size:
                    continue
                if flagged and packet.pts is not None:
                    suspect.add(packet.pts)
                flagged = packet.is_corrupt
                if counter is not None:
                    place = counter.place(bytes(packet))
                    if place is not None and place.second_field:
                        fields = True
                        continue
                    counted += place is not None
                    gaps += place is not None and place.missing
                    if len(shown) == HEAD_PACKETS and not fields:  # so there will be none
                        counter = None
                untimed += packet.pts is None
                shown.append(decoded if packet.pts is None else packet.pts)
                dts.append(decoded)
                keys.append(packet.is_keyframe)
                if len(shown) == 1:
                    first, first_size = packet.pos or 0, packet.size
                if first_key is None and packet.is_keyframe:
                    first_key = packet.pos
                stop = max(stop, shown[-1] + (packet.duration or 0))
                if len(shown) == most:
                    break
        except DAMAGE as error:
            if not shown:
                raise EncodeError(f"{self.part.name}: damaged at its start ({reason(error)})") from error
        finally:
            container.close()
        by_order = untimed > len(shown) / 2 and bool(stream.codec_context.has_b_frames)
        arrays = np.array(shown, np.int64), np.array(dts, np.int64), np.array(keys, bool)
        return _Packets(
            *arrays,
            stop=stop,
            by_order=by_order,
            fields=fields,
            numbered=counted > 0 and gaps <= FEW_GAPS * counted,
            laced=laced,
            first_size=first_size,
            first_key=first if first_key is None else first_key,
            suspect=frozenset(suspect),
        )


def _keyframes(entries: Sequence[Any]) -> tuple[int, ...]:
    return tuple(entry.timestamp for entry in entries if entry.is_keyframe)


def is_regular(stamps: Ints, frames_per_tick: Fraction) -> bool:
    """Whether nearly all distances between frames are one frame, but for rounding."""
    distances = np.diff(np.unique(stamps)) * float(frames_per_tick)
    return len(distances) > 0 and bool(np.mean(np.abs(distances - 1) < NEAR_FRAME) >= REGULAR_SHARE)


def film_rate(stamps: Ints, tick: Fraction, *, last: int | None = None) -> tuple[Fraction | None, bool]:
    """The frames per second of the film between its pauses, and whether there is a pause.

    `stamps`: the times of all frames in ticks of `tick` seconds; `last`: how long the last one is shown, in ticks.
    """
    ordered = np.unique(stamps)
    distances: Ints = ordered[1:] - ordered[:-1]
    if not len(distances):
        return None, False
    longest = max(float(PAUSE_SECONDS / tick), PAUSE_FRAMES * float(np.median(distances)))
    moving = distances[np.less_equal(distances, longest)]
    pause = len(moving) < len(distances) or (last is not None and last > longest)
    rate = len(moving) / (int(moving.sum()) * tick)
    near = min(USUAL_RATES, key=lambda usual: abs(usual / rate - 1))
    return (near if abs(near / rate - 1) <= NEAR_RATE else rate.limit_denominator(100)), pause


def clock_jump(shown: Ints, keys: Ints, *, dts: Ints | None, most: Fraction | None) -> tuple[int, int] | None:
    """The first place where the clock of a file jumps: the time before it, and the time after it.

    Frames are decoded in another order than they are shown, but by a few places at most, and all before a keyframe are
    shown before it. `shown`, `keys`: time and kind of each packet in decoding order; `dts`: when each is decoded, if
    the container says it. `most`: the largest step ahead that is no jump.
    """
    highest = np.maximum.accumulate(shown)
    early = np.r_[np.full(min(MOST_REORDERED + 1, len(shown)), shown[:1].min(initial=0)), highest][: len(shown)]
    jumps = shown < np.where(keys, np.r_[shown[:1], highest[:-1]], early)
    if dts is not None:
        steps = np.diff(dts, prepend=dts[:1])
        jumps |= steps < 0
        if most is not None:
            jumps |= steps > float(most)
    place = int(np.argmax(jumps)) if jumps.any() else None
    return None if place is None else (int(highest[place - 1]), int(shown[place]))
