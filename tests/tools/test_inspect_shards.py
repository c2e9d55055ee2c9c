"""tools/inspect_shards.py: what it prints, finds and draws, and its exit status."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inspect_shards
import numpy as np
import pytest
import torch
from PIL import Image

from lavila.cluster.workers import Progress
from lavila.config.load import load_config
from lavila.engine import build
from lavila.inspection import verify
from lavila.inspection.facts import amount, duration, failure_groups
from lavila.inspection.preview import BOX, CARD, FRAMES, chosen_rows, label_text, letterboxed, printable, sheet_size
from lavila.shards.format import ShardSetError
from lavila.shards.reader import ShardSet, open_shard_set
from tests.commands import run_here
from tests.inspection import test_verify
from tests.inspection.test_verify import break_frame, renew_hashes, write_chunks, write_clips
from tests.shards.older_sets import as_format_2
from tests.tools.test_shard_interrupted import in_a_small_world

TOOL = Path(__file__).parents[2] / "tools" / "inspect_shards.py"
encoded = test_verify.encoded  # the fixture


@pytest.fixture
def clips(tmp_path: Path, encoded: list[bytes]) -> ShardSet:
    return write_clips(tmp_path / "set", encoded)


@pytest.fixture
def chunks(tmp_path: Path) -> ShardSet:
    return write_chunks(tmp_path / "chunked")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The tool in this process."""
    return run_here(inspect_shards.main, arguments)


