"""Layout "chunks": the chunks of its video that each clip needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lavila.annotations.base import AnnotationError
from lavila.ingest.encode import EncodeError, probe_video
from lavila.ingest.jobs import Chunk, Failure, SetSettings
from lavila.records import Clip
from lavila.shards.chunks import chunk_numbers
from lavila.shards.format import KEY


@dataclass(frozen=True, kw_only=True)
class ChunkNeeds:
    """The chunks that each clip needs."""

    chunks: list[Chunk]  # each once: the chunks of a video in order, videos in the order of their first clip
    by_clip: list[tuple[str, range]]  # the video of each clip, and the numbers of its chunks
    failures: list[Failure]  # the clips whose video cannot be opened

    def ids(self, place: int) -> list[str]:
        """The ids of the chunks that clip number `place` needs, in order."""
        video, numbers = self.by_clip[place]
        return [chunk_id(video, number) for number in numbers]


def chunk_id(video_id: str, number: int) -> str:
    """The name of a chunk. It names a tar member, so it has no dots or spaces of the video's name."""
    return f"{'-'.join(video_id.replace('.', '-').split())}_{number:05d}"


def needed_chunks(clips: Sequence[Clip], settings: SetSettings, videos: Path) -> ChunkNeeds:
    """The chunks that some clip needs. Videos are opened only for clips that last to the end."""
    numbers: dict[str, set[int]] = {}
    first: dict[str, Clip] = {}
    durations: dict[str, float] = {}
    by_clip: list[tuple[str, range]] = []
    failures: list[Failure] = []
    for clip in clips:
        duration = None
        if clip.stop_second is None:
            try:
                if clip.video_path not in durations:
                    durations[clip.video_path] = probe_video(videos / clip.video_path).seconds
                duration = durations[clip.video_path]
            except EncodeError as error:
                reason = str(error).removeprefix(f"{videos / clip.video_path}: ")
                failures.append({"clip_id": clip.clip_id, "video": clip.video_path, "reason": reason})
                by_clip.append((clip.video_id, range(0)))
                continue
        margin = settings.encoder.margin
        wanted = chunk_numbers(clip, seconds=settings.chunk_seconds, margin=margin, duration=duration)
        by_clip.append((clip.video_id, wanted))
        if first.setdefault(clip.video_id, clip).video_path != clip.video_path:
            other = first[clip.video_id].video_path
            raise AnnotationError(
                f"video id {clip.video_id!r} names both {other} and {clip.video_path}; use --layout clips"
            )
        numbers.setdefault(clip.video_id, set()).update(wanted)
    chunks = [
        Chunk(chunk_id=chunk_id(video, n), video_id=video, video_path=first[video].video_path, number=n)
        for video, wanted_of_video in numbers.items()
        for n in sorted(wanted_of_video)
    ]
    for chunk in chunks:
        if not KEY.fullmatch(chunk.chunk_id):
            raise AnnotationError(f"video id {chunk.video_id!r} cannot name a tar member; slashes are not allowed")
    return ChunkNeeds(chunks=chunks, by_clip=by_clip, failures=failures)
