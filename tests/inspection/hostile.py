"""A decoder that takes its process down. Alone in its file, since worker processes import it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from lavila.inspection.videos import RecordedShape


@dataclass(frozen=True)
class Hostile:
    """Finds every video sound, but for those of certain lengths, which it does not survive."""

    frames: frozenset[int]  # lengths of the videos that crash it
    seen: Path  # gets a byte for each video that is tried

    def __call__(self, data: bytes, recorded: RecordedShape) -> str | None:
        with self.seen.open("ab") as file:
            file.write(b".")
        if recorded.frames in self.frames:
            os.kill(os.getpid(), signal.SIGSEGV)
        return None