def figures(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit status and JSON."""
    status = inspect_shards.main([*map(str, arguments), "--json"])
    return status, json.loads(capsys.readouterr().out)


def text(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit status and what is printed, spaces folded."""
    status = inspect_shards.main([*map(str, arguments)])
    return status, "\n".join(" ".join(line.split()) for line in capsys.readouterr().out.splitlines())


def test_figures_of_clips(clips: ShardSet, capsys: pytest.CaptureFixture[str]) -> None:
    status, facts = figures(capsys, clips.path)
    frames = np.array(test_verify.FRAMES) - 5
    size = sum((clips.path / f"shard-00000{n}.tar").stat().st_size for n in range(2))
    assert status == 0
    assert (facts["clips"], facts["videos"], facts["shards"], facts["chunks"], facts["layout"]) == (
        8,
        4,
        2,
        None,
        "clips",
    )
    assert (facts["dataset"], facts["split"], facts["format"]) == ("made_up", "val", 3)
    assert facts["seconds"] == pytest.approx(
        {
            "total": frames.sum() / 25,
            "min": 4 / 25,
            "median": np.median(frames) / 25,
            "p90": np.quantile(frames, 0.9) / 25,
            "max": 1.0,
            "stored": sum(test_verify.FRAMES) / 25,  # margins count
        }
    )
    assert facts["bytes"]["total"] == size and facts["bytes"]["per_clip"] == size / 8
    assert facts["bytes"]["per_stored_second"] == pytest.approx(size / facts["seconds"]["stored"])
    assert facts["bytes"]["per_tar"]["max"] <= size
    assert facts["encoder"] == test_verify.ENCODER
    assert facts["pictures"] == [{"height": 64, "width": 96, "count": 8}]
    assert facts["frame_rates"] == [{"fps": 25.0, "count": 8}]
    assert facts["labelled"] == {"narrations": 5, "labels": 4, "verb": 8, "noun": 7, "action": 0}
    assert facts["classes"] == {"verb": 2, "noun": 1, "labels": 2}
    assert facts["tables"] == {"clips.parquet": 8, "sentences.parquet": 1}
    assert facts["lengths"] == [
        {"from": 0.0, "to": 0.25, "clips": 1},
        {"from": 0.25, "to": 0.5, "clips": 2},
        {"from": 0.5, "to": 1.0, "clips": 4},
        {"from": 1.0, "to": 2.0, "clips": 1},
    ]
    assert (facts["failures"], facts["quarantine"]) == ([], 0)


def test_figures_of_chunks(chunks: ShardSet, capsys: pytest.CaptureFixture[str]) -> None:
    status, facts = figures(capsys, chunks.path)
    assert (status, facts["clips"], facts["videos"], facts["shards"], facts["chunks"]) == (0, 5, 2, 2, 5)
    assert facts["layout"] == "chunks"
    assert facts["seconds"]["stored"] == pytest.approx(160 / 25)  # what clips share is there once
    assert facts["seconds"]["total"] == pytest.approx(109 / 25)
    assert facts["pictures"] == [{"height": 64, "width": 96, "count": 5}]


def test_the_text_says_the_same(clips: ShardSet, capsys: pytest.CaptureFixture[str]) -> None:
    (clips.path / "failures.jsonl").write_text(
        "".join(
            json.dumps({"clip_id": f"x{i}", "video": f"P/{i}.MP4", "reason": reason}) + "\n"
            for i, reason in enumerate(["begins at 1.50 s", "no such video", "begins at 12 s"])
        )
    )
    test_verify.write_quarantine(
        clips.path, [test_verify.Quarantined(clip_id="clip_2", shard="shard-000000.tar", reason="bad")]
    )
    status, shown = text(capsys, clips.path)
    assert status == 0
    for line in (
        f"{clips.path}: made_up, split val, format 3, layout clips",
        "holds 8 clips of 4 videos in 2 shards",
        "duration 4.6 s of clips, 6.2 s of video stored",
        "clip length min 0.16 s, median 0.56 s, p90 0.86 s, max 1.00 s",
        "coding codec vp9, crf 12, speed 8",
        "pictures 96x64 (8 clips)",
        "frame rates 25 fps (8 clips)",
        "with words narrations 5 (62 %)",
        "with labels labels 4 (50 %) of 2 classes, verb 8 (100 %) of 2 classes, noun 7 (88 %) of 1 classes",
        "more tables sentences.parquet (1 rows)",
        "failures 3 clips could not be stored",
        "quarantine 1 clips are left out of training and evaluation",
        "2 begins at 1.50 s; for example x0 of P/0.MP4",
        "1 no such video; for example x1 of P/1.MP4",
    ):
        assert line in shown.splitlines(), shown
    assert "0.5 - 1 s 4 ████████████████████████████████████████" in shown
    assert "0.25 - 0.5 s 2 ████████████████████\n" in shown


def test_bars_are_plain_where_the_terminal_is(clips: ShardSet) -> None:
    done = subprocess.run(
        [sys.executable, str(TOOL), str(clips.path)],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert b"####" in done.stdout


def test_failures_are_grouped_without_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "failures.jsonl"
    lines = [{"clip_id": str(i), "video": "v", "reason": f"damaged after {i}.{i} s"} for i in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert failure_groups(path) == [
        {"reason": "damaged after 0.0 s", "count": 20, "example": {"clip_id": "0", "video": "v"}}
    ]
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=r"failures\.jsonl, line 1"):
        failure_groups(path)


@pytest.mark.parametrize(
    ("value", "wanted"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 KB"), (5.6e8, "560 MB"), (4.3e15, "4.3e+03 TB")]
)
def test_amounts(value: float, wanted: str) -> None:
    assert amount(value) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"), [(2.34, "2.3 s"), (59.9, "59.9 s"), (61, "1 min 01 s"), (3600 * 3700 + 240, "3,700 h 04 min")]
)
def test_durations(value: float, wanted: str) -> None:
    assert duration(value) == wanted


def test_what_is_not_a_shard_set_is_an_error_in_one_line(clips: ShardSet, tmp_path: Path) -> None:
    manifest = clips.path / "shard_set.json"
    kept = manifest.read_text()
    cases = [(tmp_path / "none", "no such folder"), (tmp_path, "not a shard set: it has no shard_set.json")]
    for folder, message in cases:
        done = run(folder)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"inspect_shards: error: {folder}: {message}" in done.stderr and done.stderr.count("\n") == 1
    manifest.unlink()
    assert "run tools/shard_videos.py again with --resume" in run(clips.path, "--verify").stderr
    manifest.write_text(kept.replace('"format": 3', '"format": 7'))
    assert "shard-set format 7, supported are 2 and 3" in run(clips.path, "--json").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: DIR"),
        (["x", "--preview", "4"], "--preview N and --out PNG go together"),
        (["x", "--out", "a.png"], "--preview N and --out PNG go together"),
        (["x", "--preview", "0", "--out", "a.png"], "'0' is not a whole number of at least 1"),
        (["x", "--preview", "4", "--out", "a.jpg"], "give a name that ends in .png"),
        (["x", "--preview", "4", "--out", "/nowhere/a.png"], "no such folder /nowhere"),
        (["x", "--workers", "-1"], "at least 0"),
        (["x", "--quarantine", "bad.jsonl"], "add --verify"),
        (["x", "--verify", "--quarantine", "/nowhere/bad.jsonl"], "no file can be written there"),
        (["x", "--verify", "--quarantine", "/"], "no file can be written there"),
    ],
)
def test_wrong_arguments_end_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        inspect_shards.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_pictures_cannot_be_compared_without_a_gpu(clips: ShardSet) -> None:
    done = run(clips.path, "--nvdec", 3)
    assert done.returncode == 1 and str(clips.path) in done.stderr and "--nvdec" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_verify_reports_and_quarantines_and_forgets(clips: ShardSet) -> None:
    """The whole command, from damage to a set that is whole again."""
    tar = clips.path / "shard-000000.tar"
    sound, manifest = tar.read_bytes(), (clips.path / "shard_set.json").read_bytes()
    break_frame(clips, table=clips.clips, row=2, frame=4)
    renew_hashes(clips.path)
    done = run(clips.path, "--verify")
    assert done.returncode == 1, done.stderr
    assert "bad clip: clip_2 in shard-000000.tar: damaged on the disk" in done.stdout
    assert f"1 of 8 clips are listed in {clips.path}/quarantine.jsonl" in done.stdout
    assert "bad=1" in done.stderr and "10/10" in done.stderr, "the progress bar"
    (line,) = (clips.path / "quarantine.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {"clip_id", "shard", "reason"}
    assert open_shard_set(clips.path).usable_rows().tolist() == [0, 1, 3, 4, 5, 6, 7]
    tar.write_bytes(sound)
    (clips.path / "shard_set.json").write_bytes(manifest)
    again = run(clips.path, "--verify", "--json", "--workers", 1)
    assert again.returncode == 0, again.stderr
    facts = json.loads(again.stdout)
    assert facts["verified"] == {
        "decoder": "host",
        "problems": [],
        "quarantine": [],
        "quarantine_file": f"{clips.path}/quarantine.jsonl",
        "quarantine_unwritten": None,
    }
    assert facts["quarantine"] == 0 and not (clips.path / "quarantine.jsonl").exists()


def broken(clips: ShardSet) -> Path:
    break_frame(clips, table=clips.clips, row=2, frame=4)
    renew_hashes(clips.path)
    return clips.path


def test_verify_of_a_set_on_a_read_only_disk(clips: ShardSet) -> None:
    """Once damaged and once sound; nothing can be written or removed there."""
    folder = broken(clips)
    tool = f"{sys.executable} {TOOL} {folder} --verify --workers 1"
    done = in_a_small_world(
        f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} || exit 99; {tool}; echo status $?"
    )
    assert "status 1" in done.stdout and "Traceback" not in done.stderr
    assert "bad clip: clip_2 in shard-000000.tar" in done.stdout
    assert f"{folder}/quarantine.jsonl cannot be written (Read-only file system)" in done.stdout
    assert "--quarantine FILE" in done.stdout
    assert "--quarantine FILE" in done.stderr  # said before the work, too
    assert not (folder / "quarantine.jsonl").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize("sound", [False, True])
