"""tools/narrate.py: labels and subtitles from the command line, and what it refuses."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from fractions import Fraction
from pathlib import Path

import narrate
import pytest
import yaml

from lavila.checkpoints.store import save_model
from lavila.engine.narrating import vocabulary_of
from lavila.shards.captions import read_captions
from lavila.shards.reader import ShardSet
from tests import forks
from tests.footage import Coding, write_numbered_video
from tests.narrators import PICTURES, save_tiny_narrator
from tests.tasks.dual import tiny_model

ROOT = Path(__file__).parents[2]
SLOW = Coding(fps=Fraction(10), gop=10)
FEW = ["--num-return-sequences", "2", "--max-length", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    checkpoint, vocabulary = save_tiny_narrator(tmp_path_factory.mktemp("narrator"))
    return ["--checkpoint", str(checkpoint), "--vocabulary", str(vocabulary), *FEW]


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_numbered_video(tmp_path / "my.mp4", 60, SLOW)


def test_ones_own_video(video: Path, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert narrate.main(["--video", str(video), *model, "--still", "0"]) == 0
    out = capsys.readouterr().out
    assert "1 video, 6.0\u00a0s: 3 windows of 2 s" in out
    assert "0:00 - 0:02" in out and str(video.parent / "my.mp4.narration" / "my.html") in out
    assert out.index("3 windows") < out.index("0:00 - ")  # what it will take is said before
    assert narrate.main(["--video", str(video), *model, "--still", "0"]) == 0
    assert "0:00 - 0:02" not in capsys.readouterr().out  # all of it is there


def test_a_dual_encoder_finds_the_best_text(video: Path, model: list[str], tmp_path: Path) -> None:
    facts = {"pictures": json.dumps(PICTURES), "context_length": "16"}
    save_model(tiny_model(), tmp_path / "dual.safetensors", extra=facts)
    dual = ["--dual-encoder", str(tmp_path / "dual.safetensors"), "--still", "0"]
    assert narrate.main(["--video", str(video), *model, *dual]) == 0
    settings, *windows = (tmp_path / "my.mp4.narration" / "windows.jsonl").read_text().splitlines()
    assert len(json.loads(settings)["dual_encoder"]) == 64
    assert [json.loads(line)["best"] in (0, 1) for line in windows] == [True] * 3


def test_a_folder_with_a_broken_video(video: Path, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (video.parent / "broken.mp4").write_bytes(b"x" * 500)
    assert narrate.main(["--video", str(video.parent), *model, "--out", str(video.parent / "out")]) == 1
    assert (video.parent / "out" / "my.mp4.narration" / "my.srt").is_file()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(narrate, "start_log", lambda: None)
        assert narrate.main(["--video", str(video.parent / "broken.mp4"), *model]) == 1
    assert "broken.mp4: not a readable video" in capsys.readouterr().err


def test_labels_of_a_shard_set_and_of_windows(
    vp9_shards: ShardSet, video: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "machine.parquet"
    assert narrate.main(["--shards", str(vp9_shards.path), "--out", str(table), *model]) == 0
    assert len(read_captions(table)) == 12
    assert f"data.captions=[own, {table}]" in capsys.readouterr().out
    dense = tmp_path / "dense.pkl"
    assert narrate.main(["--video", str(video), "--every", "1", "--out", str(dense), *model]) == 0
    assert [entry[1:3] for entry in pickle.loads(dense.read_bytes())][:2] == [(0.0, 2.0), (1.0, 3.0)]
    known, rest = tmp_path / "ego4d.pkl", tmp_path / "rest.pkl"
    known.write_bytes(pickle.dumps([("my", 0.0, 3.0, "x")]))
    arguments = ["--video", str(video.parent), "--uncovered", str(known), "--out", str(rest), "--window", "1"]
    assert narrate.main([*arguments, "--every", "1", *model]) == 0
    assert [entry[1:3] for entry in pickle.loads(rest.read_bytes())] == [(3.0, 4.0), (4.0, 5.0), (5.0, 6.0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shards", "x"], "--out"),
        (["--shards", "x", "--out", "a.csv"], "a.csv"),
        (["--video", "x", "--out", "a.pkl", "--except", "own"], "--shards"),
        (["--video", "x", "--uncovered", "y", "--out", "a.pkl"], "--uncovered"),
        (["--video", "x", "--between", "5", "5"], "--between 5 5"),
        (["--video", "x", "--every", "0"], "--every 0"),
        (["--video", "x", "--out", "my.srt"], "--out my.srt"),
        (["--video", "x", "--batch-size", "0"], "--batch-size 0"),
        (["--video", "x", "--top-p", "2"], "top_p=2"),
        (["--video", "x", "--num-beams", "2", "--num-return-sequences", "3"], "num_return_sequences=3"),
        (["--video", "x", "--shards", "y"], "not allowed with"),
        ([], "required"),
    ],
)
def test_arguments_that_contradict_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        narrate.main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--video", "nowhere.mp4"], "nowhere.mp4"),
        (["--shards", "nowhere", "--out", "a.parquet"], "nowhere"),
        (["--video", "{video}", "--checkpoint", "nowhere.pth"], "nowhere.pth"),
        (["--video", "{video}", "--vocabulary", "{folder}"], "vocab.json"),
        (["--video", "{video}", "--between", "99", "100"], "6.00 s"),
        # Found before the model is looked for, which may have to be downloaded.
        (["--video", "{video}", "--checkpoint", "nowhere.pth", "--out", "{video}"], "another --out"),
        (["--video", "{video}", "--checkpoint", "nowhere.pth", "--out", "{video}/a.parquet"], "another --out"),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    arguments: list[str], message: str, video: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(video=video, folder=video.parent) for word in arguments]
    assert narrate.main([*model, *given]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert line.startswith("narrate: error: ") and message in line


def test_a_narrators_vocabulary_is_that_of_its_run(tmp_path: Path) -> None:
    checkpoint, vocabulary = save_tiny_narrator(tmp_path)
    assert vocabulary_of(str(checkpoint)) == "gpt2"
    config = {"model": {"decoder": {"vocabulary": str(vocabulary)}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert vocabulary_of(str(checkpoint)) == str(vocabulary)
    (tmp_path / "config.yaml").write_text("model: 3")
    assert vocabulary_of(str(checkpoint)) == "gpt2"


TOOL, ENVIRONMENT = ROOT / "tools/narrate.py", os.environ | {"OMP_NUM_THREADS": "1"}


def test_ranks_share_the_work(vp9_shards: ShardSet, model: list[str], tmp_path: Path) -> None:
    table = tmp_path / "machine.parquet"
    arguments = ["--shards", vp9_shards.path, "--out", table, "--batch-size", "2", *model]
    ranks = forks.run_ranks(2, TOOL, *arguments, environment=ENVIRONMENT)
    assert [rank.returncode for rank in ranks] == [0, 0], ranks
    assert len(read_captions(table)) == 12


def test_a_killed_video_continues(model: list[str], tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "long.mp4", 2000, SLOW)
    arguments = ["--video", str(video), "--still", "0", "--batch-size", "1", *model]
    killed = forks.start(TOOL, *arguments, environment=ENVIRONMENT)
    journal = tmp_path / "long.mp4.narration" / "windows.jsonl"
    for _ in range(1200):
        if journal.exists() and journal.read_bytes().count(b"\n") > 3:
            break
        time.sleep(0.05)
    killed.send_signal(signal.SIGINT)
    done = killed.communicate(timeout=60)
    assert done.returncode == 130 and "the same command continues" in done.stdout + done.stderr, done
    kept = journal.read_bytes()
    assert 3 < kept.count(b"\n") < 101 and not journal.with_name("long.html").exists()
    assert narrate.main(arguments) == 0
    assert journal.read_bytes().startswith(kept) and journal.read_bytes().count(b"\n") == 101
