"""The command that turns videos into features, searches them, and cuts out what it finds."""

from __future__ import annotations

from pathlib import Path

import av
import embed_videos
import numpy as np
import pytest
from safetensors.numpy import load_file

from lavila.demo.index import open_index
from tests import forks
from tests.colours import COLOURS
from tests.demo.conftest import colours  # noqa: F401  # a fixture
from tests.test_docs import ROOT


def arguments(folder: Path, out: Path, *others: str) -> list[str]:
    given = ["--videos", str(folder / "videos"), "--model", str(folder / "encoder.safetensors"), "--out", str(out)]
    return [*given, "--device", "cpu", *others]


def test_features_have_times_and_a_second_run_has_nothing_to_do(
    colours: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "features"
    for windows in (True, False):
        assert embed_videos.main(arguments(colours, out)) == 1, "one video cannot be read"
        said = capsys.readouterr().out
        assert "24 moments of 3 videos" in said and "broken.mp4" in said
        assert (" windows" in said) == windows
    index = open_index(out)
    moments = index.moments.to_pylist()
    assert [(row["start"], row["stop"]) for row in moments[:2]] == [(0.0, 2.0), (1.0, 3.0)]
    for video in index.videos:
        if video.moments:
            stored = load_file(out / "vectors" / video.file)
            assert stored["vectors"].dtype == np.float16 and len(stored["vectors"]) == video.moments
            assert np.allclose(np.linalg.norm(stored["vectors"].astype(np.float32), axis=1), 1, atol=2e-3)


def test_the_best_hits_are_cut_out_with_a_margin(
    colours: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    query = ["--query", "everything is green", "--limit", "2", "--cut", str(tmp_path / "cuts"), "--margin", "0.5"]
    embed_videos.main(arguments(colours, colours / "index", *query))
    files = sorted((tmp_path / "cuts").iterdir())
    assert len(files) == 2 and all(str(file) in capsys.readouterr().out for file in files[:1])
    first = files[0].name.removesuffix(".mp4")
    start, stop = map(float, first.split("-")[-2:])
    assert first.startswith("001-walks_morning-") and stop - start == pytest.approx(3.0)
    with av.open(str(files[0])) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 30
    middle = pictures[15].reshape(-1, 3).mean(0)
    nearest = min(COLOURS, key=lambda name: float(np.abs(middle - COLOURS[name]).sum()))
    assert nearest == "green"


def test_two_processes_make_the_same_index(colours: Path, tmp_path: Path) -> None:  # noqa: F811
    done = forks.run_ranks(2, ROOT / "tools/embed_videos.py", *arguments(colours, tmp_path / "features"))
    assert "24 moments of 3 videos" in done[0].stdout, done
    ours, theirs = open_index(tmp_path / "features"), open_index(colours / "index")
    assert ours.moments.equals(theirs.moments)
    for video in ours.videos:
        np.testing.assert_allclose(
            ours.vectors(video.name).astype(np.float32), theirs.vectors(video.name).astype(np.float32), atol=2e-3
        )


def test_videos_that_leave_the_index_are_named(
    colours: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = arguments(colours, tmp_path / "features")
    walks = colours / "videos/walks"
    assert embed_videos.main([*given, "--videos", str(walks)]) == 0
    capsys.readouterr()
    assert embed_videos.main([*given, "--videos", str(walks / "evening.webm")]) == 0
    assert "without 1 video" in (said := capsys.readouterr().out) and "morning.mp4" in said


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["--cut", "x"], "--query"),
        (["--query", "  "], "--query"),
        (["--limit", "0"], "--limit 0"),
        (["--query", "a", "--margin", "-1"], "--margin -1"),
        (["--query", "a", "--margin", "inf"], "--margin inf"),
        (["--query", "a", "--cut", "{videos}/found"], "--videos"),
        (["--query", "a", "--cut", "README.md"], "README.md"),
        (["--every", "0"], "--every 0"),
        (["--batch-size", "0"], "--batch-size 0"),
    ],
)
def test_arguments_that_cannot_be(
    others: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        given = [word.format(videos=tmp_path / "videos") for word in others]
        embed_videos.main(arguments(tmp_path, tmp_path / "features", *given))
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_path_without_videos(
    colours: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert embed_videos.main([*arguments(colours, tmp_path / "b"), "--videos", str(tmp_path / "nothing")]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "nothing" in line
