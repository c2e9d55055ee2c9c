"""Decodes the frames of a file in display order, each with its time and with whether its picture can be trusted.

FFmpeg conceals damage: it makes up what is missing, and flags that frame alone. Frames that refer to it come without a
flag, though they show the same made-up pixels. Here they count as damaged, too, up to the next frame at which decoding
can begin.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, pairwise
from typing import Any, Protocol

from av.video.frame import PictureType

from lavila.ingest.h264 import PictureCounter, Place
from lavila.ingest.hevc import HevcCounter
from lavila.ingest.video_files import Deadline, EncodeError, Limits, check_size
from lavila.ingest.vpx import stated_sizes, without_modes
from lavila.libav import VPX_DECODERS, careful_decoder

MOST_HELD = 16  # the most frames that H.264 and HEVC hold back to reorder them
REMEMBERED = 4 * MOST_HELD  # numbers of damaged frames, and of starts, that are kept
# MPEG-4 has packets that mean "the picture before, again"; these hold little more than a header.
REPEAT_BYTES = 16
# So many zeros show that a part of a packet was never written: arithmetic code has none. In film and in pictures of one
# colour, by five codecs, there were 8 in a row at most. Zeros at the end may be padding. In VP8 the modes of the blocks
# come first, and those of strong noise have 73 zeros in a row: they are not looked at.
HOLE = bytes(32)
# Decoders that show pictures from before the first keyframe, as changes of nothing.
WITHOUT_START = ("mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "h263", "flv1")


def picture_counter(context: Any) -> PictureCounter | HevcCounter | None:
    """What follows the pictures of a stream by their headers; None for codecs whose headers do not number them."""
    extradata = bytes(context.extradata or b"")
    if context.name == "h264":
        return PictureCounter(extradata)
    return HevcCounter(extradata) if context.name == "hevc" else None


class Structure(Protocol):
    """What a container shows of damage between the packets that a demuxer finds in it."""

    skipped: bool  # whether a part before the one of `hold`, that nobody asked for, is damaged

    def hold(self, at: int) -> bool:
        """Whether the part of the file around byte `at` is as it was written."""
        ...

    def breaks_behind(self, pos: int, size: int, *, before: int | None = None) -> bool:
        """Whether something unknown follows the packet of `size` bytes at byte `pos`, up to byte `before` if given."""
        ...


class _Tag:
    """What a packet hands to its frame. PyAV finds it by its address, so each packet needs an object for itself."""

    __slots__ = ("aspect", "key", "number", "place")

    def __init__(self, number: int, place: Place | None, *, key: bool) -> None:
        self.number, self.place, self.key = number, place, key
        self.aspect: Fraction | None = None


@dataclass(kw_only=True, slots=True)
class Decoded:
    """One frame of a file."""

    frame: Any
    number: int  # of its packet, counted in decoding order from where reading began
    starts: bool  # whether decoding can begin with it
    pts: Any  # when it is shown, in ticks of the stream (int); None = unknown
    damaged: bool = False  # whether it is damaged itself, or was decoded on top of damage
    lossy: bool = False  # whether the container says that packets are missing in its group of pictures
    place: Place | None = None  # its place in the stream; H.264 and HEVC only
    aspect: Fraction | None = None  # width / height of a pixel, as the codec states it
    before: int | None = None  # an earlier time of a frame of the same group that the decoder shows after this one


@dataclass(kw_only=True)
class FrameReader:
    """Reads the frames of a stream from where its container stands.

    `by_order`: the container has no times of presentation, so the order of the frames decides. Where frames are
    reordered, one then has no time before the second start, since the frames that are shown before the first start are
    not known. With `from_start`, reading begins at the start of the file, and all frames have times.
    """

    container: Any
    stream: Any
    deadline: Deadline
    limits: Limits
    gap: int  # ticks from one packet to the next from which on there was time for one more
    by_order: bool = False
    from_start: bool = False
    indexed: Sequence[int] = ()  # ascending times of the packets that an index lists; for `by_order`
    sizes: Mapping[int, int] = field(default_factory=dict)  # bytes of each packet by an index of all; by decoding time
    # Whether a number that is missing shows a missing picture, even where no time is missing; called where one is.
    numbered: Callable[[], bool] = lambda: False
    structure: Structure | None = None
    last_dts: int | None = None  # decoding time of the last packet
    latest: int | None = None  # the latest time of presentation of a packet
    last_place: tuple[int, int] = (0, 0)  # the byte at which the last packet begins in the file, and its size in bytes
    lost: list[int] = field(default_factory=list)  # times of packets of which no picture came
    _held: deque[Decoded] = field(default_factory=deque)  # decoded, but something that they refer to may be missing
    _unseen: dict[int, int | None] = field(default_factory=dict)  # packets of which no frame has come, and their times
    _key: int = 0  # the last keyframe
    _first: int | None = None  # when the first frame is shown
    _damaged: list[int] = field(default_factory=list)  # numbers of frames that are damaged themselves
    _flagged: list[int] = field(default_factory=list)  # numbers of packets at which the container says that some lack
    _starts: list[int] = field(default_factory=list)  # numbers of frames at which decoding can begin, ascending
    _dts: list[int] = field(default_factory=list)  # decoding time of each packet; by_order only
    _anchor: int | None = None  # the start from which `_slot` counts
    _slot: int = 0  # place of the next frame in display order

    def frames(self) -> Iterator[Decoded]:
        """The frames in display order."""
        context = careful_decoder(self.stream.codec_context)
        context.copy_opaque = True  # a frame carries the tag of its packet
        self.from_start |= not context.has_b_frames
        counter = picture_counter(context)
        number, aspect = 0, None
        for packet, following in pairwise(chain(self.container.demux(self.stream), [None])):
            self.deadline.check()
            time = packet.pts if packet.dts is None else packet.dts
            late, skipped, before = False, False, self.last_place
            known = self.latest
            if packet.pts is not None and packet.size:
                self.latest = packet.pts if self.latest is None else max(self.latest, packet.pts)
                self.last_place = max(self.last_place, (packet.pos or 0, packet.size))
            if time is not None:
                late = self.last_dts is not None and time - self.last_dts >= self.gap
                skipped = self.by_order and late and _between(self.indexed, self.last_dts, time)
                self.last_dts = time
                self._check_order(packet, following, time)
                if not packet.size:  # it holds no picture, and decoders take it for the end of the stream
                    continue
            if self.structure is not None and packet.size and packet.pos is not None:
                if (
                    self._compare(self.structure, packet.pos, number, since=before if late else None)
                    and known is not None
                ):
                    self.lost = [*self.lost[-REMEMBERED:], known + 1]
            if number == 0 and context.name == "hevc" and packet.size and not packet.is_keyframe:
                continue  # a seek may land there; this decoder raises errors for what comes before a keyframe
            if self.by_order:
                self._dts.append(time if time is not None else self._dts[-1] + 1 if self._dts else 0)
            place = counter.place(bytes(packet)) if counter is not None and packet.size else None
            self._note_losses(packet, following, number)
            if packet.is_keyframe:
                self._key = number
            hollow = False
            if context.name in VPX_DECODERS and packet.size:
                for width, height in stated_sizes(context.name, bytes(packet)):
                    check_size(self.deadline.name, width, height, self.limits)
                hollow = self._is_hollow(packet)
            if hollow or (place is not None and place.merged):
                self._damaged = [*self._damaged[-REMEMBERED:], number]
            if skipped:  # the places of all frames of the group are not known
                self._damaged = [*self._damaged[-REMEMBERED:], self._key]
            # A keyframe is whole without the missing picture, but frames that are shown before it may refer to that.
            # Where no time is missing, the encoder has counted in its own way.
            if place is not None and place.missing and (late or context.name == "hevc" or self.numbered()):
                self._damaged = [*self._damaged[-REMEMBERED:], number - packet.is_keyframe]
            packet.opaque = _Tag(number, place, key=context.name in VPX_DECODERS and packet.is_keyframe)
            self._unseen[number] = (
                (time if self.by_order else packet.pts) if _is_shown(packet, place, context.name) else None
            )
            frames = context.decode(packet)
            if number == 0 or packet.is_keyframe:  # with the headers that state it
                aspect = context.sample_aspect_ratio or None
            packet.opaque.aspect = aspect
            number += 1
            for frame in frames:
                self._take(frame)
                yield from self._released(reorders=context.reorder_depth > 0)
        self._give_up(list(self._unseen))
        while self._held:
            yield self._judged(self._held.popleft())

    def _give_up(self, numbers: Sequence[int]) -> None:
        """No frame will come of these packets. What refers to them is damaged."""
        for number in sorted(numbers):
            time = self._unseen.pop(number)
            if time is None or self._first is None or (not self.from_start if self.by_order else time < self._first):
                continue  # nothing should come, or it leads the frame at which decoding began
            self.lost = [*self.lost[-REMEMBERED:], time]
            # Where the order gives the times, those of the whole group are not known.
            place = bisect_right(self._starts, number) - 1 if self.by_order else -1
            self._damaged = [*self._damaged[-REMEMBERED:], self._starts[place] if place >= 0 else number]

    def _is_hollow(self, packet: Any) -> bool:
        """Whether a part of a packet was never written."""
        data = without_modes(self.stream.codec_context.name, bytes(packet))
        if HOLE not in data:
            return False
        within = HOLE in data.rstrip(b"\0")
        return within or (self.structure is not None and self.structure.breaks_behind(packet.pos, packet.size))

    def _compare(self, structure: Structure, at: int, number: int, *, since: tuple[int, int] | None) -> bool:
        """Note what the container says around a packet. Whether something is damaged between it and the one before.

        at: the byte at which the packet begins. since: the place of the one before it, where there is a gap in time.
        """
        if not structure.hold(at):
            self._damaged = [*self._damaged[-REMEMBERED:], number]
        return structure.skipped or (since is not None and structure.breaks_behind(*since, before=at))

    def _check_order(self, packet: Any, following: Any, time: int) -> None:
        """Raise EncodeError where the packets are those of later places in the index: so many frames are lost."""
        after = None if following is None else following.dts
        if after is None or self.sizes.get(time, packet.size) == packet.size:
            return
        for lost in range(1, MOST_HELD + 1):
            if (self.sizes.get(time + lost), self.sizes.get(after + lost)) == (packet.size, following.size):
                raise EncodeError(
                    f"{self.deadline.name}: by its index, frames are lost before frame {time} ({lost}), so all that "
                    "follow would be early; fetch the file again"
                )

    def _note_losses(self, packet: Any, following: Any, number: int) -> None:
        # In a transport stream a flag says that something lacks in the next packet, of which the decoder finds most, or
        # behind it. There it may be frames, or nothing where files were joined, which begin with a keyframe.
        inside = number - 1 in self._flagged and following is not None and not following.is_keyframe
        behind = number - 2 in self._flagged and not packet.is_keyframe
        if packet.size and (inside or behind):
            self._damaged = [*self._damaged[-REMEMBERED:], number]
        if packet.is_corrupt and self.container.format.name != "mpegts":  # it is cut short
            self._damaged = [*self._damaged[-REMEMBERED:], number]
        elif packet.is_corrupt:
            self._flagged = [*self._flagged[-REMEMBERED:], number]

    def _take(self, frame: Any) -> None:
        place, key, aspect = None, False, None  # libvpx does not say which frames are keyframes
        if isinstance(frame.opaque, _Tag):
            tag = frame.opaque
            number, place, key, aspect = tag.number, tag.place, tag.key, tag.aspect
        else:  # this decoder does not hand tags on
            number = min(self._unseen, default=self._held[-1].number if self._held else 0)
        self._unseen.pop(number, None)
        if self._first is None:
            self._first = frame.pts
        # Where pictures are refreshed piece by piece, the "key frame" that begins it is neither whole nor intra-coded.
        starts = key or (bool(frame.key_frame) and frame.pict_type in (PictureType.I, PictureType.NONE))
        if starts and (not self._starts or number > self._starts[-1]):
            self._starts = [*self._starts[-REMEMBERED:], number]
        if frame.is_corrupt:
            self._damaged = [*self._damaged[-REMEMBERED:], number]
        one = Decoded(frame=frame, number=number, starts=starts, pts=frame.pts, place=place, aspect=aspect)
        self._held.append(one)

    def _released(self, *, reorders: bool) -> Iterator[Decoded]:
        """The frames of which everything that they may refer to has come: the frames of earlier packets.

        One of these may be shown later, and its flag is not known before. Some packets never give a frame.
        """
        while self._held:
            number = self._held[0].number
            before = [unseen for unseen in self._unseen if unseen < number]
            if before and reorders and len(self._held) <= MOST_HELD:
                return
            self._give_up(before)
            yield self._judged(self._held.popleft())

    def _judged(self, one: Decoded) -> Decoded:
        place = bisect_right(self._starts, one.number) - 1
        start = self._starts[place] if place >= 0 else None
        one.lossy = bool(self._flagged) and (place <= 0 or self._flagged[-1] >= self._starts[place - 1])
        if self._damaged:
            # A frame that is shown before the start of its group may refer to the group before, too.
            leads = any(held.number == start for held in self._held)
            first = 0 if start is None else self._starts[max(place - leads, 0)]
            one.damaged = any(first <= number <= one.number for number in self._damaged)
        one.damaged |= start is None and self.stream.codec_context.name in WITHOUT_START
        if self.by_order:
            one.pts = self._time_in_order(start)
        elif one.place is not None and one.pts is not None:
            group = [held for held in self._held if held.place is not None and held.place.group == one.place.group]
            one.before = min((held.pts for held in group if held.pts is not None and held.pts < one.pts), default=None)
        return one

    def _time_in_order(self, start: int | None) -> int | None:
        """The time of the next frame in display order: frames have the times of packets, in ascending order.

        The first frame of a group that is shown takes the place of the packet that starts the group.
        """
        if start is not None and start != self._anchor:
            self.from_start |= self._anchor is not None
            self._anchor, self._slot = start, start
        slot, self._slot = self._slot, self._slot + 1
        return self._dts[min(slot, len(self._dts) - 1)] if self.from_start else None


def _between(times: Sequence[int], before: int | None, after: int) -> bool:
    """Whether one of some ascending times lies between two."""
    place = bisect_right(times, before) if before is not None else len(times)
    return place < len(times) and times[place] < after


def _is_shown(packet: Any, place: Place | None, codec: str) -> bool:
    """Whether a packet must give a picture. Unknown for codecs that have hidden pictures, or fields as packets."""
    if packet.is_discard or not packet.size:
        return False
    if codec == "mpeg4":
        return bool(packet.size > REPEAT_BYTES)
    return place is not None and place.shown and not place.second_field
