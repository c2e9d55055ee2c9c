"""Every published form of the sample dataset, read as plain files: what is in them, and that videos and words agree."""

from __future__ import annotations

import ast
import csv
import itertools
import json
import math
import pickle
import pickletools
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import make_sample_dataset as tool
import numpy as np
import numpy.typing as npt
import pytest

from lavila.sample import annotations as ek100
from lavila.sample import camera, charades, ego4d, egtea, forms, make
from lavila.sample.drawing import Footage, render
from lavila.sample.files import Rendering, Sample, VideoFile, gather
from tests.toy import CLIPS, EVERY_FORM, FOOTAGE

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def source() -> camera.Source:
    return camera.read_source(FOOTAGE)


def plan(source: camera.Source, *, seed: int = 0, videos: int = 4, **clips: int) -> Sample:
    planned = make.plan_videos([source], clips=CLIPS | clips, videos=videos, height=64, seed=seed)
    return Sample(videos=planned, seed=seed, chunk_seconds=2)


@pytest.fixture(scope="module")
def made(every_form: Path) -> Path:
    return every_form / "sample"


def load(file: Path) -> Any:
    """A pickle that names no class or function: nothing but containers, text and numbers."""
    content = file.read_bytes()
    assert not {op.name for op, _, _ in pickletools.genops(content)} & {"GLOBAL", "STACK_GLOBAL", "REDUCE"}
    return pickle.loads(content)


def pictures(file: Path) -> tuple[npt.NDArray[np.uint8], Fraction]:
    """All frames, uint8 [T, H * 3/2, W], and the frame rate."""
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert len(container.streams) == 1 and stream.codec_context.name == "h264"
        assert stream.average_rate is not None
        return np.stack([frame.to_ndarray() for frame in container.decode(stream)]), stream.average_rate


# ---------------------------------------------------------------- ego4d


def test_ego4d_pickles_are_lists_of_narrated_intervals(made: Path) -> None:
    for name, count in (("ego4d_train.pkl", CLIPS["train"]), ("ego4d_val.pkl", CLIPS["val"])):
        clips = load(made / "ego4d" / name)
        assert type(clips) is list and len(clips) == count
        for clip in clips:
            assert [type(part) for part in clip] == [str, float, float, str]
            uid, start, stop, narration = clip
            assert UUID4.fullmatch(uid)
            assert 0 <= start < stop
            assert narration.startswith("#C C ")


