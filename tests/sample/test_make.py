"""The sample dataset: its plan, its files, and that the same seed gives the same bytes."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import multiprocessing
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import make_sample_dataset as tool
import numpy as np
import pytest

from lavila.annotations import read_annotations
from lavila.annotations.base import AnnotationSet
from lavila.plan.frames import frame_span
from lavila.sample import camera, make, render
from lavila.sample.annotations import write_annotations
from lavila.sample.drawing import Footage
from lavila.sample.files import Rendering, Sample
from tests.commands import run_here

ROOT = Path(__file__).parents[2]

FOOTAGE = ROOT / "assets/bigbuckbunny.mp4"
SMALL = ["--train-clips", "9", "--val-clips", "9", "--videos", "4", "--height", "64"]


@pytest.fixture(scope="module")
def source() -> camera.Source:
    return camera.read_source(FOOTAGE)


def plan(
    source: camera.Source, *, seed: int = 0, train: int = 90, val: int = 36, videos: int = 6
) -> list[camera.Video]:
    return make.plan_videos([source], clips={"train": train, "val": val}, videos=videos, height=64, seed=seed)


# ---------------------------------------------------------------- plan


def test_plan_follows_the_seed(source: camera.Source) -> None:
    def described(videos: list[camera.Video]) -> str:
        return repr(videos)

    assert described(plan(source)) == described(plan(source))
    assert described(plan(source)) != described(plan(source, seed=1))


def test_plan_is_balanced_and_timed(source: camera.Source) -> None:
    videos = plan(source)
    for split, count in (("train", 90), ("val", 36)):
        chosen = [video for video in videos if video.split == split]
        moves = [move for video in chosen for move in video.moves]
        assert len(moves) == count
        assert {video.fps for video in chosen} == {Fraction(50), Fraction(60000, 1001)}
        per_verb = np.bincount([move.verb for move in moves], minlength=9)
        per_pair = np.bincount([move.verb * 4 + move.scene for move in moves], minlength=36)
        assert np.ptp(per_verb) <= 1
        assert np.ptp(per_pair) <= 1
        lengths = np.array([move.stop - move.start for move in moves]) / 100
        assert lengths.min() >= 1.0
        assert lengths.max() <= 3.0
        assert 1.3 < lengths.mean() < 1.7
    for video in videos:
        gaps = [b.start - a.stop for a, b in itertools.pairwise(video.moves)]
        assert min(gaps) >= 30
        assert max(gaps) <= 100
        assert video.frames / video.fps > video.moves[-1].stop / 100


def test_training_and_validation_play_different_moments(source: camera.Source) -> None:
    videos = plan(source)
    shown = {
        split: {v.first + v.footage_frame(n) for v in videos if v.split == split for n in range(v.frames)}
        for split in ("train", "val")
    }
    assert max(shown["train"]) + 5 < min(shown["val"])
    assert len(shown["train"]) == 92
    assert len(shown["val"]) == 33
    assert max(shown["val"]) == source.frames - 1


def test_footage_plays_to_and_fro_at_its_own_speed(source: camera.Source) -> None:
    video = plan(source)[0]
    playing = np.array([video.footage_frame(n) for n in range(video.frames)])
    assert np.abs(np.diff(playing)).max() == 1
    turns = 25 * video.frames / float(video.fps) / (video.stop - video.first)
    assert np.abs(np.diff(playing)).sum() == pytest.approx(25 * video.frames / float(video.fps) - turns, abs=2)


def test_camera_glides_between_moves(source: camera.Source) -> None:
    video = plan(source)[0]
    seconds = np.arange(0, video.moves[-1].stop / 100, 0.002)
    steps = np.abs(np.diff([camera.pose_at(video.moves, float(s)) for s in seconds], axis=0)).max(axis=0)
    assert (steps < [0.02, 0.01, 0.02, 0.02]).all()  # nowhere a jump
    move = video.moves[3]
    for t in (0.0, 0.25, 1.0):
        second = (move.start + t * (move.stop - move.start)) / 100
        np.testing.assert_allclose(
            camera.pose_at(video.moves, second), move.middle + move.travel * (t - 0.5), atol=1e-9
        )


# ---------------------------------------------------------------- the command


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_here(tool.main, ["--footage", FOOTAGE, *arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "a"
    done = run("--out", str(out), *SMALL, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "made: 4 videos" in done.stdout
    assert "9 training and 9 validation clips" in done.stdout
    assert f"--annotations {out}/annotations --videos {out}/videos" in done.stdout
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def read(made: Path, split: str) -> AnnotationSet:
    return read_annotations("ek100_cls", made / "annotations", split=split)


def test_same_seed_gives_the_same_bytes_however_many_workers(made: Path) -> None:
    again = made.with_name("again")
    assert run("--out", str(again), *SMALL, "--workers", "1").returncode == 0
    assert contents(made) == contents(again)
    assert sorted(path.name for path in made.parent.iterdir()) == ["a", "again"]  # nothing half-made is left


def test_the_bytes_stay_what_they_were(made: Path, source: camera.Source) -> None:
    """Words by their hash; a video, since encoders differ between machines, by encoding it once more."""
    words = hashlib.sha256()
    for name, content in contents(made / "annotations").items():
        words.update(name.encode() + b"\0" + content)
    assert words.hexdigest() == "92c91f5b6db90bc7004d90fe82782696dcd8b62a39f5de632d7d63f4751dbf88"
    arguments = json.loads((made / make.MANIFEST).read_text())["arguments"]
    assert (
        hashlib.sha256(json.dumps(arguments).encode()).hexdigest()
        == "99c9d8cf4d70fc97c682917623e487dda1789fac1d5d60d93d8c6a15797791b2"
    )
    video = plan(source, train=9, val=9, videos=4)[3]
    footage = Footage.load(FOOTAGE, video.first, video.stop, height=64)
    again = made.with_name("again.mp4")
    with av.open(str(again), "w", format="mp4") as container:
        options = {"preset": "ultrafast", "crf": "21", "bf": "2", "g": str(int(video.fps)), "threads": "1"}
        stream = container.add_stream("libx264", rate=video.fps, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 114, "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 6, 6, 6, 1
        for number in range(video.frames):
            picture = footage.render(
                video.footage_frame(number), camera.pose_at(video.moves, float(number / video.fps))
            )
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = number, 1 / video.fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert again.read_bytes() == (made / video.file).read_bytes()
    again.unlink()


def test_another_seed_gives_other_csvs(made: Path, tmp_path: Path, source: camera.Source) -> None:
    write_annotations(plan(source, seed=1, train=9, val=9, videos=4), tmp_path / "annotations")
    ours = contents(made / "annotations")
    other = contents(tmp_path / "annotations")
    assert set(ours) == set(other)
    assert ours["EPIC_100_train.csv"] != other["EPIC_100_train.csv"]
    assert ours["EPIC_100_verb_classes.csv"] == other["EPIC_100_verb_classes.csv"]


def test_videos_are_as_cameras_make_them(made: Path) -> None:
    rates = {}
    for split in ("train", "val"):
        for clip in read(made, split).clips:
            with av.open(str(made / "videos" / clip.video_path)) as container:
                assert len(container.streams) == 1
                stream = container.streams.video[0]
                context = stream.codec_context
                assert (context.name, context.pix_fmt, context.height, context.width) == ("h264", "yuv420p", 64, 114)
                assert (int(context.colorspace), int(context.color_range)) == (6, 1)  # BT.601, limited
                assert stream.average_rate is not None
                rates[clip.video_id] = stream.average_rate
                stop = frame_span(clip.start_second, clip.stop_second or -1.0, float(stream.average_rate))[1]
                assert stop <= stream.frames
    assert set(rates.values()) == {Fraction(50), Fraction(60000, 1001)}
    assert len(rates) == 4


def test_decoded_frames_are_the_planned_poses(made: Path, source: camera.Source) -> None:
    video = plan(source, train=9, val=9, videos=4)[0]
    footage = Footage.load(FOOTAGE, video.first, video.stop, height=64)
    with av.open(str(made / video.file)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in (0, 77, 200):
                pose = camera.pose_at(video.moves, float(number / video.fps))
                wanted = footage.render(video.footage_frame(number), pose)[:64].astype(float)
                assert np.abs(frame.to_ndarray()[:64] - wanted).mean() < 3.0
            if number == 200:
                break
    assert number == 200


def test_csvs_have_the_published_form(made: Path) -> None:
    folder = made / "annotations"
    clip_header = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
        "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
    )
    headers = {
        "EPIC_100_train.csv": clip_header,
        "EPIC_100_validation.csv": clip_header,
        "EPIC_100_retrieval_train.csv": clip_header,
        "EPIC_100_retrieval_test.csv": clip_header,
        "EPIC_100_verb_classes.csv": "id,key,instances,category",
        "EPIC_100_noun_classes.csv": "id,key,instances,category",
        "EPIC_100_video_info.csv": "video_id,duration,fps,resolution",
        "EPIC_100_retrieval_train_sentence.csv": "narration_id,narration,verb_class,noun_classes,verb,nouns",
        "EPIC_100_retrieval_test_sentence.csv": "narration_id,narration",
    }
    files = contents(folder)
    assert set(files) == set(headers)
    for name, header in headers.items():
        end = b"\r\n" if name.endswith("_classes.csv") else b"\n"
        assert files[name].startswith(header.encode() + end), name
        assert (b"\r" in files[name]) == (end == b"\r\n"), name
    assert files["EPIC_100_validation.csv"] == files["EPIC_100_retrieval_test.csv"]
    found = read(made, "train")
    assert found.failures == []
    assert found.classes["verb"] == list(camera.VERBS)
    assert found.classes["noun"] == ["hillside", "meadow", "woods", "ruins"]
    for clip in found.clips:
        verb, noun = found.classes["verb"][clip.verb or 0], found.classes["noun"][clip.noun or 0]
        assert clip.narrations == (f"the camera {tool_sentence(verb)} the {noun}",)
    with (folder / "EPIC_100_retrieval_train_sentence.csv").open(newline="") as stream:
        sentences = list(csv.DictReader(stream))
    by_id = {clip.clip_id: clip.narrations[0] for clip in found.clips}
    assert [row["narration"] for row in sentences] == list(dict.fromkeys(by_id.values()))
    assert all(by_id[row["narration_id"]] == row["narration"] for row in sentences)


def tool_sentence(verb: str) -> str:
    words = {"pan": "pans {} over", "tilt": "tilts {} over", "rotate": "rotates {} over", "hold": "holds still on"}
    kind, _, way = verb.partition("-")
    return {"zoom-in": "zooms in on", "zoom-out": "zooms out from"}.get(verb) or words[kind].format(way)


def arguments_for(out: Path, *more: str, footage: Path = FOOTAGE) -> list[str]:
    return ["--footage", str(footage), "--out", str(out), *SMALL, *more]


def test_what_is_already_there_is_kept(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in made.rglob("*")}
    assert tool.main(arguments_for(made)) == 0
    assert "already there: 4 videos" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in made.rglob("*")} == before


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert tool.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_another_dataset_is_not_overwritten(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, arguments_for(made, "--seed", "1"))
    assert "holds a sample dataset made with another seed; remove it, or give another --out" in message
    (tmp_path / "precious.txt").write_text("keep me")
    assert "exists and is no sample dataset" in refusal(capsys, arguments_for(tmp_path))
    assert (tmp_path / "precious.txt").read_text() == "keep me"


def test_a_damaged_dataset_is_not_taken_for_whole(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "b"
    (damaged / "videos").mkdir(parents=True)
    (damaged / make.MANIFEST).write_bytes((made / make.MANIFEST).read_bytes())
    assert "is missing or changed; remove it" in refusal(capsys, arguments_for(damaged))


def test_bad_footage_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    absent, text, sound = tmp_path / "absent.mp4", tmp_path / "text.mp4", tmp_path / "sound.wav"
    text.write_text("not a video")
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
    assert f"{absent}: no such file" in refusal(capsys, arguments_for(out, footage=absent))
    assert f"{text}: cannot be played" in refusal(capsys, arguments_for(out, footage=text))
    assert f"{sound}: holds no video" in refusal(capsys, arguments_for(out, footage=sound))
    twice = [*arguments_for(out), "--footage", str(FOOTAGE), str(FOOTAGE)]
    assert "scene 'hillside' is named twice" in refusal(capsys, twice)
    assert not out.exists()


@pytest.mark.parametrize(
    ("sidecar", "reason"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "names no scenes"),
        (json.dumps({"sea": [0.5, 0.0, 0.4, 1.0]}), "scene 'sea' is [0.5, 0.0, 0.4, 1.0], not a box within 0 to 1"),
        (json.dumps({"sea": [0.0, 0.0, 0.4]}), "not a box within 0 to 1"),
    ],
)
def test_bad_sidecar_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], sidecar: str, reason: str) -> None:
    footage = tmp_path / "f.mp4"
    footage.symlink_to(FOOTAGE)
    (tmp_path / "f.scenes.json").write_text(sidecar)
    message = refusal(capsys, arguments_for(tmp_path / "out", footage=footage))
    assert f"{tmp_path}/f.scenes.json: " in message
    assert reason in message


def test_without_a_sidecar_scenes_are_quadrants(tmp_path: Path) -> None:
    footage = tmp_path / "f.mp4"
    footage.symlink_to(FOOTAGE)
    scenes = camera.read_source(footage).scenes
    assert list(scenes) == ["f upper left", "f upper right", "f lower left", "f lower right"]
    assert scenes["f lower right"] == (0.5, 0.5, 1.0, 1.0)


def test_the_rate_changes_the_frames_and_not_the_moves(source: camera.Source, tmp_path: Path) -> None:
    clips = {"train": 20, "val": 9}
    published, slow = (make.plan_videos([source], clips=clips, videos=3, height=64, seed=0, fps=fps) for fps in (0, 20))
    assert {video.fps for video in published} == set(make.RATES) and {video.fps for video in slow} == {20}
    moves = [
        [(move.start, move.stop, move.verb) for video in videos for move in video.moves] for videos in (published, slow)
    ]
    assert moves[0] == moves[1]
    described = [
        make.describe([source], tool.parse_arguments(arguments_for(tmp_path, *more))) for more in ([], ["--fps", "20"])
    ]
    assert described[1] == {**described[0], "fps": 20}


def test_a_cut_changes_the_gaps_and_not_the_moves(source: camera.Source, tmp_path: Path) -> None:
    clips = {"train": 20, "val": 9}
    gliding, cutting = (
        make.plan_videos([source], clips=clips, videos=3, height=64, seed=0, between=between)[0]
        for between in ("glide", "cut")
    )
    for before, after in itertools.pairwise(cutting.moves):
        gap = np.linspace(before.stop / 100, after.start / 100, 12)
        places = [cutting.pose(float(second)).tolist() for second in gap]
        assert places == [before.pose(gap[0]).tolist()] * 6 + [after.pose(gap[-1]).tolist()] * 6
        middle = (after.start + after.stop) / 200
        assert gliding.pose(middle).tolist() == cutting.pose(middle).tolist()
        assert gliding.pose(float(gap[4])).tolist() not in (places[0], places[-1])
    described = [
        make.describe([source], tool.parse_arguments(arguments_for(tmp_path, *more)))
        for more in ([], ["--between", "cut"])
    ]
    assert described[1] == {**described[0], "between": "cut"}


def test_two_pieces_of_footage_share_the_work(tmp_path: Path, source: camera.Source) -> None:
    footage = tmp_path / "f.mp4"
    footage.symlink_to(FOOTAGE)
    sources = [source, camera.read_source(footage)]
    videos = make.plan_videos(sources, clips={"train": 45, "val": 20}, videos=5, height=64, seed=0)
    assert [(v.split, v.video_id) for v in videos] == [
        ("train", "P01_01"),
        ("train", "P01_02"),
        ("train", "P02_01"),
        ("val", "P01_03"),
        ("val", "P02_02"),
    ]
    assert sum(len(v.moves) for v in videos if v.split == "train") == 45
    assert sum(len(v.moves) for v in videos if v.split == "val") == 20
    write_annotations(videos, tmp_path / "annotations")
    found = read_annotations("ek100_cls", tmp_path / "annotations", split="train")
    assert len(found.classes["noun"]) == 8
    assert {clip.noun for clip in found.clips if clip.video_path.startswith("P02/")} == {4, 5, 6, 7}


def test_nothing_half_made_is_left(tmp_path: Path, source: camera.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(renderings: list[Rendering], out: Path, *, workers: int) -> None:
        assert (out / "annotations/EPIC_100_train.csv").exists()
        raise camera.SampleError("the disk is full")

    monkeypatch.setattr(make, "render_all", fail)
    with pytest.raises(camera.SampleError):
        sample = Sample(videos=plan(source), seed=0, chunk_seconds=300)
        make.make(sample, tmp_path / "out", {}, forms=["ek100"], workers=1)
    assert list(tmp_path.iterdir()) == []


def test_too_few_videos_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, arguments_for(tmp_path / "out", "--videos", "1"))
    assert "--videos 1 with 9 training and 9 validation clips" in message
    assert "needs at least 2 videos" in message


@pytest.mark.parametrize("arguments", [["--height", "65"], ["--fps", "5"], ["--videos", "0"], ["--workers", "x"]])
def test_impossible_numbers_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        tool.main(arguments_for(tmp_path / "out", *arguments))
    assert caught.value.code == 2


def test_workers_end_once_their_parent_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = multiprocessing.Value("q", 0)
    monkeypatch.setattr(render, "_frames_done", frames)
    render._count_frames(5)
    assert frames.value == 5
    frames.value = render.STOP
    with pytest.raises(KeyboardInterrupt):
        render._count_frames(5)


@pytest.mark.parametrize("out", ["file/x", "file"])
def test_a_place_that_cannot_be_written_to_is_named_in_one_line(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine")
    done = run_here(tool.main, ["--footage", FOOTAGE, "--out", tmp_path / out, *SMALL])
    assert done.returncode == 1 and str(tmp_path / "file") in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"
