"""Narrates videos: a line of text for each moment, as subtitles, as JSON and as a page to look at.

    video --footage--> windows --narrator--> texts --choice--> a line each --join--> moments --> files

Each video has a folder. Its journal holds what the narrator said of each window, so an interrupted video continues with
the next window, and another choice among the texts costs no new ones.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from lavila.demo.choice import CHOICES, ChoiceName, DualEncoderChoice
from lavila.demo.footage import (
    NO_LIMIT,
    Look,
    LostWindow,
    Window,
    WindowPictures,
    find_videos,
    one_ahead,
    read_windows,
    windows_of,
)
from lavila.demo.moments import Moment, join, one_subject, other_texts, shares
from lavila.demo.narrators import OpenNarrator
from lavila.demo.page import THUMB_WIDTH, PageOf, page
from lavila.demo.subtitles import to_jsonl, to_srt, to_vtt
from lavila.errors import UserError
from lavila.files import fitting_name, whole_file
from lavila.ingest.source_video import probe_video
from lavila.ingest.video_files import EncodeError
from lavila.journal import Entry, Journal, JournalError
from lavila.models.captioner import Captioner, Said
from lavila.report.charts import duration

# A line holds for its window: start, stop, and lost (why), still (its change), or texts, nll, key_frame and maybe best.
JOURNAL = "windows.jsonl"
FOLDER_ENDING = ".narration"
JPEG_QUALITY = 80


class NarrationError(UserError):
    """A video that cannot be narrated."""


@dataclass(frozen=True, kw_only=True)
class Dual:
    """A dual encoder that chooses among texts."""

    choice: DualEncoderChoice
    look: Look
    sha256: str


@dataclass(frozen=True, kw_only=True)
class NarrateOptions:
    """How a video becomes moments."""

    every: float = 2.0  # seconds from the start of one window to the next
    length: float = 2.0  # seconds of a window
    between: tuple[float, float] | None = None  # the part of the video, in seconds; None = all of it
    still: float = 3.0  # a window whose picture changes by less is skipped, in levels of 255; 0 = none is
    choice: ChoiceName = "agreement"  # how the best text is found, where there is no dual encoder
    dual: Dual | None = None
    subject: str = "#C C"  # how the person who wears the camera is named
    batch_size: int = 8  # windows of one forward pass
    embed_mib: float = 64.0  # a video of up to so many MiB is put into its page


@dataclass(frozen=True, kw_only=True)
class VideoPlan:
    """A video before it is narrated."""

    path: Path
    folder: Path  # takes the results
    seconds: float
    windows: list[Window]

    @property
    def journal(self) -> Path:
        return self.folder / JOURNAL

    def output(self, suffix: str) -> Path:
        """A result: .jsonl, .srt, .vtt or .html."""
        return narration_file(self.folder, self.path, suffix)


@dataclass(kw_only=True)
class Narrated:
    """What became of a video."""

    moments: list[Moment] = field(default_factory=list)
    still: int = 0  # number of windows that were skipped, since nothing moves
    lost: list[str] = field(default_factory=list)  # for each window that could not be read, why


class Listener(Protocol):
    """Hears of the work during it."""

    def pace(self, windows: int, seconds_each: float) -> None:
        """How many windows of the video are left, and what one takes on this machine."""
        ...

    def moment(self, moment: Moment) -> None:
        """A new moment."""
        ...


def narration_folder(inside: Path, name: str) -> Path:
    """The folder in `inside` that takes the results of a video; a name that is too long is cut."""
    return inside / f"{fitting_name(name, room=len(FOLDER_ENDING))}{FOLDER_ENDING}"


def narration_file(folder: Path, video: Path, suffix: str) -> Path:
    """A result in that folder."""
    return folder / f"{fitting_name(video.stem, room=len(suffix))}{suffix}"


def plan_videos(
    paths: Sequence[Path], options: NarrateOptions, *, out: Path | None
) -> tuple[list[VideoPlan], list[tuple[Path, str]]]:
    """The videos that paths mean, and those that cannot be narrated with the reasons.

    out: the folder that takes a folder for each video; None = that of the video itself.
    Raises FootageError where a path holds no video, and NarrationError where two videos would share a folder.
    """
    plans, failed = [], []
    for path in paths:
        for video in find_videos(path):
            inside = video.parent if video == path else path
            folder = narration_folder((out or inside) / video.relative_to(inside).parent, video.name)
            try:
                plans.append(_plan(video, folder, options))
            except (EncodeError, NarrationError) as error:
                failed.append((video, str(error)))
    folders = [plan.folder.absolute() for plan in plans]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise NarrationError(f"{twice}: two videos of this name would share it; narrate them one by one with --out")
    return plans, failed


def _plan(video: Path, folder: Path, options: NarrateOptions) -> VideoPlan:
    seconds = probe_video(video, NO_LIMIT).seconds
    if not seconds > 0:
        raise NarrationError(f"{video}: holds no frames (its header says {seconds:g} s); give another video")
    start, stop = options.between or (0.0, seconds)
    if not start < seconds:
        raise NarrationError(
            f"{video}: has {seconds:.2f} s, and --between begins at {start:g} s; give a start before its end"
        )
    windows = windows_of(start, min(stop, seconds), every=options.every, length=options.length)
    return VideoPlan(path=video, folder=folder, seconds=seconds, windows=windows)


def narrate(plan: VideoPlan, narrator: OpenNarrator, options: NarrateOptions, listener: Listener) -> Narrated:
    """Narrate a video, or what is left of it, and write its files.

    Raises:
        JournalError: the folder holds work with other settings, or cannot be written.
        NarrationError: not one window of the video could be read.
        EncodeError: the file is not a readable video.
    """
    result = Narrated()
    settings = _settings(plan, narrator, options)
    journal = Journal(plan.journal, settings=settings, group=options.batch_size, total=len(plan.windows))
    with closing(journal) as kept:
        heard = plan.windows[kept.done - 1].stop if kept.done else 0.0
        entries = chain(kept.entries(), _fresh(plan, kept, narrator, options, listener))
        for moment in join(_moments(plan, entries, options, result)):
            result.moments.append(moment)
            if moment.stop > heard:
                listener.moment(moment)
    if len(result.lost) == len(plan.windows):
        plan.journal.unlink()
        raise NarrationError(f"{plan.path}: not one of its windows could be read; the first: {result.lost[0]}")
    _write(plan, narrator, options, result)
    return result


def _settings(plan: VideoPlan, narrator: OpenNarrator, options: NarrateOptions) -> dict[str, Any]:
    """All that decides what the narrator says of the windows."""
    files = [plan.path] if plan.path.is_file() else sorted(plan.path.iterdir())
    return {
        "video": [[file.name, file.stat().st_size] for file in files],
        "of": len(plan.windows),
        "every": options.every,
        "length": options.length,
        "start": plan.windows[0].start,
        "still": options.still,
        "batch_size": options.batch_size,
        "dual_encoder": options.dual.sha256 if options.dual else "",
        **narrator.facts,
    }


def _fresh(
    plan: VideoPlan, journal: Journal, narrator: OpenNarrator, options: NarrateOptions, listener: Listener
) -> Iterator[Entry]:
    """What the narrator says of the windows that the journal lacks. Each group is on the disk before it is given."""
    left = plan.windows[journal.done :]
    if not left:
        return
    looks = [narrator.look, *([options.dual.look] if options.dual else [])]
    _warm_up(plan, left[:1], looks, narrator)
    seen = read_windows(plan.path, left, looks)
    groups = iter(lambda: list(islice(seen, options.batch_size)), [])
    began, measured = time.perf_counter(), False
    for group in one_ahead(groups):
        entries = _say(plan, group, narrator, options)
        journal.add(entries)
        if not measured:
            measured = True
            listener.pace(len(left) - len(group), (time.perf_counter() - began) / len(group))
        yield from entries


def _warm_up(plan: VideoPlan, first: list[Window], looks: Sequence[Look], narrator: OpenNarrator) -> None:
    """Use decoder and model once, shortly, so that the first measurement is like the others."""
    next(read_windows(plan.path, first, looks))
    captioner, look = narrator.captioner, narrator.look
    brief = replace(captioner.options, max_length=2)
    short = Captioner(captioner.narrator, captioner.tokenizer, options=brief, seed=captioner.seed)
    short.say(torch.zeros(1, 3, look.frames, look.size, look.size), ["warm-up"])


def _say(
    plan: VideoPlan, group: Sequence[WindowPictures | LostWindow], narrator: OpenNarrator, options: NarrateOptions
) -> list[Entry]:
    """An entry of the journal for each window of a group."""
    moving = [one for one in group if isinstance(one, WindowPictures) and one.change >= options.still]
    said: list[Said] = []
    best: list[int] = []
    if moving:
        ids = [f"{plan.path.name}_{one.window.start:.3f}_{one.window.stop:.3f}" for one in moving]
        said = narrator.captioner.say(_stacked(moving, look=0), ids)
        best = options.dual.choice.best(_stacked(moving, look=1), said) if options.dual else []
    spoken = dict(zip(map(id, moving), said, strict=True))
    chosen = dict(zip(map(id, moving), best, strict=False))
    entries: list[Entry] = []
    for one in group:
        entry: Entry = {"start": one.window.start, "stop": one.window.stop}
        if isinstance(one, LostWindow):
            entry["lost"] = one.reason
        elif (words := spoken.get(id(one))) is None:
            entry["still"] = round(one.change, 3)
        else:
            entry |= {"texts": list(words.texts), "nll": list(words.nll), "key_frame": _key_frame(one)}
            entry |= {"best": chosen[id(one)]} if options.dual else {}
        entries.append(entry)
    return entries


def _stacked(windows: Sequence[WindowPictures], *, look: int) -> torch.Tensor:
    """[B, C, T, H, W]"""
    return torch.from_numpy(np.stack([one.videos[look] for one in windows])).transpose(1, 2)


def _key_frame(one: WindowPictures) -> str:
    picture = Image.fromarray(one.middle)
    picture.thumbnail((2 * THUMB_WIDTH, 2 * THUMB_WIDTH))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()


def _moments(plan: VideoPlan, entries: Iterator[Entry], options: NarrateOptions, result: Narrated) -> Iterator[Moment]:
    """The line of each window that has one. Counts the others in `result`."""
    for entry, (start, stop) in zip(entries, shares(plan.windows), strict=True):
        if "lost" in entry:
            result.lost.append(entry["lost"])
        elif "still" in entry:
            result.still += 1
        else:
            texts = tuple(one_subject(text, options.subject) for text in entry["texts"])
            said = Said(texts=texts, nll=tuple(entry["nll"]))
            best = entry["best"] if "best" in entry else CHOICES[options.choice](said)
            if best >= 0:
                yield Moment(
                    start=start,
                    stop=min(stop, entry["stop"]),
                    text=texts[best],
                    nll=said.nll[best],
                    others=other_texts(texts, texts[best]),
                    key_frame=base64.b64decode(entry["key_frame"]),
                )


def _write(plan: VideoPlan, narrator: OpenNarrator, options: NarrateOptions, result: Narrated) -> None:
    moments = result.moments
    facts = [duration(plan.seconds), f"{len(moments)} moments", f"narrator {narrator.name}"]
    facts += [f"{result.still} still windows skipped"] if result.still else []
    facts += [f"{len(result.lost)} windows could not be read"] if result.lost else []
    of = PageOf(video=plan.path, seconds=plan.seconds, facts=facts, embed_mib=options.embed_mib)
    texts = {
        ".jsonl": to_jsonl(moments),
        ".srt": to_srt(moments),
        ".vtt": to_vtt(moments),
        ".html": page(of, moments, folder=plan.folder),
    }
    for suffix, text in texts.items():
        try:
            with whole_file(plan.output(suffix)) as file:
                file.write(text.encode())
        except OSError as error:
            raise JournalError(
                f"{plan.output(suffix)}: cannot be written ({error.strerror}); make room or change the permissions; "
                f"the words are kept in {plan.journal}, and the same command continues from there"
            ) from None