def test_ego4d_clips_overlap_adjoin_and_cross_chunks(made: Path) -> None:
    clips = load(made / "ego4d/ego4d_train.pkl") + load(made / "ego4d/ego4d_val.pkl")
    neighbours = [(a, b) for a, b in itertools.pairwise(clips) if a[0] == b[0]]
    assert any(b[1] < a[2] for a, b in neighbours)
    assert any(b[1] == a[2] for a, b in neighbours)
    assert any(b[1] > a[2] for a, b in neighbours)
    crossing = [clip for clip in clips if int(clip[1] // 2) != int(clip[2] // 2)]
    assert crossing
    longest = {uid: max(clip[2] for clip in clips if clip[0] == uid) for uid, *_ in clips}
    for uid, stop in longest.items():
        frames, fps = pictures(made / f"ego4d/videos/{uid}.mp4")
        assert fps == 30
        assert stop <= len(frames) / 30


def test_rephrased_and_machine_narrations_are_of_the_training_clips(made: Path) -> None:
    human = load(made / "ego4d/ego4d_train.pkl")
    rephrased = load(made / "ego4d/ego4d_train.rephraser.no_punkt_top3.pkl")
    assert [clip[:3] for clip in rephrased] == [clip[:3] for clip in human]
    for clip, (*_, narration) in zip(rephrased, human, strict=True):
        assert len(clip) == 4 and type(clip[3]) is list
        assert clip[3][0] == narration
        assert 1 <= len(set(clip[3])) == len(clip[3]) <= 3
    assert max(len(clip[3]) for clip in rephrased) > 1
    machine = load(made / "ego4d/ego4d_train.narrator_63690737.return_10.pkl")
    assert [clip[:3] for clip in machine] == [clip[:3] for clip in human]
    for clip in machine:
        assert len(clip) == 5
        assert [type(text) for text in clip[3]] == [str] * 10
        assert [type(score) for score in clip[4]] == [float] * 10
        assert min(clip[4]) > 1


def test_chunk_folders_hold_the_same_frames_as_whole_videos(made: Path) -> None:
    videos = sorted((made / "ego4d/videos").iterdir())
    assert [v.name for v in videos] == sorted(folder.name for folder in (made / "ego4d/video_chunks").iterdir())
    for video in videos:
        whole, _ = pictures(video)
        files = list((made / "ego4d/video_chunks" / video.name).iterdir())
        starts = sorted(int(file.stem) for file in files)
        assert starts == list(range(0, math.ceil(len(whole) / 30), 2)) and len(starts) > 2
        for start in starts:
            chunk, fps = pictures(made / "ego4d/video_chunks" / video.name / f"{start}.mp4")
            assert fps == 30
            wanted = whole[start * 30 : (start + 2) * 30]
            assert len(chunk) == len(wanted)
            assert np.abs(chunk.astype(float) - wanted).mean(axis=(1, 2)).max() < 3.0


def test_videos_show_their_narrations(made: Path, source: camera.Source) -> None:
    """At 30 frames per second, and in the trimmed clips at 24, the camera stands where the move says."""
    sample = plan(source)
    video = sample.videos[0]
    footage = Footage.load(FOOTAGE, video.first, video.stop, height=64)
    move = video.moves[1]
    clip = made / "egtea/cropped_clips" / egtea.session(video) / f"{egtea.clip_name(video, move)}.mp4"
    first = round(move.start * 24 / 100)
    for file, offset in ((made / f"ego4d/videos/{ego4d.uid(video, 0)}.mp4", 0), (clip, first)):
        frames, fps = pictures(file)
        for number in (0, len(frames) // 2, len(frames) - 1):
            second = Fraction(offset + number) / fps
            playing = camera.Video.footage_frame(video, int(second * video.fps))
            wanted = footage.render(playing, camera.pose_at(video.moves, float(second))).astype(float)
            assert np.abs(frames[number] - wanted).mean() < 6.0


# ---------------------------------------------------------------- egomcq


def read_questions(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "ego4d/egomcq.json").read_text())
    assert isinstance(found, dict)
    return found


def test_questions_have_the_published_form(made: Path) -> None:
    questions = read_questions(made)
    clips = {(uid, start, stop): text for uid, start, stop, text in load(made / "ego4d/ego4d_val.pkl")}
    assert list(questions) == [str(number) for number in range(2 * CLIPS["val"])]
    written = Counter[type]()
    for question in questions.values():
        assert set(question) == {"answer", "types", "query", "choices"}
        choices = question["choices"]
        assert list(choices) == ["0", "1", "2", "3", "4"]
        for choice in choices.values():
            assert set(choice) == {"video_uid", "clip_start", "clip_end", "clip_text"}
            written[type(choice["clip_start"])] += 1
            place = choice["video_uid"], float(choice["clip_start"]), float(choice["clip_end"])
            assert clips[place] == choice["clip_text"]
        texts = [choice["clip_text"] for choice in choices.values()]
        assert len(set(texts)) == 5
        assert texts[question["answer"]] == question["query"]["clip_text"]
        own = choices[str(question["answer"])]["video_uid"]
        others = [c["video_uid"] for k, c in choices.items() if k != str(question["answer"])]
        assert (question["types"] == 2) == (own in others)
        assert question["types"] == 1 or set(others) == {own}
    assert Counter(q["types"] for q in questions.values()) == {1: CLIPS["val"], 2: CLIPS["val"]}
    assert len({q["answer"] for q in questions.values()}) > 2
    assert written[str] > 0 and written[float] > 0 and len(written) == 2


def test_choices_are_from_five_videos_where_there_are_five(tmp_path: Path, source: camera.Source) -> None:
    ego4d.write_questions(plan(source, train=20, val=50, videos=7), tmp_path)
    for question in read_questions(tmp_path).values():
        videos = {choice["video_uid"] for choice in question["choices"].values()}
        assert len(videos) == {1: 5, 2: 1}[question["types"]]


def test_too_few_videos_to_ask_about_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--footage", str(FOOTAGE), "--out", str(tmp_path / "out"), "--form", "egomcq"]
    assert tool.main([*arguments, "--train-clips", "30", "--val-clips", "9", "--videos", "2"]) == 1
    message = capsys.readouterr().err
    assert (
        "egomcq: a question on a clip of P01_02 needs 4 clips with other narrations in other videos, there are 0"
        in message
    )
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- egtea


def test_egtea_lists_and_trimmed_clips(made: Path) -> None:
    lines = (made / "egtea/action_idx.txt").read_text().splitlines()
    names = {}
    for number, line in enumerate(lines, start=1):
        verb, noun, index = line.split(" ")
        assert re.fullmatch(r"[A-Z][a-z]+(_[A-Z][a-z]+)*", verb) and re.fullmatch(r"[a-z_]+", noun)
        assert int(index) == number
        names[number] = (verb.replace("_", "-").lower(), noun)
    assert len(names) == 36
    found = set()
    for name, count in (("train_split1.txt", CLIPS["train"]), ("test_split1.txt", CLIPS["val"])):
        rows = [line.split(" ") for line in (made / "egtea" / name).read_text().splitlines()]
        assert len(rows) == count
        for clip, action, verb, noun in rows:
            fields = clip.split("-")
            assert len(fields) == 7 and re.fullmatch(r"P\d\d-R\d\d-[A-Z][A-Za-z0-9]*", "-".join(fields[:3]))
            assert names[int(action)] == (
                camera.VERBS[int(verb) - 1],
                ["hillside", "meadow", "woods", "ruins"][int(noun) - 1],
            )
            path = Path("-".join(fields[:3])) / f"{clip}.mp4"
            frames, fps = pictures(made / "egtea/cropped_clips" / path)
            assert fps == 24
            first, stop = int(fields[5].removeprefix("F")), int(fields[6].removeprefix("F"))
            assert len(frames) == stop - first
            assert (first, stop) == tuple(round(int(ms) * 24 / 1000) for ms in fields[3:5])
            found.add(path)
    cropped = made / "egtea/cropped_clips"
    assert found == {file.relative_to(cropped) for file in cropped.rglob("*.mp4")}


# ---------------------------------------------------------------- charades_ego


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_charades_tables_videos_and_pickles(made: Path) -> None:
    folder = made / "charades_ego/CharadesEgo"
    classes = dict(line.split(" ", 1) for line in (folder / "Charades_v1_classes.txt").read_text().splitlines())
    assert list(classes) == [f"c{number:03}" for number in range(36)]
    assert classes["c000"] == "Pans left over the hillside"
    header = (
        "id,subject,scene,quality,relevance,verified,script,objects,descriptions,"
        "actions,length,egocentric,charades_video\n"
    )
    named = set()
    for split, count in (("train", CLIPS["train"]), ("test", CLIPS["val"])):
        file = folder / f"CharadesEgo_v1_{split}_only1st.csv"
        assert file.read_text().startswith(header)
        assert '"A person says ""look"", then' in file.read_text()
        rows = read_csv(file)
        assert sum(row["actions"] == "" for row in rows) == 1
        annotated = []
        for row in rows:
            assert re.fullmatch(r"[0-9A-Z]{5}EGO", row["id"]) and row["id"] == row["charades_video"] + "EGO"
            named.add(f"{row['id']}.mp4")
            frames, fps = pictures(made / f"charades_ego/CharadesEgo_v1_480/{row['id']}.mp4")
            assert fps == 30
            assert len(frames) == math.ceil(float(row["length"]) * 30)
            for action in filter(None, row["actions"].split(";")):
                code, start, stop = action.split(" ")
                assert re.fullmatch(r"\d+\.\d\d", start) and re.fullmatch(r"\d+\.\d\d", stop)
                assert 0 <= float(start) < float(stop) <= float(row["length"])
                annotated.append((row["id"], float(start), float(stop), classes[code].lower()))
        assert len(annotated) == count
        assert max(Counter(name for name, *_ in annotated).values()) == 3
        pickled = load(folder / f"metadata_filtered_{'train' if split == 'train' else 'val'}.pkl")
        assert [type(part) for part in pickled[0]] == [str, float, float, str]
        assert pickled == annotated
    assert named == {file.name for file in (made / "charades_ego/CharadesEgo_v1_480").iterdir()}


def test_pieces_share_out_the_moves(source: camera.Source) -> None:
    sample = plan(source, train=90, val=36, videos=6)
    pieces = charades.pieces(sample)
    assert len({piece.name for piece in pieces}) == len(pieces)
    shared = [(piece.video.video_id, move.start) for piece in pieces for move in piece.moves]
    assert shared == [(video.video_id, move.start) for video in sample.videos for move in video.moves]
    for piece in pieces:
        for move in piece.moves:
            assert piece.first <= move.start * 30 / 100 < move.stop * 30 / 100 <= piece.stop
    for glide in (piece for piece in pieces if not piece.moves):
        assert 9 <= glide.stop - glide.first <= 30
        shown = {
            move.verb for move in glide.video.moves if move.start < glide.stop / 0.3 and move.stop > glide.first / 0.3
        }
        assert shown == set()


# ---------------------------------------------------------------- ek100_mir


def test_relevancy_follows_its_formula(made: Path) -> None:
    folder = made / "annotations"
    for split, width in (("train", 6), ("test", 6)):
        clips = read_csv(folder / f"EPIC_100_retrieval_{split}.csv")
        by_id = {row["narration_id"]: row for row in clips}
        sentences = [by_id[r["narration_id"]] for r in read_csv(folder / f"EPIC_100_retrieval_{split}_sentence.csv")]
        relevancy = pickle.loads((folder / f"relevancy/caption_relevancy_EPIC_100_retrieval_{split}.pkl").read_bytes())
        assert isinstance(relevancy, np.ndarray)
        assert relevancy.shape == (len(clips), len(sentences)) and relevancy.shape[1] >= width
        for (i, clip), (j, sentence) in itertools.product(enumerate(clips), enumerate(sentences)):
            ours, theirs = (set(ast.literal_eval(row["all_noun_classes"])) for row in (clip, sentence))
            same_verb = clip["verb_class"] == sentence["verb_class"]
            assert relevancy[i, j] == (same_verb + len(ours & theirs) / len(ours | theirs)) / 2
        assert (relevancy.max(axis=0) == 1).all() and (relevancy.max(axis=1) == 1).all()


# ---------------------------------------------------------------- all together


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("named", list(forms.FORMS))
def test_the_same_arguments_give_the_same_bytes_whatever_other_forms_there_are(
    made: Path, tmp_path: Path, source: camera.Source, named: str
) -> None:
    sample, form = plan(source), forms.FORMS[named]
    form.write(sample, tmp_path)
    for rendering in gather(form.files(sample)):
        render(rendering, tmp_path, lambda frames: None)
    everything, files = contents(made), contents(tmp_path)
    assert files
    assert {name: everything[name] for name in files} == files


def test_another_form_is_another_data_set(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*EVERY_FORM, "--out", str(made)]
    assert tool.main(arguments) == 0
    assert "already there" in capsys.readouterr().out
    assert tool.main([*arguments[: arguments.index("--chunk-seconds")], "--out", str(made)]) == 1
    assert "made with another form, chunk_seconds; remove it" in capsys.readouterr().err
    assert tool.main([*arguments, "--chunk-seconds", "3"]) == 1
    assert "made with another chunk_seconds; remove it" in capsys.readouterr().err


def test_another_seed_gives_other_names(source: camera.Source) -> None:
    names = []
    for seed in (0, 1):
        sample = plan(source, seed=seed)
        names.append({ego4d.uid(video, seed) for video in sample.videos} | {p.name for p in charades.pieces(sample)})
    assert not names[0] & names[1]


def test_each_moment_is_rendered_once_for_all_files(source: camera.Source) -> None:
    sample = plan(source)
    renderings = gather(shown for form in forms.FORMS.values() for shown in form.files(sample))
    rates = Counter(rendering.video.fps for rendering in renderings)
    assert rates == {Fraction(50): 2, Fraction(60000, 1001): 2, Fraction(30): 4, Fraction(24): 4}
    for rendering in renderings:
        if rendering.video.fps == 30:
            assert rendering.frames == rendering.video.frames < sum(f.stop - f.first for f in rendering.files)
        if rendering.video.fps == 24:
            assert rendering.frames < rendering.video.frames  # the glides between two clips are not needed
    video = sample.videos[0]
    parts = [VideoFile(path="a", first=0, stop=5), VideoFile(path="b", first=3, stop=9)]
    assert Rendering(video=video, files=parts).frames == 9


def test_forms_bring_what_they_need() -> None:
    assert forms.with_needed(["egomcq", "ek100_mir", "egomcq"]) == ["ek100", "ek100_mir", "ego4d", "egomcq"]
    assert forms.with_needed(["egtea"]) == ["egtea"]
    assert ek100.SENTENCES and len(ego4d.OTHER_WORDS) == len(ek100.SENTENCES) == len(camera.VERBS)
