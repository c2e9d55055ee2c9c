"""The work of tools/narrate.py: from its arguments to labels, or to subtitles and a page for each video."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lavila.checkpoints.store import find_model
from lavila.config.schema import Decoder, Device
from lavila.demo.choice import ChoiceName
from lavila.demo.footage import find_videos
from lavila.demo.moments import Moment
from lavila.demo.narrate import Dual, NarrateOptions, NarrationError, narrate, plan_videos
from lavila.demo.narrators import OpenNarrator, open_dual_encoder, open_narrator
from lavila.demo.page import short_clock
from lavila.engine.distributed import Process, join
from lavila.engine.label_sources import LabelSource, ShardClips, VideoWindows, long_videos, uncovered_videos
from lavila.engine.labeller import LabelFormat, LabelOptions, label, share_of
from lavila.engine.run_folder import read_config
from lavila.errors import UserError
from lavila.files import unwritable
from lavila.ingest.video_files import EncodeError
from lavila.models.captioner import PUBLISHED
from lavila.models.generation import GenerationConfig, decoder_type
from lavila.report.charts import duration
from lavila.shards.reader import open_shard_set

log = logging.getLogger(__name__)

FORMATS: dict[str, LabelFormat] = {".parquet": "captions", ".pkl": "lavila-pkl"}
RESULTS = {".srt", ".vtt", ".json", ".jsonl", ".html", ".csv", ".tsv", ".txt"}  # no folder has such a name
LABEL_BATCH, MOMENT_BATCH = 16, 4  # clips of a forward pass; of a video few, so that the first lines come soon
DONE, NOT_DONE = 0, 1

Say = Callable[[str], None]
"""Prints a line."""


class ArgumentError(UserError):
    """Arguments that do not go together."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The arguments of tools/narrate.py, as its --help describes them. ArgumentError where they contradict."""

    shards: Path | None
    video: list[Path] | None
    out: Path | None
    checkpoint: str
    vocabulary: str | None
    device: Device
    precision: Literal["auto", "fp32", "bf16"]
    batch_size: int | None
    num_return_sequences: int | None
    top_p: float | None
    top_k: int | None
    temperature: float | None
    num_beams: int
    max_length: int
    seed: int
    format: LabelFormat | None
    captioned: list[str]
    uncovered: Path | None
    decoder: Decoder
    max_bad_clips: int
    window: float
    every: float
    between: list[float] | None
    choose: ChoiceName
    dual_encoder: str | None
    dual_vocabulary: str
    still: float
    subject: str
    embed: float

    def __post_init__(self) -> None:
        self.generation()
        if self.labels and self.out is None:
            raise ArgumentError("--shards, --uncovered and --format make labels: give --out, a .parquet or .pkl file")
        if self.labels and self.out and not self.format and self.out.suffix not in FORMATS:
            raise ArgumentError(
                f"--out {self.out}: ends in .parquet (captions table) or .pkl (LaViLa's), or give --format"
            )
        if not self.labels and self.out and self.out.suffix.lower() in RESULTS and not self.out.is_dir():
            raise ArgumentError(
                f"--out {self.out}: subtitles and pages go to a folder, and labels to a .parquet or .pkl file; give one"
            )
        if self.captioned and not self.shards:
            raise ArgumentError("--except leaves out clips of a shard set: give --shards")
        if self.uncovered and (not self.video or len(self.video) > 1 or not self.video[0].is_dir() or self.between):
            raise ArgumentError("--uncovered takes one folder, --video DIR, and no --between")
        if self.between and not 0 <= self.between[0] < self.between[1]:
            raise ArgumentError(
                f"--between {self.between[0]:g} {self.between[1]:g}: the second must be after the first"
            )
        for name, least in (("window", 1e-3), ("every", 1e-3), ("still", 0), ("embed", 0), ("max_bad_clips", 0)):
            if not getattr(self, name) >= least:
                raise ArgumentError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ArgumentError(f"--batch-size {self.batch_size}: must be at least 1")

    @property
    def labels(self) -> bool:
        """Whether labels are asked for, and not subtitles and pages."""
        named = self.out is not None and self.out.suffix in FORMATS
        return bool(self.shards or self.uncovered or self.format or named)

    def generation(self) -> GenerationConfig:
        """How texts are chosen: as LaViLa does, or by beams alone."""
        beams = self.num_beams > 1
        sequences = min(PUBLISHED.num_return_sequences, self.num_beams) if beams else PUBLISHED.num_return_sequences
        temperature = 1.0 if beams else PUBLISHED.temperature
        top_p = None if beams or self.top_k is not None else PUBLISHED.top_p
        try:
            return GenerationConfig(
                num_return_sequences=self.num_return_sequences if self.num_return_sequences is not None else sequences,
                max_length=self.max_length,
                temperature=self.temperature if self.temperature is not None else temperature,
                top_k=self.top_k,
                top_p=self.top_p if self.top_p is not None else top_p,
                num_beams=self.num_beams,
            )
        except ValueError as error:
            raise ArgumentError(f"{error} (options of the same names)") from None


