"""`make learn` without its training: its commands fit each other, and a score below its bar is a failure."""

from __future__ import annotations

import json
from pathlib import Path

import learn
import pytest

from lavila.config.load import load_config
from lavila.report.files import read_stages
from lavila.walkthroughs import learning
from lavila.walkthroughs.steps import Step, run_steps

ROOT = Path(__file__).resolve().parents[2]


def test_every_command_finds_what_earlier_ones_made() -> None:
    made = {str(step.output) for step in learning.data_steps()}
    evaluated = []
    for step in learning.seed_steps(seed=3):
        script, option, name, *settings = step.command
        assert (ROOT / script).is_file() and option == "--config"
        config = load_config(name, settings)
        assert config.seed == 3 and (script == "evaluate.py" or config.model.init in {"random", *made})
        assert config.data.val in made
        if script == "train.py":
            assert config.data.train in made
            made.add(f"{config.run_dir}/checkpoints")
            continue
        assert (config.checkpoint or f"{config.run_dir}/checkpoints") in made
        assert config.task.name == step.name and Path(config.run_dir) == learning.folder(3, step.name)
        assert config.views.single_frame_control  # a column of the table
        evaluated.append(step.name)
    assert evaluated == list(dict.fromkeys(bar.task for bar in learning.BARS))


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with reports of seed 0 whose every score is exactly its bar; no command runs."""
    monkeypatch.setattr(learn, "run_steps", lambda program, steps, *, root, stages: 0)
    for task in {bar.task for bar in learning.BARS}:
        bars = [bar for bar in learning.BARS if bar.task == task]
        report = {
            "metrics": {bar.metric: bar.least for bar in bars},
            "controls": {"chance": 20.0} | {f"single_frame_{bar.metric}": 33.0 for bar in bars},
        }
        write(tmp_path / learning.folder(0, task) / "evaluations/pretraining-step-1/report.json", report)
    return tmp_path


def write(file: Path, report: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report))


def test_scores_at_their_bars_pass(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert learn.main([], root=reports) == 0
    shown = capsys.readouterr().out
    assert all(
        f"| {bar.task} | {bar.metric} | {bar.least:.{bar.digits}f} | {20:.{bar.digits}f} | {33:.{bar.digits}f} | "
        f"{bar.least:.{bar.digits + 1}f} |" in shown
        for bar in learning.BARS
    )
    kept = json.loads((reports / learning.RUNS / "learn.json").read_text())["scores"]
    assert [one["metric"] for one in kept] == [bar.metric for bar in learning.BARS]


@pytest.mark.parametrize("bar", learning.BARS, ids=lambda bar: f"{bar.task} {bar.metric}")
def test_a_score_below_its_bar_fails(bar: learning.Bar, reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = (reports / learning.folder(0, bar.task)).glob("evaluations/*/report.json")
    report = json.loads(file.read_text())
    report["metrics"][bar.metric] = bar.least - 0.1
    write(file, report)
    assert learn.main([], root=reports) == 1
    printed = capsys.readouterr()
    assert f"{bar.least - 0.1:.{bar.digits + 1}f} (below)" in printed.out and printed.err


def test_a_step_that_fails_stops_the_way(tmp_path: Path) -> None:
    (tmp_path / "make.py").write_text("import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir()")
    (tmp_path / "fail.py").write_text("raise SystemExit(3)")
    steps = [
        Step("first", Path("a"), ["make.py", "a"]),
        Step("second", None, ["fail.py"]),
        Step("third", Path("b"), ["make.py", "b"]),
    ]
    assert run_steps("learn", steps, root=tmp_path, stages=Path("run")) == 3
    assert (tmp_path / "a").is_dir() and not (tmp_path / "b").exists()
    assert set(read_stages(tmp_path / "run")) == {"first"}


def test_questions_get_the_words_of_the_training_sentences(tmp_path: Path) -> None:
    question = {"query": {"clip_text": "#C C zooms in on the ruins"}, "answer": 2}
    write(tmp_path / "egomcq.json", {"0": question})
    out = tmp_path / "new/egomcq.json"
    assert learn.main(["--reword", str(tmp_path / "egomcq.json"), str(out)]) == 0
    assert json.loads(out.read_text()) == {"0": question | {"query": {"clip_text": "the camera zooms in on the ruins"}}}
