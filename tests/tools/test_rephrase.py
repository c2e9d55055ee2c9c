"""tools/rephrase.py: a table in, a table out, also after an interruption."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rephrase

from lavila.engine.command_line import compute_the_same_bits
from lavila.ingest.rephrasing import Rephrasing, settings_of
from lavila.models.paraphraser import PARAPHRASER, PUBLISHED, Paraphraser
from lavila.shards.captions import read_captions, write_captions
from lavila.shards.reader import ShardSet
from tests.models.tiny_paraphraser import save_paraphraser
from tests.test_docs import ROOT

FEW = ("--number", "3", "--keep", "2", "--batch-size", "2", "--max-length", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_paraphraser(tmp_path_factory.mktemp("t5"))


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    rows = [(f"clip_{number}", [f"#C C picks cup {number}", "C stirs"], None) for number in range(5)]
    write_captions(tmp_path / "human.parquet", rows, source="human")
    return tmp_path / "human.parquet"


def run(captions: Path, model: Path | str, out: Path, *more: str) -> int:
    return rephrase.main(["--captions", str(captions), "--model", str(model), "--out", str(out), *FEW, *more])


@pytest.mark.parametrize("how", [(), ("--sample", "--top-p", "0.9", "--seed", "3")])
def test_an_interrupted_run_continues(
    captions: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(captions, model, tmp_path / "whole.parquet", *how) == 0
    wanted = read_captions(tmp_path / "whole.parquet")
    assert wanted.column("clip_id").to_pylist() == [f"clip_{number}" for number in range(5)]
    assert all(1 <= len(texts) <= 4 for texts in wanted.column("narrations").to_pylist())
    assert "data.captions=[own" in capsys.readouterr().out

    calls: list[int] = []
    whole = Paraphraser.__call__

    def interrupted(self: Paraphraser, captions: list[str], *args: Any, **options: Any) -> Any:
        calls.append(len(captions))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, captions, *args, **options)

    monkeypatch.setattr(Paraphraser, "__call__", interrupted)
    out = tmp_path / "out.parquet"
    assert run(captions, model, out, *how) == 130
    assert not out.exists()
    assert run(captions, model, out, "--seed", "9") == 1  # other options do not mix with what is done
    assert run(captions, model, out, *how) == 0
    assert len(calls) == 3 + 3
    assert read_captions(out).equals(wanted)
    assert sorted(path.name for path in tmp_path.glob("out.parquet*journal*")) == []


def test_a_shard_sets_own_narrations(vp9_shards: ShardSet, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    given = ["--shards", str(vp9_shards.path), "--model", str(model), "--out", str(out)]
    assert rephrase.main([*given, *FEW]) == 0
    narrated = [row["clip_id"] for row in vp9_shards.clips.to_pylist() if any(row["narrations"])]
    assert narrated
    assert read_captions(out).column("clip_id").to_pylist() == sorted(narrated)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--model", "/nowhere/t5"), "hf download"),
        (("--sample", "--temperature", "0"), "temperature=0.0"),
        (("--captions", "absent.parquet"), "absent.parquet"),
        (("--out", "/proc/no/out.parquet"), "/proc/no"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    captions: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], named: str
) -> None:
    assert run(captions, model, tmp_path / "out.parquet", *more) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("rephrase: error: ") and named in line
    assert not (tmp_path / "out.parquet").exists()


def test_a_finished_table_is_not_overwritten(captions: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    out.write_bytes(b"mine")
    assert run(captions, model, out) == 1
    assert out.read_bytes() == b"mine"


def test_without_options_words_are_chosen_as_published() -> None:
    args = rephrase.parser().parse_args(["--captions", "x", "--out", "y"])
    given = (args.number, args.keep, args.max_length, args.sample, args.punctuation, args.seed)
    assert given == (None, None, None, False, False, 0) and settings_of() == Rephrasing()
    help_text = "".join(rephrase.parser().format_help().split())
    defaults = (f"caption({PUBLISHED.num_beams})", f"caption({Rephrasing().keep})", f"included({PUBLISHED.max_length})")
    assert all(one in help_text for one in (f"({PARAPHRASER})", *defaults))


TORCH = "import os, sys; print(os.environ.get('MKL_CBWR'), os.environ.get('OMP_WAIT_POLICY')); os._exit(9)"


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--config", "quickstart"],
        ["evaluate.py", "--config", "quickstart"],
        ["tools/narrate.py", "--video", "x"],
        ["tools/demo.py", "--videos", "x", "--model", "y"],
        ["tools/embed_videos.py", "--videos", "x", "--model", "y"],
        ["tools/rephrase.py", "--captions", "x", "--out", "y"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_with_a_model_asks_for_one_order_of_sums_before_pytorch(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MKL_CBWR", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "torch.py").write_text(TORCH)
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    compute_the_same_bits()
    assert done.returncode == 9 and done.stdout.split()[-2:] == [str(os.environ.get("MKL_CBWR")), "PASSIVE"], done
    monkeypatch.delenv("MKL_CBWR", raising=False)
