"""tools/make_captions.py: captions tables from LaViLa's pickles and from csv files."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import make_captions
import pytest

from lavila.annotations.ego4d import read_clips
from lavila.shards.captions import Captions, read_captions
from lavila.shards.reader import ShardSet

ROOT = Path(__file__).parents[2]
VIDEO = "3f0c2f2e-7a6d-4a3e-9a9e-000000000001"
REPHRASED = [
    (VIDEO, 1.25, 2.5, ["#C C cuts the leek", "#C C slices a leek", "切る é e\u0301 🥬"]),
    (VIDEO, 3.0, 4.0, ["", "  "]),
    (VIDEO, 5.0, 6.5, ['#C C  opens,\n"the" drawer\t']),
]
NARRATED = [
    (VIDEO, 1.25, 2.5, ["#C C cuts", "", "#C C looks"], [1.5, 9.0, 2.25]),
    (VIDEO, 5.0, 6.5, ["#C C opens"], [3.0]),
]
CSV = 'clip_id,narration,score\r\nclip_1,"cut, ""stir""",1.5\r\nclip_2,切る 🥬,2\r\nclip_1,again,.25\r\nclip_1,,7\r\n'


def run(folder: Path, content: Any, *more: str, source: str = "machine") -> tuple[int, Path]:
    """The tool in this process: exit status and the table's path."""
    if isinstance(content, str):
        given = ["--csv", str(folder / "words.csv")]
        (folder / "words.csv").write_text(content, encoding="utf-8", newline="")
    else:
        given = ["--ego4d", str(folder / "words.pkl")]
        (folder / "words.pkl").write_bytes(pickle.dumps(content))
    out = folder / "words.parquet"
    return make_captions.main([*given, "--source", source, "--out", str(out), *more]), out


def words(path: Path) -> dict[str, tuple[list[str], list[float] | None]]:
    return {row["clip_id"]: (row["narrations"], row["scores"]) for row in read_captions(path).to_pylist()}


def test_the_rephrasers_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(tmp_path, REPHRASED, source="rephrased")
    assert status == 0
    clips = [clip.clip_id for clip in read_clips(tmp_path / "words.pkl", "train").clips]  # the ids that shards have
    assert words(out) == {clips[0]: (REPHRASED[0][3], None), clips[2]: (REPHRASED[2][3], None)}
    assert set(read_captions(out).column("source").to_pylist()) == {"rephrased"}
    said = capsys.readouterr().out
    assert f"{out}: 4 narrations of 2 clips, source rephrased" in said
    assert "1 clips are left out: they have no narration that is not empty" in said
    assert f"data.captions=[own, {out}]" in said


def test_the_narrators_pickle_keeps_the_scores_of_the_narrations_that_stay(tmp_path: Path) -> None:
    status, out = run(tmp_path, NARRATED)
    assert status == 0
    assert list(words(out).values()) == [(["#C C cuts", "#C C looks"], [1.5, 2.25]), (["#C C opens"], [3.0])]


def test_a_csv_file_with_several_rows_of_a_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(tmp_path, CSV)
    assert status == 0
    assert words(out) == {
        "clip_1": (['cut, "stir"', "again"], [1.5, 0.25]),
        "clip_2": (["切る 🥬"], [2.0]),
    }
    said = capsys.readouterr().out
    assert "3 narrations of 2 clips, source machine" in said and "1 empty narrations are left out" in said


def test_csv_columns_may_come_in_any_order_with_others_between(tmp_path: Path) -> None:
    status, out = run(tmp_path, "\ufeffwho,narration,clip_id\nme, spaces stay ,clip_1\n", source="human")
    assert status == 0 and words(out) == {"clip_1": ([" spaces stay "], None)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("clip,narration\na,b\n", r"words\.csv, line 1: no column 'clip_id'; found .*clip.*, .*narration"),
        ("clip_id,narration\na,b,c\n", "line 2: 3 cells, but the header has 2"),
        ("clip_id,narration\n ,b\n", "line 2, column 'clip_id': is empty"),
        ("clip_id,narration,score\na,b,1\nc,d,high\n", "line 3, column 'score': 'high' is not a number"),
        ("clip_id,narration,score\na,b,1\na,d,\n", "clip 'a' has narrations with and without a score"),
        ("clip_id,narration,score\na,b,\na,d,2\n", "clip 'a' has narrations with and without a score"),
        ('clip_id,narration\na,"b\n', "not valid csv"),
        ("clip_id,narration\na,\n", r"holds no narrations \(1 empty ones\); nothing to write"),
        ("clip_id,narration\n", r"holds no narrations \(0 empty ones\)"),
        ([(VIDEO, 1.0, 2.0)], "entry 0: 3 values"),
        ([(VIDEO, 1.0, 2.0, ["a", "b"], [1.0])], "2 narrations but 1 scores"),
    ],
)
def test_what_cannot_be_read_leaves_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str
) -> None:
    status, out = run(tmp_path, content)
    said = capsys.readouterr().err.splitlines()[-1]
    assert status == 1 and not out.exists()
    assert said.startswith("make_captions: error: ")
    assert re.search(message, said), said