def run(wanted: Wanted, environ: Mapping[str, str], *, say: Say) -> int:
    """Label or narrate. Returns the exit status. Raises UserErrors of the parts."""
    if wanted.shards:  # what is wrong here is said before a narrator is downloaded
        open_shard_set(wanted.shards)
    for path in wanted.video or []:
        find_videos(path)
    _check_writable(wanted)
    with join(wanted.device) as process:
        # On a CPU the texts stay those of float32 unless bfloat16 is asked for.
        fast = process.device.type == "cuda" and decoder_type(process.device) is torch.bfloat16
        half = wanted.precision == "bf16" or (wanted.precision == "auto" and fast)
        narrator = open_narrator(
            wanted.checkpoint,
            vocabulary=wanted.vocabulary or vocabulary_of(wanted.checkpoint),
            options=wanted.generation(),
            seed=wanted.seed,
            device=process.device,
            half=half,
        )
        return (_label if wanted.labels else _narrate)(wanted, narrator, process, environ, say)


def _check_writable(wanted: Wanted) -> None:
    """ArgumentError where the results cannot be written."""
    if wanted.out is not None:
        folders = [wanted.out.parent if wanted.labels else wanted.out]
    else:
        folders = [path.parent if path in find_videos(path) else path for path in wanted.video or []]
    for folder in folders:
        if there := unwritable(folder):
            raise ArgumentError(
                f"{folder}: cannot take the results, since {there} is no folder that can be written to; give another "
                "--out or change the permissions"
            )


def vocabulary_of(checkpoint: str) -> str:
    """The vocabulary that the config beside a checkpoint names, or GPT-2's."""
    found: Any = read_config(find_model(checkpoint).parent)
    for name in ("model", "decoder", "vocabulary"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, str) else "gpt2"


def _label(wanted: Wanted, narrator: OpenNarrator, process: Process, environ: Mapping[str, str], say: Say) -> int:
    assert wanted.out is not None
    options = LabelOptions(
        out=wanted.out,
        format=wanted.format or FORMATS[wanted.out.suffix],
        batch_size=wanted.batch_size or LABEL_BATCH,
        max_bad_clips=wanted.max_bad_clips,
        share=share_of(process, environ),
    )
    source = _source(wanted, narrator, process, options.batch_size)
    texts = narrator.captioner.options.num_return_sequences
    say(f"{sum(source.part_sizes):,} clips in {len(source.part_sizes):,} parts, {texts} texts of each clip")
    say(f"narrator {narrator.name} on {process.device.type}; process {options.share[0] + 1} of {options.share[1]}")
    found = label(source, narrator, options)
    if found is None:
        return DONE
    say(f"{options.out}: {found.texts} texts of {found.clips} clips")
    if found.bad or found.wordless:
        failures = options.out.with_suffix(".failures.jsonl")
        say(f"left out: {found.bad} without pictures ({failures}), {found.wordless} without a word")
    if options.format == "captions":
        say(f"      python train.py --config NAME 'data.captions=[own, {options.out}]'")
    return DONE


