"""The whole LaViLa loop at two sizes: a narrator writes captions, and a dual encoder trains on them as well."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lavila.shards.captions import write_captions
from lavila.shards.reader import open_shard_set
from lavila.walkthroughs import quickstart
from lavila.walkthroughs.learning import read_report
from lavila.walkthroughs.steps import Step

KEEPS = 4  # one clip in four keeps the captions that people wrote
LEARNERS = {
    "human": "human captions of a quarter of the clips",
    "both": "these, and the narrator's for the rest",
    "all_human": "human captions of all clips",
}
SCORES = ("verb_top1", "noun_top1", "action_top1")
ASKED = ["task.name=zero_shot", "task.heads=[action]"]  # of each dual encoder, about the validation clips


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a loop is."""

    train: Path  # shard set whose captions are hidden in part
    val: Path
    out: Path  # captions tables
    runs: Path
    dual: tuple[str, ...]  # configs of the dual encoders
    narrator: tuple[str, ...]
    epochs: int  # over all clips; a run over a quarter of them takes four times as many
    narrator_epochs: int


SAMPLE = Scale(
    train=quickstart.SHARDS / "train",
    val=quickstart.SHARDS / "val",
    out=Path("data/loop"),
    runs=Path("runs/loop"),
    dual=("learn_dual",),
    narrator=("learn_narrator",),
    epochs=48,
    narrator_epochs=96,
)
TOY = Scale(
    train=Path("data/toy/ek100/shards/train"),
    val=Path("data/toy/ek100/shards/val"),
    out=Path("data/loop/toy"),
    runs=Path("runs/loop-toy"),
    dual=("learn_dual", "toy"),
    narrator=("learn_narrator", "toy"),
    epochs=1,
    narrator_epochs=2,
)


def steps(scale: Scale) -> list[Step]:
    """All commands, in order. Those that make a table name it."""
    human, machine = (scale.out / f"{name}.parquet" for name in ("human", "machine"))
    tables: dict[str, list[Path | str]] = {"human": [human], "both": [human, machine], "all_human": ["own"]}
    trained = {name: scale.runs / name for name in (*LEARNERS, "narrator")}
    data = [f"data.train={scale.train}", f"data.val={scale.val}"]
    dual, narrator = ([*named(configs), *data] for configs in (scale.dual, scale.narrator))

    def pretrain(name: str) -> Step:
        epochs = scale.epochs * (KEEPS if name == "human" else 1)
        own = [f"data.captions=[{','.join(map(str, tables[name]))}]", f"optim.epochs={epochs}"]
        return Step(f"pretrain_{name}", None, ["train.py", *dual, *own, f"run_dir={trained[name]}"])

    def evaluate(name: str) -> Step:
        own = [f"checkpoint={trained[name]}/checkpoints", f"run_dir={scale.runs}/evaluated/{name}"]
        return Step(f"evaluate_{name}", None, ["evaluate.py", *dual, *ASKED, *own])

    narrator = [*narrator, f"model.init={trained['human']}/checkpoints", f"run_dir={trained['narrator']}"]
    learned = [f"data.captions=[{human}]", f"optim.epochs={scale.narrator_epochs}"]
    label = ["tools/narrate.py", "--checkpoint", f"{trained['narrator']}/checkpoints", "--shards", str(scale.train)]
    return [
        Step("split", human, ["tools/loop.py", "--split", str(scale.train), str(human)]),
        pretrain("human"),
        Step("train_narrator", None, ["train.py", *narrator, *learned]),
        Step("evaluate_narrator", None, ["evaluate.py", *narrator]),
        Step("label", machine, [*label, "--except", str(human), "--out", str(machine)]),
        pretrain("both"),
        pretrain("all_human"),
        *(evaluate(name) for name in LEARNERS),
    ]


def named(configs: Sequence[str]) -> list[str]:
    """Configs as arguments; a later one wins."""
    return [word for config in configs for word in ("--config", config)]


def split(shards: Path, table: Path) -> str:
    """Write the captions that a quarter of the clips keep; which clips these are follows from their ids alone.

    Returns what was written, in words.
    """
    clips = open_shard_set(shards).clips
    words = dict(zip(clips["clip_id"].to_pylist(), clips["narrations"].to_pylist(), strict=True))
    mixed = sorted(words, key=lambda clip_id: (zlib.crc32(clip_id.encode()), clip_id))
    kept = [(clip_id, words[clip_id], None) for clip_id in mixed[: len(mixed) // KEEPS]]
    table.parent.mkdir(parents=True, exist_ok=True)
    write_captions(table, kept, source="human")
    return f"{table}: captions of {len(kept)} of {len(clips)} clips"


def table(scale: Scale, *, root: Path) -> str:
    """Scores of the three dual encoders and of the narrator, as Markdown. root: the checkout."""
    lines = [f"| trained on | {' | '.join(f'{name}, %' for name in SCORES)} |", "| --- " * (len(SCORES) + 1) + "|"]
    for name, about in LEARNERS.items():
        metrics = read_report(root / scale.runs / "evaluated" / name)["metrics"]
        lines.append(f"| {about} | {' | '.join(f'{metrics[score]:.1f}' for score in SCORES)} |")
    metrics = read_report(root / scale.runs / "narrator")["metrics"]
    said = ", ".join(f"{name} {metrics[name]:.2f}" for name in ("cider", "meteor", "rouge_l") if name in metrics)
    return "\n".join([*lines, "", f"The narrator on held-out clips: {said}."])
