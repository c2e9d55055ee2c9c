"""Labels: each clip once over any number of processes, the same ones after any interruption."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavila.annotations.ego4d import read_clips, read_narrations
from lavila.demo.footage import FootageError
from lavila.demo.narrators import OpenNarrator, open_narrator
from lavila.engine import label_sources, labeller
from lavila.engine.distributed import Process
from lavila.engine.label_sources import (
    LabelError,
    LabelPass,
    ShardClips,
    VideoWindows,
    long_videos,
    part_length,
    uncovered_videos,
)
from lavila.engine.labeller import LabelOptions, label, share_of
from lavila.models.generation import GenerationConfig
from lavila.shards.captions import CaptionError, Captions, read_captions, write_captions
from lavila.shards.reader import ShardSet
from tests.data.test_loader import damaged
from tests.footage import Coding, write_numbered_video
from tests.narrators import save_tiny_narrator

CHOSEN = GenerationConfig(num_return_sequences=3, max_length=10, top_p=0.95, temperature=0.7)
ALONE = Process(rank=0, world=1, local_world=1, device=torch.device("cpu"))
SLOW = Coding(fps=Fraction(10), gop=10)
BATCH = 2


@pytest.fixture(scope="module")
def narrator(tmp_path_factory: pytest.TempPathFactory) -> OpenNarrator:
    checkpoint, vocabulary = save_tiny_narrator(tmp_path_factory.mktemp("narrator"))
    device = torch.device("cpu")
    return open_narrator(str(checkpoint), vocabulary=str(vocabulary), options=CHOSEN, seed=0, device=device, half=False)


def clips_of(shards: ShardSet, narrator: OpenNarrator, **more: Any) -> ShardClips:
    return ShardClips(shards, narrator.look, ALONE, batch_size=BATCH, **more)


def options(out: Path, **more: Any) -> LabelOptions:
    return LabelOptions(out=out, batch_size=BATCH, **more)


def table(path: Path) -> dict[str, tuple[list[str], list[float]]]:
    return {row["clip_id"]: (row["narrations"], row["scores"]) for row in read_captions(path).to_pylist()}


@pytest.fixture(scope="module")
def whole(vp9_shards: ShardSet, narrator: OpenNarrator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labels of a shard set, made by one process."""
    out = tmp_path_factory.mktemp("labels") / "captions.parquet"
    assert label(clips_of(vp9_shards, narrator), narrator, options(out)) is not None
    return out


# ---------------------------------------------------------------- what is written


def test_labels_are_a_captions_table_that_training_takes(whole: Path, vp9_shards: ShardSet) -> None:
    found = read_captions(whole)
    assert sorted(found["clip_id"].to_pylist()) == sorted(vp9_shards.clips["clip_id"].to_pylist())
    assert set(found["source"].to_pylist()) == {"machine"}
    for texts, scores in table(whole).values():
        assert 1 <= len(texts) <= 3 and len(scores) == len(texts) and all(score > 1 for score in scores)
    words, sources = Captions(vp9_shards, ["own", str(whole)]).of(0)
    assert sources[0] == "human" and set(sources[1:]) == {"machine"} and len(words) > 1
    assert not whole.with_suffix(".failures.jsonl").exists()
    left = sorted(path.name for path in whole.with_name("captions.parquet.parts").iterdir())
    assert left == ["settings.json", "summary.json"]


def test_lavilas_pickle_has_the_same_texts_and_the_references_scores(
    whole: Path, vp9_shards: ShardSet, narrator: OpenNarrator, tmp_path: Path
) -> None:
    out = tmp_path / "captions.pkl"
    label(clips_of(vp9_shards, narrator), narrator, options(out, format="lavila-pkl"))
    entries = pickle.loads(out.read_bytes())
    assert isinstance(entries, list) and all(isinstance(entry, tuple) and len(entry) == 5 for entry in entries)
    rows = vp9_shards.clips.to_pylist()
    assert [entry[:3] for entry in entries] == [(r["video_id"], r["start_second"], r["stop_second"]) for r in rows]
    by_id = table(whole)
    for entry, row in zip(entries, rows, strict=True):
        assert entry[3] == by_id[row["clip_id"]][0]
        assert all(1 < score < 300 for score in entry[4])  # at most an even choice among all tokens
        assert entry[4] != by_id[row["clip_id"]][1]  # of the distributions, not of the tokens
    assert [words for _, words, _ in read_narrations(out)] == [tuple(entry[3]) for entry in entries]