def test_a_quarantine_that_cannot_be_written_costs_no_finding(
    number: int, sound: bool, clips: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clips.path if sound else broken(clips)
    if sound:
        (folder / "quarantine.jsonl").write_text('{"clip_id": "clip_1", "shard": "s", "reason": "earlier"}\n')

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(verify, "whole_file", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    done = run(folder, "--verify")
    assert done.returncode == (0 if sound else 1) and "Traceback" not in done.stderr
    assert ("sound: " in done.stdout) == sound
    assert ("bad clip: clip_2" in done.stdout) != sound
    assert os.strerror(number) in done.stdout and str(folder / "quarantine.jsonl") in done.stdout


def test_a_quarantine_elsewhere(clips: ShardSet, tmp_path: Path) -> None:
    """It is written there, and a run that names it leaves the clips out."""
    file = tmp_path / "bad.jsonl"
    done = run(broken(clips), "--verify", "--quarantine", file)
    assert done.returncode == 1 and f"listed in {file}" in done.stdout
    assert not (clips.path / "quarantine.jsonl").exists()
    settings = [f"data.val={clips.path}", f"data.quarantine={file}"]
    shards = build.shard_set(load_config("quickstart", settings), "val")
    assert list(shards.quarantine) == ["clip_2"] and shards.usable_rows().tolist() == [0, 1, 3, 4, 5, 6, 7]
    assert pickle.loads(pickle.dumps(shards)).quarantine == shards.quarantine  # as a worker process gets it
    with pytest.raises(ShardSetError, match=r"none\.jsonl"):
        build.shard_set(load_config("quickstart", [settings[0], f"data.quarantine={tmp_path}/none.jsonl"]), "val")


def test_verify_of_a_sound_set_with_chunks(chunks: ShardSet) -> None:
    done = run(chunks.path, "--verify")
    assert done.returncode == 0, done.stderr
    assert "sound: checksums, members, indexes and tables agree; all 5 clips decode with host" in done.stdout


def test_interrupting_leaves_the_quarantine_as_it_was(clips: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    quarantine = clips.path / "quarantine.jsonl"
    quarantine.write_text('{"clip_id": "clip_1", "shard": "shard-000000.tar", "reason": "earlier"}\n')
    before = {path.name: path.read_bytes() for path in clips.path.iterdir()}

    def interrupted(jobs: object, *, on_progress: Callable[[Progress], None], **settings: object) -> None:
        on_progress(Progress(stored=3, failed=1))
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "run_jobs", interrupted)
    done = run(clips.path, "--verify")
    assert done.returncode == 130
    assert "interrupted; quarantine.jsonl" in done.stderr and "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in clips.path.iterdir()} == before


def brightness(sheet: Image.Image, place: int, columns: int) -> list[int]:
    """How many different colours each frame's place of a card has."""
    from lavila.inspection.preview import GAP, HEAD, MARGIN, PADDING, TITLE

    down, right = divmod(place, columns)
    left = MARGIN + right * (CARD[0] + MARGIN) + PADDING
    top = HEAD + MARGIN + down * (CARD[1] + MARGIN) + PADDING + TITLE + 6
    boxes = [(left + n * (BOX[0] + GAP), top) for n in range(FRAMES)]
    return [len(np.unique(np.asarray(sheet.crop((x, y, x + BOX[0], y + BOX[1]))))) for x, y in boxes]


@pytest.mark.parametrize(("layout", "count"), [("clips", 5), ("clips", 3), ("chunks", 40)])
def test_a_preview_shows_clips_over_the_whole_set(
    layout: str, count: int, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard_set: ShardSet = request.getfixturevalue(layout)
    out = tmp_path / "sheet.png"
    status, facts = figures(capsys, shard_set.path, "--preview", count, "--out", out)
    shown = min(count, len(shard_set))
    with Image.open(out) as opened:
        assert (opened.format, opened.size) == ("PNG", sheet_size(shown))
        sheet = opened.convert("RGB")
    assert status == 0 and facts["preview"] == {"path": str(out), "width": sheet.width, "height": sheet.height}
    for place in range(shown):
        assert min(brightness(sheet, place, 1 if shown <= 3 else 2)) > 8, "an empty place has three values"
    cards = [sheet.crop((0, y, CARD[0], y + CARD[1])) for y in range(100, sheet.height - CARD[1], CARD[1] + 24)]
    assert len({card.tobytes() for card in cards}) == len(cards), "no two cards are alike"
    inspect_shards.main([str(shard_set.path), "--preview", str(count), "--out", str(tmp_path / "again.png")])
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()


def test_a_preview_that_cannot_be_drawn_costs_no_finding(
    clips: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lavila.inspection.preview.write_preview", lambda *_: open("/nowhere/sheet.png"))  # noqa: SIM115, PTH123
    status, facts = figures(capsys, clips.path, "--verify", "--preview", 1, "--out", tmp_path / "sheet.png")
    assert status != 0 and facts["verified"]["problems"] == [] and "preview" not in facts


def test_preview_rows_are_spread_and_leave_the_quarantine_out(clips: ShardSet) -> None:
    assert chosen_rows(clips, 2) == [2, 6]
    assert chosen_rows(clips, 8) == chosen_rows(clips, 99) == list(range(8))
    clips.quarantine = {"clip_2": "bad"}
    assert chosen_rows(clips, 99) == [0, 1, 3, 4, 5, 6, 7]


def test_a_clip_that_cannot_be_shown_says_why(clips: ShardSet, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.png", tmp_path / "broken.png"
    assert inspect_shards.main([str(clips.path), "--preview", "8", "--out", str(whole)]) == 0
    break_frame(clips, table=clips.clips, row=0, frame=3)
    assert inspect_shards.main([str(clips.path), "--preview", "8", "--out", str(broken)]) == 0
    with Image.open(broken) as sheet:
        assert brightness(sheet, 0, 2) == [3] * FRAMES, "one dark colour"  # red, green and blue differ a little
        assert min(brightness(sheet, 1, 2)) > 8


def test_pictures_keep_their_shape() -> None:
    tall = letterboxed(np.zeros((320, 180, 3), np.uint8))
    assert tall.size == (round(180 * BOX[1] / 320), BOX[1])
    assert letterboxed(np.zeros((288, 512, 3), np.uint8)).size == BOX
    assert letterboxed(np.zeros((16, 1024, 3), np.uint8)).size == (BOX[0], 3)


def test_words_of_a_card() -> None:
    classes = {"verb": ["take"], "labels": ["Sit", "Stand\nup"]}
    row: dict[str, Any] = {"verb": 0, "noun": 4, "action": None, "labels": [1, 0, 7]}
    assert label_text(row, classes) == "verb take  ·  noun #4  ·  labels Stand up, Sit, #7"
    assert printable("  a\n\tb\x00\u202ec 日本 ") == "a b  c 日本"


def test_a_preview_copes_with_any_text(clips: ShardSet, tmp_path: Path) -> None:
    words = ["日本語の説明", "عربى", "🎬 emoji", "#C C " + "Donaudampfschifffahrt" * 40, "", "a\u0000b\u202e"]
    for number, word in enumerate(words):
        test_verify.change_table(clips, "clips.parquet", "narrations", number, [word, "two"])
    assert inspect_shards.main([str(clips.path), "--preview", "8", "--out", str(tmp_path / "x.png")]) == 0
    with Image.open(tmp_path / "x.png") as sheet:
        sheet.load()
        assert sheet.size == sheet_size(8)


def test_a_set_made_before_gets_its_mapped_table(clips: ShardSet) -> None:
    manifest = json.loads((clips.path / "shard_set.json").read_text())
    (clips.path / "clips.arrow").unlink()
    (clips.path / "shard_set.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "mapped"}))
    done = run(clips.path, "--add-mapped", "--json")
    assert done.returncode == 0 and done.stderr.strip() == "written: clips.arrow"
    assert json.loads(done.stdout)["clips"] == 8
    assert json.loads((clips.path / "shard_set.json").read_text()) == manifest
    assert open_shard_set(clips.path).verify(full=True) == []


def test_a_set_made_before_gets_checksums(clips: ShardSet) -> None:
    before = {path.name: path.read_bytes() for path in clips.path.iterdir()}
    as_format_2(clips.path)
    assert "none: " in run(clips.path).stdout
    done = run(clips.path, "--add-checksums", "--json")
    assert done.returncode == 0 and "written: clips.parquet, clips.arrow" in done.stderr
    assert json.loads(done.stdout)["checksums"] is True
    assert {path.name: path.read_bytes() for path in clips.path.iterdir()} == before
    again = run(clips.path, "--add-checksums")
    assert again.returncode == 0 and "has checksums already" in again.stderr
    as_format_2(clips.path)
    with (clips.path / "shard-000001.tar").open("r+b") as tar:
        tar.seek(600)
        tar.write(b"damage")
    refused = run(clips.path, "--add-checksums")
    assert refused.returncode == 1 and "shard-000001.tar: SHA-256 is not the one on record" in refused.stderr
    assert "Traceback" not in refused.stderr and open_shard_set(clips.path).manifest["format"] == 2
