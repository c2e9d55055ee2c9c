"""Whether training works: three tiny models from random weights, their evaluations, and a bar for each score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from lavila.walkthroughs import quickstart
from lavila.walkthroughs.quickstart import FOOTAGE, SHARDS, shard
from lavila.walkthroughs.steps import Step

SOURCE, SETS, RUNS = Path("data/learn/source"), Path("data/learn/shards"), Path("runs/learn")
QUESTIONS = Path("data/learn/questions/egomcq.json")
EGO4D_WORDS, OUR_WORDS = "#C C ", "the camera "  # how a sentence begins in Ego4D's form and in that of pre-training
CONTROL = "views.single_frame_control=true"


class Bar(NamedTuple):
    """The least that a score may be."""

    task: str  # name of the folder below a seed's, in which the evaluation's report lies
    metric: str
    least: float
    digits: int = 0  # behind the point, where it is shown: 0 of a percentage, 1 of a fraction; of a score, one more


# The scene alone is worth a good deal in some of these tasks: docs/LEARNING.md says how much. Each bar is above that.
BARS = (
    Bar("classification", "verb_top1", 95.0),
    Bar("zero_shot", "verb_top1", 60.0),
    Bar("zero_shot", "noun_top1", 80.0),
    Bar("retrieval", "map", 75.0),
    Bar("retrieval", "ndcg", 85.0),
    Bar("multiple_choice", "inter_accuracy", 75.0),
    Bar("multiple_choice", "intra_accuracy", 75.0),
    Bar("narration", "cider", 4.0, digits=1),
    Bar("narration", "meteor", 0.4, digits=1),
)


class Outcome(NamedTuple):
    """A score and what it is compared with."""

    bar: Bar
    seed: int
    score: float
    chance: float  # of a narrator: the most frequent sentence for every clip
    one_frame: float | None  # with the middle frame of a view in the place of all its frames: what the scene is worth

    @property
    def reached(self) -> bool:
        return self.score >= self.bar.least


def folder(seed: int, task: str) -> Path:
    """Where a seed's run or evaluation lies."""
    return RUNS / f"seed-{seed}" / task


def data_steps() -> list[Step]:
    """The quickstart's data, its retrieval form, and questions about another sample of the same validation footage."""
    # More videos of validation, so that a question can have its choices from five.
    sample = ["tools/make_sample_dataset.py", "--footage", FOOTAGE, "--out", str(SOURCE), "--form", "egomcq"]
    sample += ["--height", "80", "--train-clips", "12", "--val-clips", "108"]
    ego4d = SOURCE / "ego4d"
    return [
        *quickstart.data_steps(),
        shard("retrieval", dataset="ek100_mir", split="val", out=SETS / "ek100_mir/val"),
        Step("questions", SOURCE, sample),
        Step("words", QUESTIONS, ["tools/learn.py", "--reword", str(ego4d / "egomcq.json"), str(QUESTIONS)]),
        shard(
            "multiple_choice",
            dataset="egomcq",
            split="val",
            out=SETS / "egomcq/val",
            annotations=QUESTIONS,
            videos=ego4d / "videos",
        ),
    ]


def reword(source: Path, target: Path) -> None:
    """Write EgoMCQ's questions in the words of the sentences that the model is trained on."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(source.read_text(encoding="utf-8").replace(EGO4D_WORDS, OUR_WORDS), encoding="utf-8")


def seed_steps(seed: int) -> list[Step]:
    """Training and evaluation of the classifier, of the dual encoder and of the narrator."""
    classifier = ["--config", "quickstart", f"seed={seed}", f"run_dir={folder(seed, 'classification')}"]
    dual = ["--config", "learn_dual", f"seed={seed}"]
    trained = folder(seed, "pretraining")
    narrator = ["--config", "learn_narrator", f"seed={seed}", f"run_dir={folder(seed, 'narration')}"]
    evaluate = ["evaluate.py", *dual, f"checkpoint={trained}/checkpoints", CONTROL]
    sets = {"zero_shot": SHARDS / "val", "retrieval": SETS / "ek100_mir/val", "multiple_choice": SETS / "egomcq/val"}
    return [
        Step("train_classifier", None, ["train.py", *classifier]),
        Step("classification", None, ["evaluate.py", *classifier]),
        Step("pretrain", None, ["train.py", *dual, f"run_dir={trained}"]),
        *(
            Step(
                task,
                None,
                [
                    *evaluate,
                    f"run_dir={folder(seed, task)}",
                    f"task.name={task}",
                    "task.heads=[action]",
                    f"data.val={val}",
                ],
            )
            for task, val in sets.items()
        ),
        Step("train_narrator", None, ["train.py", *narrator, f"model.init={trained}/checkpoints"]),
        Step("narration", None, ["evaluate.py", *narrator, CONTROL]),
    ]


def outcomes(seed: int, *, root: Path) -> list[Outcome]:
    """The scores of a seed, from the reports of its evaluations. root: the checkout."""
    reports = {task: read_report(root / folder(seed, task)) for task in dict.fromkeys(bar.task for bar in BARS)}
    found = []
    for bar in BARS:
        metrics, controls = (reports[bar.task][part] for part in ("metrics", "controls"))
        names = (f"chance_{bar.metric}", f"most_frequent_{bar.metric}", "chance")
        chance = next(controls[name] for name in names if name in controls)
        found.append(
            Outcome(
                bar=bar,
                seed=seed,
                score=metrics[bar.metric],
                chance=chance,
                one_frame=controls.get(f"single_frame_{bar.metric}"),  # of headlines alone
            )
        )
    return found


def read_report(run_dir: Path) -> dict[str, Any]:
    """The newest report of an evaluation: that of another run's checkpoint has a folder below `evaluations`."""
    files = [run_dir / "report.json", *run_dir.glob("evaluations/*/report.json")]
    newest = max((file for file in files if file.exists()), key=lambda file: file.stat().st_mtime)
    report: dict[str, Any] = json.loads(newest.read_text(encoding="utf-8"))
    return report


def table(found: list[Outcome]) -> str:
    """A row for each bar and a column for each seed, as Markdown. Scores below the bar are marked."""
    seeds = sorted({one.seed for one in found})
    head = ["task", "score", "bar", "chance", "middle frame alone", *(f"seed {seed}" for seed in seeds)]
    lines = [head, ["---"] * len(head)]
    for bar in BARS:
        row = [one for seed in seeds for one in found if one.bar == bar and one.seed == seed]
        alone = sorted("" if one.one_frame is None else f"{one.one_frame:.{bar.digits}f}" for one in row)
        scores = [f"{one.score:.{bar.digits + 1}f}" for one in row]
        cells = [score if one.reached else f"**{score} (below)**" for one, score in zip(row, scores, strict=True)]
        frames = alone[0] if alone[0] == alone[-1] else f"{alone[0]} to {alone[-1]}"
        least, chance = (f"{value:.{bar.digits}f}" for value in (bar.least, row[0].chance))
        lines.append([bar.task, bar.metric, least, chance, frames, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