# ---------------------------------------------------------------- processes and interruptions


def test_three_processes_make_the_same_labels_as_one(
    whole: Path, vp9_shards: ShardSet, narrator: OpenNarrator, tmp_path: Path
) -> None:
    out = tmp_path / "captions.parquet"
    ends = [label(clips_of(vp9_shards, narrator), narrator, options(out, share=(i, 3))) for i in (2, 0, 1)]
    assert ends[:2] == [None, None] and ends[2] is not None and ends[2].clips == 12
    assert table(out) == table(whole)


def test_after_a_kill_in_any_part_the_same_command_continues(
    whole: Path, vp9_shards: ShardSet, narrator: OpenNarrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "captions.parquet"
    say, asked = type(narrator.captioner).say, []

    def until(count: int) -> Any:
        def stopping(self: Any, video: Any, ids: Any) -> Any:
            if len(asked) == count:
                raise KeyboardInterrupt
            asked.append(list(ids))
            return say(self, video, ids)

        return stopping

    for count in (2, 3, 100):
        with monkeypatch.context() as patch:
            patch.setattr(type(narrator.captioner), "say", until(count))
            if count < 100:
                with pytest.raises(KeyboardInterrupt):
                    label(clips_of(vp9_shards, narrator), narrator, options(out))
                assert not out.exists()
            else:
                label(clips_of(vp9_shards, narrator), narrator, options(out, share=(0, 1)))
    assert len(asked) == 6 and sorted(itertools.chain(*asked)) == sorted(vp9_shards.clips["clip_id"].to_pylist())
    assert table(out) == table(whole)


def test_a_kill_at_any_file_costs_one_part_at_most(
    whole: Path, vp9_shards: ShardSet, narrator: OpenNarrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, written, stop_at = tmp_path / "captions.parquet", [], [0]
    before, asked = {"whole_path": labeller.whole_path, "whole_file": labeller.whole_file}, []
    say = type(narrator.captioner).say

    def listening(self: Any, video: Any, ids: Any) -> Any:
        asked.append(list(ids))
        return say(self, video, ids)

    def killed(name: str) -> Any:
        @contextmanager
        def writing(path: Path) -> Iterator[Any]:
            with before[name](path) as opened:
                yield opened
                written.append(path.name)
                if len(written) == stop_at[-1]:
                    raise KeyboardInterrupt  # its content is there, but not its name

        return writing

    monkeypatch.setattr(type(narrator.captioner), "say", listening)
    for name in before:
        monkeypatch.setattr(labeller, name, killed(name))
    ends: list[str] = []
    for operation in (1, 2, 3, 4, 2, 2):  # the settings; parts 0, 2 and 5; the list of bad clips; the summary
        written.clear()
        stop_at.append(operation)
        with pytest.raises(KeyboardInterrupt):
            label(clips_of(vp9_shards, narrator), narrator, options(out))
        ends.append(written[-1])
    parts = [f"part-00000{number}.parquet" for number in (0, 2, 5)]
    assert ends == ["settings.json", *parts, "captions.failures.jsonl", "summary.json"]
    stop_at.append(0)
    found = label(clips_of(vp9_shards, narrator), narrator, options(out))
    assert found is not None and found.clips == 12 and table(out) == table(whole)
    assert len(asked) == 6 + 3  # the three parts that were cut short were made twice


def test_a_kill_while_parts_are_joined_costs_only_the_joining(
    whole: Path, vp9_shards: ShardSet, narrator: OpenNarrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "captions.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(labeller, "write_captions", lambda *args, **more: os.kill(0, 0) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            label(clips_of(vp9_shards, narrator), narrator, options(out))
    with monkeypatch.context() as patch:
        patch.setattr(type(narrator.captioner), "say", None)
        found = label(clips_of(vp9_shards, narrator), narrator, options(out))
    assert found is not None and found.clips == 12 and table(out) == table(whole)


def test_another_process_that_joins_first_is_no_error(
    whole: Path, vp9_shards: ShardSet, narrator: OpenNarrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "captions.parquet"
    write = labeller.write_captions

    def other_first(path: Path, rows: Iterator[Any], *, source: str) -> int:
        first = next(rows)
        monkeypatch.setattr(labeller, "write_captions", write)
        assert label(clips_of(vp9_shards, narrator), narrator, options(out)) is not None
        return write(path, [first, *rows], source=source)

    monkeypatch.setattr(labeller, "write_captions", other_first)
    found = label(clips_of(vp9_shards, narrator), narrator, options(out))
    assert found is not None and found.clips == 12 and table(out) == table(whole)


def test_the_same_command_on_whole_labels_does_nothing(
    whole: Path, vp9_shards: ShardSet, narrator: OpenNarrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = whole.stat().st_mtime_ns
    monkeypatch.setattr(type(narrator.captioner), "say", None)
    found = label(clips_of(vp9_shards, narrator), narrator, options(whole))
    assert found is not None and found.clips == 12 and whole.stat().st_mtime_ns == before


def test_the_share_of_a_process_among_ranks_and_array_elements() -> None:
    process = replace(ALONE, rank=1, world=2)
    assert share_of(process, {}) == (1, 2)
    array = {
        f"SLURM_ARRAY_TASK_{name}": value for name, value in zip(("ID", "MIN", "MAX", "COUNT"), "5483", strict=True)
    }
    with pytest.raises(LabelError, match=r"--array=0-2"):
        share_of(process, array)
    array |= {"SLURM_ARRAY_TASK_COUNT": "5"}
    assert share_of(process, array) == ((5 - 4) * 2 + 1, 10)


def test_parts_are_whole_forward_passes_and_small_sets_have_many() -> None:
    assert part_length(4_000_000, 16) == 256 and part_length(4_000_000, 48) == 288
    assert part_length(100, 16) == 16 and part_length(3, 8) == 8 and part_length(1, 1) == 1


def test_rate_and_time_left_are_shown(
    vp9_shards: ShardSet, narrator: OpenNarrator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        label(clips_of(vp9_shards, narrator), narrator, options(tmp_path / "a.parquet"))
    assert "12 of 12 clips" in caplog.text and "clips/s" in caplog.text and "left" in caplog.text


# ---------------------------------------------------------------- bad clips and bad input


def test_a_bad_clip_is_listed_and_stops_nothing(
    whole: Path, vp9_shards: ShardSet, narrator: OpenNarrator, tmp_path: Path
) -> None:
    shards, out = damaged(vp9_shards, tmp_path, 3, 4), tmp_path / "out.parquet"
    found = label(clips_of(shards, narrator), narrator, options(out))
    assert found is not None and (found.clips, found.bad) == (10, 2)
    ids = vp9_shards.clips["clip_id"].to_pylist()
    lost = [json.loads(line) for line in out.with_suffix(".failures.jsonl").read_text().splitlines()]
    assert [one["clip_id"] for one in lost] == [ids[3], ids[4]] and all(one["reason"] for one in lost)
    assert table(out).keys() == set(ids) - {ids[3], ids[4]}
    with pytest.raises(LabelError, match="max-bad-clips"):
        label(clips_of(shards, narrator), narrator, options(tmp_path / "b.parquet", max_bad_clips=1))
    kept = list((tmp_path / "b.parquet.parts").glob("part-*.parquet"))
    assert kept  # finished parts
    assert label(clips_of(shards, narrator), narrator, options(tmp_path / "b.parquet", max_bad_clips=2)) is not None


def test_not_one_good_clip_is_an_error(vp9_shards: ShardSet, narrator: OpenNarrator, tmp_path: Path) -> None:
    shards, out = damaged(vp9_shards, tmp_path, *range(12)), tmp_path / "out.parquet"
    with pytest.raises(LabelError, match="not one clip"):
        label(clips_of(shards, narrator), narrator, options(out))
    assert not out.exists() and len(out.with_suffix(".failures.jsonl").read_text().splitlines()) == 12


def test_clips_in_quarantine_and_with_words_are_left_out(
    vp9_shards: ShardSet, narrator: OpenNarrator, tmp_path: Path
) -> None:
    ids = vp9_shards.clips["clip_id"].to_pylist()
    write_captions(tmp_path / "some.parquet", [(ids[2], ["a"], None), (ids[3], [], None)], source="human")
    source = clips_of(vp9_shards, narrator, captioned=[str(tmp_path / "some.parquet")])
    assert sum(source.part_sizes) == 11
    assert source.facts != clips_of(vp9_shards, narrator).facts
    with pytest.raises(LabelError, match="own"):  # all have words
        clips_of(vp9_shards, narrator, captioned=["own"])
    write_captions(tmp_path / "others.parquet", [("elsewhere", ["a"], None)], source="human")
    with pytest.raises(CaptionError, match=r"others\.parquet.*elsewhere.*clip_"):
        clips_of(vp9_shards, narrator, captioned=[str(tmp_path / "others.parquet")])


def test_labels_of_other_clips_or_settings_are_not_overwritten(
    whole: Path, vp9_shards: ShardSet, h264_shards: ShardSet, narrator: OpenNarrator, tmp_path: Path
) -> None:
    before = whole.read_bytes()
    with pytest.raises(LabelError, match="shards was"):
        label(clips_of(h264_shards, narrator), narrator, options(whole))
    with pytest.raises(LabelError, match="batch_size was 2, is 3"):
        label(clips_of(vp9_shards, narrator), narrator, replace(options(whole), batch_size=3))
    assert whole.read_bytes() == before
    foreign = tmp_path / "foreign.parquet"
    shutil.copy(whole, foreign)
    with pytest.raises(LabelError, match="is there already"):
        label(clips_of(vp9_shards, narrator), narrator, options(foreign))


def test_an_output_that_cannot_be_written_is_named(
    vp9_shards: ShardSet, narrator: OpenNarrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LabelError, match="file"):
        label(clips_of(vp9_shards, narrator), narrator, options(tmp_path / "file" / "a.parquet"))

    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(labeller, "whole_path", full)
    with pytest.raises(LabelError, match=r"part-000000.*No space left"):
        label(clips_of(vp9_shards, narrator), narrator, options(tmp_path / "a.parquet"))


# ---------------------------------------------------------------- videos


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    write_numbered_video(folder / "a.mp4", 60, SLOW)
    write_numbered_video(folder / "sub" / "b.mkv", 30, SLOW)
    (folder / "broken.mp4").write_bytes(b"x" * 500)
    return folder


def test_windows_of_a_folder_are_labelled_and_can_become_a_shard_set(
    videos: Path, narrator: OpenNarrator, tmp_path: Path
) -> None:
    found, failed = long_videos([videos], every=1.0, length=2.0)
    assert [one.video_id for one in found] == ["a", "sub/b.mkv"] and [name for name, _ in failed] == ["broken.mp4"]
    source = VideoWindows(found, narrator.look, batch_size=BATCH, unreadable=failed)
    assert list(source.part_sizes) == [2, 2, 2, 2, 1]
    out = tmp_path / "dense.pkl"
    labels = label(source, narrator, options(out, format="lavila-pkl"))
    assert labels is not None and (labels.clips, labels.bad) == (9, 1)
    entries = pickle.loads(out.read_bytes())
    assert [entry[:3] for entry in entries][:3] == [("a", 0.0, 2.0), ("a", 1.0, 3.0), ("a", 2.0, 4.0)]
    assert entries[5][:3] == ("a", 5.0, 6.0) and entries[6][:3] == ("sub/b.mkv", 0.0, 2.0)
    lost = json.loads(out.with_suffix(".failures.jsonl").read_text())
    assert lost["video_id"] == "broken.mp4" and lost["clip_id"] is None
    parquet = tmp_path / "dense.parquet"
    label(VideoWindows(found, narrator.look, batch_size=BATCH), narrator, options(parquet))
    clips = read_clips(out, "train").clips
    assert {clip.clip_id for clip in clips} == table(parquet).keys()  # a set that is made from the pickle has these ids
    assert {clip.clip_id: list(clip.narrations) for clip in clips} == {
        k: words for k, (words, _) in table(parquet).items()
    }


def test_two_processes_label_videos_as_one_does(videos: Path, narrator: OpenNarrator, tmp_path: Path) -> None:
    found, _ = long_videos([videos], every=1.0, length=2.0)
    tables = []
    for world in (1, 2):
        out = tmp_path / f"{world}.parquet"
        for rank in range(world):
            source = VideoWindows(found, narrator.look, batch_size=BATCH)
            label(source, narrator, options(out, share=(rank, world)))
        tables.append(table(out))
    assert tables[0] == tables[1]


def test_neighbouring_parts_are_read_in_one_go(
    videos: Path, narrator: OpenNarrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = label_sources.read_or_lose
    monkeypatch.setattr(
        label_sources,
        "read_or_lose",
        lambda path, windows, looks: reads.append(len(windows)) or read(path, windows, looks),
    )
    found, _ = long_videos([videos], every=1.0, length=2.0)
    source = VideoWindows(found, narrator.look, batch_size=BATCH)
    passes: list[LabelPass] = list(source.passes([0, 1, 2, 3, 4]))
    assert reads == [6, 3]
    assert [(one.part, len(one.clips), one.is_last) for one in passes] == [
        (0, 2, True), (1, 2, True), (2, 2, True), (3, 2, True), (4, 1, True),
    ]  # fmt: skip
    reads.clear()
    list(source.passes([0, 2]))
    assert reads == [2, 2]


def test_stretches_that_annotations_leave_uncovered(videos: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "ego4d.pkl"
    clips = [("a", 0.5, 2.0, "x"), ("a", 1.5, 3.0, "y"), ("a", 4.5, 99.0, "past the end"), ("gone", 0.0, 1.0, "z")]
    pickled.write_bytes(pickle.dumps(clips))
    found, failed = uncovered_videos(pickled, videos, every=0.5, length=1.0)
    assert [one.video_id for one in found] == ["a"] and [name for name, _ in failed] == ["gone.mp4"]
    assert found[0].spans == [(0.0, 0.5), (3.0, 4.5)]
    assert [(w.start, w.stop) for w in found[0].windows()] == [(0, 0.5), (3, 4), (3.5, 4.5), (4, 4.5)]


def test_annotations_that_leave_nothing_uncovered_are_said_to(videos: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "ego4d.pkl"
    pickled.write_bytes(pickle.dumps([("a", 0.0, 99.0, "x")]))
    found, failed = uncovered_videos(pickled, videos, every=0.5, length=1.0)
    with pytest.raises(LabelError, match="uncovered"):
        VideoWindows(found, None, batch_size=2, unreadable=failed)  # type: ignore[arg-type]


def test_parts_of_videos_past_their_end_and_folders_without_videos(videos: Path, tmp_path: Path) -> None:
    found, failed = long_videos([videos], every=1.0, length=1.0, between=(4.0, 9.0))
    assert [one.spans for one in found] == [[(4.0, 6.0)]]
    assert ("sub/b.mkv", "has 3.00 s, and --between begins at 4 s") in failed
    (tmp_path / "empty").mkdir()
    with pytest.raises(FootageError, match="empty"):
        long_videos([tmp_path / "empty"], every=1.0, length=1.0)
    with pytest.raises(LabelError, match="no window"):
        VideoWindows([], None, batch_size=2)  # type: ignore[arg-type]


def test_scores_are_perplexities(whole: Path) -> None:
    scores = np.array([score for _, found in table(whole).values() for score in found])
    assert np.isfinite(scores).all() and math.exp(0) < scores.min()
