"""The whole LaViLa loop on the sample dataset: a narrator writes captions, and a dual encoder trains on them as well.

A quarter of the training clips keep the captions that people wrote. A dual encoder and, over its tower, a narrator are
trained on those. The narrator labels all other clips. A second dual encoder is trained on both kinds of captions, a
third on all human captions, which a real dataset would not have. All three make about as many updates, and a table
compares them. Every step is a command that is shown before it runs. What is there already is kept, trained models too.

`--toy` runs the same commands in seconds with a model that learns nothing: it shows that the loop closes.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import argparse
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import quickstart
from learn import read_report
from quickstart import ROOT, Step, run_steps

from lavila.engine.command_line import run_tool
from lavila.files import user_path
from lavila.shards.captions import write_captions
from lavila.shards.reader import open_shard_set

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


def split(shards: Path, table: Path) -> None:
    """Write the captions that a quarter of the clips keep; which clips these are follows from their ids alone."""
    clips = open_shard_set(ROOT / shards).clips
    words = dict(zip(clips["clip_id"].to_pylist(), clips["narrations"].to_pylist(), strict=True))
    mixed = sorted(words, key=lambda clip_id: (zlib.crc32(clip_id.encode()), clip_id))
    kept = [(clip_id, words[clip_id], None) for clip_id in mixed[: len(mixed) // KEEPS]]
    table.parent.mkdir(parents=True, exist_ok=True)
    write_captions(table, kept, source="human")
    print(f"{table}: captions of {len(kept)} of {len(clips)} clips")


def table_of(scale: Scale) -> str:
    """Scores of the three dual encoders and of the narrator, as Markdown."""
    lines = [f"| trained on | {' | '.join(f'{name}, %' for name in SCORES)} |", "| --- " * (len(SCORES) + 1) + "|"]
    for name, about in LEARNERS.items():
        metrics = read_report(ROOT / scale.runs / "evaluated" / name)["metrics"]
        lines.append(f"| {about} | {' | '.join(f'{metrics[score]:.1f}' for score in SCORES)} |")
    metrics = read_report(ROOT / scale.runs / "narrator")["metrics"]
    said = ", ".join(f"{name} {metrics[name]:.2f}" for name in ("cider", "meteor", "rouge_l") if name in metrics)
    return "\n".join([*lines, "", f"The narrator on held-out clips: {said}."])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="the datasets of tools/make_toy_data.py, in seconds")
    parser.add_argument("--split", type=user_path, nargs=2, metavar=("SHARDS", "TABLE"), help="one of the steps alone")
    asked = parser.parse_args(arguments)
    if asked.split:
        return run_tool("loop", lambda: split(*asked.split), interrupted="nothing was written")
    scale = TOY if asked.toy else SAMPLE
    data = [] if asked.toy else [step for step in quickstart.steps() if step.output]
    if status := run_steps([*data, *steps(scale)], stages=scale.runs):
        return status
    print(f"\n{table_of(scale)}\n")
    return 0


if __name__ == "__main__":
    run_main(main)