def _source(wanted: Wanted, narrator: OpenNarrator, process: Process, batch_size: int) -> LabelSource:
    look = narrator.look
    if wanted.shards:
        return ShardClips(
            open_shard_set(wanted.shards),
            look,
            process,
            batch_size=batch_size,
            decoder=wanted.decoder,
            captioned=wanted.captioned,
        )
    assert wanted.video is not None
    if wanted.uncovered:
        found = uncovered_videos(wanted.uncovered, wanted.video[0], every=wanted.every, length=wanted.window)
    else:
        found = long_videos(wanted.video, every=wanted.every, length=wanted.window, between=_between(wanted))
    return VideoWindows(found[0], look, batch_size=batch_size, unreadable=found[1])


def _between(wanted: Wanted) -> tuple[float, float] | None:
    return (wanted.between[0], wanted.between[1]) if wanted.between else None


def _narrate(wanted: Wanted, narrator: OpenNarrator, process: Process, environ: Mapping[str, str], say: Say) -> int:
    dual = None
    if wanted.dual_encoder:
        parts = open_dual_encoder(wanted.dual_encoder, vocabulary=wanted.dual_vocabulary, device=process.device)
        dual = Dual(choice=parts[0], look=parts[1], sha256=parts[2])
    options = NarrateOptions(
        every=wanted.every,
        length=wanted.window,
        between=_between(wanted),
        still=wanted.still,
        choice=wanted.choose,
        dual=dual,
        subject=wanted.subject,
        batch_size=wanted.batch_size or MOMENT_BATCH,
        embed_mib=wanted.embed,
    )
    assert wanted.video is not None
    plans, failed = plan_videos(wanted.video, options, out=wanted.out)
    index, of = share_of(process, environ)
    plans = plans[index::of]
    seconds, windows = sum(plan.seconds for plan in plans), sum(len(plan.windows) for plan in plans)
    texts = narrator.captioner.options.num_return_sequences
    say(f"{len(plans)} video{'s' * (len(plans) != 1)}, {duration(seconds)}: {windows} windows of {wanted.window:g} s")
    how = "the dual encoder" if dual else wanted.choose
    say(f"narrator {narrator.name} on {process.device.type}; {texts} texts of a window, the best one by {how}")
    later = windows
    for plan in plans:
        later -= len(plan.windows)
        say(f"\n{plan.path}")
        try:
            result = narrate(plan, narrator, options, _Printing(say, later))
        except (EncodeError, NarrationError) as error:
            failed.append((plan.path, str(error)))
            continue
        if result.lost:
            log.warning("%d windows could not be read; the first: %s", len(result.lost), result.lost[0])
        still = f", {result.still} windows skipped in which nothing moves" if result.still else ""
        say(f"{len(result.moments)} moments{still}: {plan.output('.html')}, and .srt, .vtt, .jsonl beside it")
    if failed and not plans and len(failed) == 1:
        raise NarrationError(failed[0][1])
    for path, reason in failed:
        log.warning("%s is left out: %s", path, reason)
    return NOT_DONE if failed else DONE


class _Printing:
    """Prints moments as they come."""

    def __init__(self, say: Say, later: int) -> None:
        self._say, self._later = say, later  # number of windows of later videos

    def pace(self, windows: int, seconds_each: float) -> None:
        left = windows + self._later
        if left:
            self._say(f"about {duration(left * seconds_each)} for {left} more windows, {seconds_each:.2f} s each")

    def moment(self, moment: Moment) -> None:
        self._say(f"{short_clock(moment.start)} - {short_clock(moment.stop)}  {moment.text}")
