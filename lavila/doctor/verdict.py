"""Interprets the measured stages of a training step: the stage that bounds it, the expected rate, the cures."""

from __future__ import annotations

from dataclasses import asdict

from lavila.doctor.findings import Finding, Status
from lavila.doctor.step import StepFacts

BAR = 40  # characters of the longest bar
STAGES = ("read", "decode", "augment", "loader", "model", "together")
DATA = ("read", "decode", "augment")
MUCH = 1.1  # a factor of speed that is worth a change of settings
ALIGNED = 16  # pixels; the sides of stored pictures are multiples of this


def bound(facts: StepFacts) -> str:
    """read, decode, augment or model: the stage that bounds a training step.

    On a GPU, the loader and the model work side by side, so the slower one bounds. On the CPU all stages share the
    cores, so the stage that takes most of the time bounds.
    """
    rates = facts.rates
    if facts.device == "cuda" and "model" in rates and rates["loader"] >= rates["model"]:
        return "model"
    stages = DATA if facts.device == "cuda" or "model" not in rates else (*DATA, "model")
    return min(stages, key=lambda stage: rates[stage])


def expected(facts: StepFacts) -> tuple[float, bool]:
    """Clips per second of training on one rank here, and whether they were measured. If not, they are an estimate."""
    rates = facts.rates
    if "together" in rates:
        return rates["together"], True
    if "model" not in rates:
        return rates["loader"], False
    if facts.device == "cuda":
        return min(rates["loader"], rates["model"]), False
    return 1 / (1 / rates["loader"] + 1 / rates["model"]), False


def stage_lines(facts: StepFacts, *, plain: bool) -> list[str]:
    """A bar of milliseconds a clip for each stage. `plain` draws in ASCII."""
    rates = {stage: facts.rates[stage] for stage in STAGES if stage in facts.rates}
    longest = max(1 / value for value in rates.values())
    lines = ["", "A training step, stage by stage (ms a clip; the longest bar takes the most time):"]
    for stage, value in rates.items():
        bar = ("#" if plain else "█") * max(1, round(BAR / value / longest))
        lines.append(f"  {stage:<9}{_number(value):>9} clips/s {_number(1000 / value):>9} ms  {bar}")
    return [*lines, *(f"  {note}" for note in _notes(facts))]


def _notes(facts: StepFacts) -> list[str]:
    memory = {
        "empty": "read: from disk, the page cache was emptied first (caches of disks and servers cannot be)",
        "still in memory": "read: from memory, as the page cache could not be emptied: the disk may be slower",
        "unknown": "read: from disk or memory; this file system does not show which",
    }[facts.page_cache]
    others = [f"{name} {_number(value)}" for name, value in facts.decoders.items() if name != facts.decoder]
    lines = [
        f"decode: by {facts.decoder} with {facts.threads} thread(s), {facts.codec} at "
        f"{facts.stored[1]}x{facts.stored[0]}, {facts.wanted_frames:.0f} frames wanted of "
        f"{facts.passed_frames:.0f} passed through"
        + (f"; other decoders: {', '.join(others)} clips/s" if others else ""),
        memory,
        f"data stages in batches of {facts.data_batch}",
    ]
    if facts.model_batch:
        lines.append(
            f"model: forward and backward of {facts.model_batch} clip(s) at once, random weights, no optimiser step"
        )
    if facts.device == "cuda" and facts.decoder != "host":
        lines.append("augment: on the GPU, and with a copy of the frames to it, which NVDEC does without")
    if facts.data_wait_percent is not None:
        lines.append(f"loader and model together: {facts.data_wait_percent:.0f} % of the time waiting for data")
    return [*lines, *facts.notes]


def step_finding(facts: StepFacts) -> Finding:
    """The stage that bounds, the expected clips/s, and the cures."""
    slowest, rates = bound(facts), facts.rates
    clips, measured = expected(facts)
    found = f"{slowest} bounds"
    if slowest == "model":
        found += f": {_number(rates['model'])} clips/s; the loader gives {_number(rates['loader'])}"
    else:
        found += f": {_number(rates[slowest])} clips/s, the whole loader {_number(rates['loader'])}"
        found += f"; the model could take {_number(rates['model'])}" if "model" in rates else ""
    how = "measured" if measured else "estimate"
    found += f"; expect {_number(clips)} clips/s of training on this {facts.device} ({how})"
    if facts.model_problem:
        found += f"; the model could not be measured: {facts.model_problem}"
    status: Status = "ok" if slowest == "model" and not facts.notes else "note"
    status = "broken" if facts.model_problem else status
    values = asdict(facts) | {"bound": slowest, "expected_clips_per_second": clips, "expected_is_measured": measured}
    return Finding(
        name="step", status=status, found=found,
        fix=tuple(advice(facts, slowest)), facts=values,
    )  # fmt: skip


def advice(facts: StepFacts, slowest: str) -> list[str]:
    """The cures, the most effective first. A cure that was not measured says that it is an estimate."""
    if slowest == "model":
        return _beside_the_model(facts)
    if slowest == "read":
        return [
            "copy the shards to a disk of this node and set data.train to the copy",
            f"shards with fewer bytes a clip (now {facts.clip_bytes / 1e3:,.0f} kB): --short-side, --crf",
        ]
    cures = [*_other_decoders(facts)] if slowest == "decode" else []
    estimates = [*(_fewer_frames(facts) if slowest == "decode" else []), *_smaller_pictures(facts)]
    cures += [text for _, text in sorted(estimates, key=lambda one: -one[0])]
    if facts.device == "cpu":
        return [*cures, "more CPU cores, or a GPU: all stages share the cores here"]
    if "model" in facts.rates and facts.decoder != "nvdec":
        cores = facts.threads * facts.rates["model"] / facts.rates["loader"]
        cures.append(f"more CPU cores: about {cores:.0f} would keep up with the model (estimate; now {facts.threads})")
    return cures


def _smaller_pictures(facts: StepFacts) -> list[tuple[float, str]]:
    short = min(facts.stored)
    enough = -(-facts.image_size // ALIGNED) * ALIGNED
    if short <= enough:
        return []
    gain = (short / enough) ** 2
    text = f"shards made with --short-side {enough} (now {short}) have 1/{gain:.1f} of the pixels (gain not measured)"
    return [(gain, f"{text}; random crops are then enlarged, which costs sharpness")]


def _fewer_frames(facts: StepFacts) -> list[tuple[float, str]]:
    gain = facts.passed_frames / facts.wanted_frames
    if gain < 2:
        return []
    text = (
        f"{facts.passed_frames:.0f} frames are decoded for {facts.wanted_frames:.0f} wanted: shards made with a lower "
    )
    text += "--fps, or with --layout chunks and a short --gop, need fewer (gain not measured)"
    return [(gain, text)]


def _other_decoders(facts: StepFacts) -> list[str]:
    """The decoders that are faster here, the fastest first."""
    chosen = facts.decoders[facts.decoder]
    faster = sorted((-rate, name) for name, rate in facts.decoders.items() if rate > MUCH * chosen)
    return [
        f"train.py ... data.decoder={name}: decodes {-rate / chosen:.1f}x as fast (measured)" for rate, name in faster
    ]


def _beside_the_model(facts: StepFacts) -> list[str]:
    """The cures if the model bounds. On a GPU no part of the data path helps. On the CPU it shares the cores."""
    if facts.device == "cuda":
        return []
    return ["a GPU: the model takes the larger part of the time", *_other_decoders(facts)]


def _number(value: float) -> str:
    """A number with two or three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
