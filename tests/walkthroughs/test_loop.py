"""The LaViLa loop at toy size: a narrator labels what people did not, and a dual encoder trains on both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import loop as loop_command
import narrate
import pytest

import evaluate
import train
from lavila.shards.captions import read_captions
from lavila.shards.reader import open_shard_set
from lavila.walkthroughs import loop
from tests.commands import run_here

ROOT = Path(__file__).parents[2]
MAINS = {
    "train.py": train.main,
    "evaluate.py": evaluate.main,
    "tools/loop.py": loop_command.main,
    "tools/narrate.py": narrate.main,
}


def clips_of(table: Path) -> set[str]:
    return set(read_captions(table)["clip_id"].to_pylist())


def test_the_loop_closes(toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # a path of the configs is relative to it
    monkeypatch.setenv("PATH", "")  # METEOR, a Java program, takes seconds to start
    toy = toy_data / "ek100/shards"
    scale = replace(loop.TOY, train=toy / "train", val=toy / "val", out=tmp_path / "tables", runs=tmp_path / "runs")
    for step in loop.steps(scale):
        script, *arguments = step.command
        done = run_here(MAINS[script], arguments)
        assert done.returncode == 0, (step.name, done.stdout, done.stderr)
        assert step.output is None or step.output.exists()
    ids = set(open_shard_set(toy / "train").clips["clip_id"].to_pylist())
    human, machine = (
        set(read_captions(scale.out / f"{name}.parquet")["clip_id"].to_pylist()) for name in ("human", "machine")
    )
    assert human and machine and human | machine == ids and not human & machine
    shown = loop.table(scale, root=ROOT)
    assert all(about in shown for about in loop.LEARNERS.values()) and "cider" in shown
