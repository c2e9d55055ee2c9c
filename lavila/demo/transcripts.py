"""What is said of the videos of the demo: narrations that lie beside them, and those that a narrator makes now."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from lavila.demo.chores import Chores, Progress
from lavila.demo.moments import Moment
from lavila.demo.narrate import (
    NarrateOptions,
    VideoPlan,
    narrate,
    narration_file,
    narration_folder,
    plan_videos,
)
from lavila.demo.narrators import OpenNarrator
from lavila.errors import UserError


class TranscriptError(UserError):
    """A video that nobody narrates."""


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What is said of a video so far."""

    state: Literal["none", "waiting", "running", "done", "failed"]
    moments: Sequence[Moment] = ()
    share: float = 0.0  # of the video that is narrated, 0 to 1
    reason: str = ""  # why it failed


@dataclass(kw_only=True)
class _Listener:
    """Keeps the moments of a video that is being narrated."""

    seconds: float
    progress: Progress
    moments: list[Moment] = field(default_factory=list)

    def pace(self, windows: int, seconds_each: float) -> None:
        """The page shows shares, not times."""

    def moment(self, moment: Moment) -> None:
        self.moments.append(replace(moment, key_frame=b""))
        self.progress(moment.stop / max(self.seconds, 1e-9))


class Transcripts:
    """The narrations of videos. With a narrator, those that have none are narrated one after another.

    folder: takes the new narrations. Without a narrator only those that `tools/narrate.py` made are shown.
    """

    def __init__(self, folder: Path, narrator: OpenNarrator | None, options: NarrateOptions | None = None) -> None:
        self._folder, self._narrator = folder, narrator
        self._options = replace(options or NarrateOptions(), embed_mib=0)
        self._chores = Chores("narrator")
        self._running: dict[str, _Listener] = {}
        self._read: dict[Path, tuple[int, list[Moment]]] = {}
        self._lock = threading.Lock()

    @property
    def can_narrate(self) -> bool:
        """Whether `ask` may be called."""
        return self._narrator is not None

    def transcript(self, name: str, video: Path) -> Transcript:
        """What is said of a video. name: of the video in the index."""
        for folder in (self._own(name), narration_folder(video.parent, video.name)):
            file = narration_file(folder, video, ".jsonl")
            if file.is_file():
                return Transcript(state="done", moments=self._moments(file), share=1.0)
        chore = self._chores.state(name)
        if chore is None:
            return Transcript(state="none")
        listener = self._running.get(name)
        said = list(listener.moments) if listener else []
        return Transcript(state=chore.state, moments=said, share=chore.share, reason=chore.reason)

    def ask(self, name: str, video: Path) -> Transcript:
        """Narrate a video, unless it is narrated or on its way. TranscriptError without a narrator."""
        if self._narrator is None:
            raise TranscriptError(f"{name}: no narrator was given; start the command with --narrator")
        found = self.transcript(name, video)
        if found.state in {"none", "failed"}:
            self._chores.start(name, lambda progress: self._narrate(name, video, progress))
            return self.transcript(name, video)
        return found

    def close(self) -> None:
        """Stop after the next moment; what is finished is kept, and the next start continues."""
        self._chores.close()

    def _own(self, name: str) -> Path:
        return narration_folder(self._folder / Path(name).parent, Path(name).name)

    def _narrate(self, name: str, video: Path, progress: Progress) -> None:
        assert self._narrator is not None
        plans, failed = plan_videos([video], self._options, out=None)
        if failed:
            raise TranscriptError(failed[0][1])
        plan: VideoPlan = replace(plans[0], folder=self._own(name))
        listener = self._running[name] = _Listener(seconds=plan.seconds, progress=progress)
        narrate(plan, self._narrator, self._options, listener)

    def _moments(self, file: Path) -> list[Moment]:
        """The moments of a narration. Its file is read again when it changes."""
        changed = file.stat().st_mtime_ns
        with self._lock:
            if self._read.get(file, (0, []))[0] != changed:
                entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
                moments = [
                    Moment(start=entry["start"], stop=entry["stop"], text=entry["text"], nll=entry.get("nll", 0.0))
                    for entry in entries
                ]
                self._read[file] = changed, moments
            return self._read[file][1]