def test_a_file_that_is_not_utf8_or_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin.csv").write_bytes("clip_id,narration\na,é\n".encode("latin-1"))
    for name, message in (("latin.csv", "not UTF-8 text"), ("none.csv", "not found")):
        given = ["--csv", str(tmp_path / name), "--source", "human", "--out", str(tmp_path / "t.parquet")]
        assert make_captions.main(given) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "t.parquet").exists()


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(tmp_path, [Path("x")])
    assert status == 1 and not out.exists() and "make_captions: error: " in capsys.readouterr().err


def test_a_table_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(tmp_path, CSV)
    before = out.read_bytes()
    assert status == 0 and run(tmp_path, CSV)[0] == 1
    assert "is there already; remove it or give another name" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_coverage_of_a_shard_set(vp9_shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "".join(f"{name},words\n" for name in ("clip_1", "clip_4", "other_1", "other_2", "other_3", "other_4"))
    status, out = run(tmp_path, f"clip_id,narration\n{lines}", "--shards", str(vp9_shards.path))
    assert status == 0
    said = capsys.readouterr().out
    assert f"2 of 12 clips of {vp9_shards.path} have captions\n  without: clip_0, clip_2, clip_6 ...\n" in said
    assert "4 rows are for clips that are not in the set\n  such as: other_1, other_2, other_3 ...\n" in said
    assert Captions(vp9_shards, [out]).of(vp9_shards.clips.column("clip_id").to_pylist().index("clip_4")) == (
        ("words",),
        ("machine",),
    )


def test_whole_coverage_gives_no_examples(
    vp9_shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(f"clip_{i},words\n" for i in range(12))
    assert run(tmp_path, f"clip_id,narration\n{lines}", "--shards", str(vp9_shards.path))[0] == 0
    said = capsys.readouterr().out
    assert "12 of 12 clips" in said and "0 rows are for clips that are not in the set" in said
    assert "without:" not in said and "such as:" not in said


def test_words_of_other_clips_are_refused(
    vp9_shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = run(tmp_path, "clip_id,narration\nother,words\n", "--shards", str(vp9_shards.path))
    assert status == 1 and not out.exists()
    said = capsys.readouterr().err
    assert f"none of the 1 clips, such as 'other', is in {vp9_shards.path}, whose clips are named like 'clip_0'" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--csv", "a.csv", "--ego4d", "b.pkl", "--source", "human", "--out", "o"], "not allowed with argument"),
        (["--source", "human", "--out", "o"], "one of the arguments --ego4d --csv is required"),
        (["--csv", "a.csv", "--source", " ", "--out", "o"], "--source: is empty; give for example human"),
    ],
)
def test_wrong_arguments_are_status_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as end:
        make_captions.main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_the_command_line_and_its_help(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/make_captions.py")]
    text = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "python tools/make_captions.py --ego4d ego4d_narrator.pkl --source machine --out narrator.parquet" in text
    assert "Exit status: 0 table written, 1 not, 2 wrong arguments" in text
    (tmp_path / "words.csv").write_text(CSV, encoding="utf-8")
    given = ["--csv", str(tmp_path / "words.csv"), "--source", "human", "--out", str(tmp_path / "t.parquet")]
    done = subprocess.run([*command, *given], capture_output=True, text=True, check=True)
    assert "3 narrations of 2 clips, source human" in done.stdout and "writing: 100%" in done.stderr
    assert words(tmp_path / "t.parquet")["clip_2"] == (["切る 🥬"], [2.0])
