"""Search: the best of all moments, one hit for each peak, and hits as files that others read."""

from __future__ import annotations

import csv
import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lavila.annotations.ego4d import read_narrated
from lavila.demo.exports import to_annotations, to_csv, to_json
from lavila.demo.index import (
    VECTORS,
    IndexedVideo,
    IndexFolderError,
    IndexSettings,
    open_index,
    write_moments,
)
from lavila.demo.search import Hit, Searcher, SearchError
from lavila.demo.similarity import Similarities

DIMENSIONS = 32
COUNTS = {"a.mp4": 50, "b/c.mp4": 7, "d.webm": 0, "e.mp4": 200}


def random_vectors(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSIONS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture
def vectors() -> dict[str, np.ndarray]:
    return {name: random_vectors(count, seed) for seed, (name, count) in enumerate(COUNTS.items())}


@pytest.fixture
def searcher(tmp_path: Path, vectors: dict[str, np.ndarray]) -> Searcher:
    """Windows of 2 s, one every 10 s, so that no two touch."""
    videos, times = [], []
    (tmp_path / VECTORS).mkdir()
    for number, (name, matrix) in enumerate(vectors.items()):
        file = f"{number}.safetensors" if len(matrix) else ""
        if file:
            save_file({"vectors": matrix}, tmp_path / VECTORS / file)
        starts = 10.0 * np.arange(len(matrix))
        times.append((starts, starts + 2))
        video = IndexedVideo(
            name=name, path=f"/videos/{name}", duration=1000, fps=30, width=64, height=48, size=1, mtime_ns=1,
            moments=len(matrix), file=file, reason="" if file else "broken",
        )  # fmt: skip
        videos.append(video)
    settings = IndexSettings(window=2, every=10, model="tiny", facts={"dimensions": DIMENSIONS})
    write_moments(tmp_path, settings, videos, times)
    return Searcher(open_index(tmp_path), encode_text, threads=2)


def encode_text(sentence: str) -> np.ndarray:
    return random_vectors(1, 1000 + len(sentence))[0].astype(np.float32)


@pytest.mark.parametrize("rows", [0, 1, 3, 20_000, 40_001])
@pytest.mark.parametrize("dimensions", [1, 7, 256])
def test_similarities_are_those_of_float64(rows: int, dimensions: int) -> None:
    random = np.random.default_rng(rows + dimensions)
    stored = random.standard_normal((rows, dimensions)).astype(np.float16)
    query = random.standard_normal(dimensions).astype(np.float32)
    found = Similarities(stored, threads=2)(query, [(0, rows)])
    wanted = stored.astype(np.float64) @ query.astype(np.float64)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * dimensions)


def test_rows_outside_the_spans_are_not_compared() -> None:
    found = Similarities(np.ones((10, 4), np.float16), threads=1)(np.ones(4, np.float32), [(2, 4), (9, 10)])
    assert np.flatnonzero(found > -np.inf).tolist() == [2, 3, 9]


def test_the_first_hits_are_the_best_of_all(searcher: Searcher, vectors: dict[str, np.ndarray]) -> None:
    query = encode_text("red").astype(np.float64)
    scores = {name: matrix.astype(np.float64) @ query for name, matrix in vectors.items() if len(matrix)}
    hits = searcher.find("red", limit=5)
    assert hits[0].score == pytest.approx(max(one.max() for one in scores.values()), abs=1e-4)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert hit.score == pytest.approx(scores[hit.video][int(hit.start / 10)], abs=1e-4)
        assert hit.stop == hit.start + 2


def test_only_the_wanted_videos_are_searched(searcher: Searcher) -> None:
    assert {hit.video for hit in searcher.find("red", limit=50, videos=["b/c.mp4", "d.webm"])} == {"b/c.mp4"}
    with pytest.raises(IndexFolderError, match="nowhere"):
        searcher.find("red", limit=1, videos=["nowhere.mp4"])


def write_peaks(folder: Path, heights: list[float]) -> Searcher:
    """A video whose windows, 2 s long and one every second, fit any sentence as well as `heights` say."""
    (folder / VECTORS).mkdir()
    up = np.array(heights)
    save_file({"vectors": np.stack([up, np.sqrt(1 - up**2)], 1).astype(np.float16)}, folder / VECTORS / "0.safetensors")
    starts = np.arange(len(up), dtype=np.float64)
    video = IndexedVideo(
        name="a.mp4", path="/a.mp4", duration=len(up) + 1, fps=30, width=64, height=48, size=1, mtime_ns=1,
        moments=len(up), file="0.safetensors",
    )  # fmt: skip
    settings = IndexSettings(window=2, every=1, model="tiny", facts={"dimensions": 2})
    write_moments(folder, settings, [video], [(starts, starts + 2)])
    return Searcher(open_index(folder), lambda sentence: np.array([1, 0], np.float32), threads=1)


def test_the_neighbours_of_a_hit_do_not_fill_the_list(tmp_path: Path) -> None:
    low, peak, narrow = [0.1] * 20, [0.65, 0.8, 0.9, 0.95, 0.9, 0.85, 0.6], [0.7]
    heights = [*low, *peak, *low, *narrow, *low]
    searcher = write_peaks(tmp_path, heights)
    hits = searcher.find("anything", limit=2)
    assert [(hit.start, hit.score) for hit in hits] == [
        (23, pytest.approx(0.95, abs=1e-3)),
        (47, pytest.approx(0.7, abs=1e-3)),
    ]
    everything = searcher.find("anything", limit=100)
    starts = sorted(hit.start for hit in everything)
    assert all(after - before > 2 for before, after in pairwise(starts)), "no two overlap or touch"
    assert not any(20 <= start <= 26 and start != 23 for start in starts), "one hit for the whole peak"


def test_a_curve_of_likeness(searcher: Searcher, vectors: dict[str, np.ndarray]) -> None:
    middles, scores = searcher.curve_like("a.mp4", 40, 42, "b/c.mp4")
    wanted = vectors["b/c.mp4"].astype(np.float32) @ vectors["a.mp4"][4].astype(np.float32)
    assert middles.tolist() == [10.0 * place + 1 for place in range(7)]
    np.testing.assert_allclose(scores, wanted, atol=2e-3)


def test_more_like_a_moment_leaves_that_moment_out(searcher: Searcher, vectors: dict[str, np.ndarray]) -> None:
    vectors["e.mp4"][33] = vectors["a.mp4"][4]
    file = searcher.index.folder / VECTORS / searcher.index.video("e.mp4").file
    save_file({"vectors": vectors["e.mp4"]}, file)
    again = Searcher(open_index(searcher.index.folder), encode_text)
    best = again.like("a.mp4", 40, 42, limit=3)[0]
    assert (best.video, best.start) == ("e.mp4", 330) and best.score == pytest.approx(1, abs=2e-3)
    assert all(hit.video != "a.mp4" or not 38 < hit.start < 42 for hit in again.like("a.mp4", 40, 42, limit=50))
    with pytest.raises(SearchError, match="ends before it starts"):
        again.like("a.mp4", 42, 40, limit=1)


def test_a_curve_has_a_point_for_each_window(searcher: Searcher, vectors: dict[str, np.ndarray]) -> None:
    middles, scores = searcher.curve("red", "a.mp4")
    assert middles.tolist() == [10.0 * place + 1 for place in range(50)]
    np.testing.assert_allclose(scores, vectors["a.mp4"].astype(np.float32) @ encode_text("red"), atol=1e-4)
    with pytest.raises(SearchError, match="broken"):
        searcher.curve("red", "d.webm")
    with pytest.raises(SearchError):
        searcher.find("  ", limit=1)


def test_hits_as_files(tmp_path: Path) -> None:
    hits = [
        Hit(video="a.mp4", start=1.0, stop=3.0, score=0.5),
        Hit(video='b "2".mp4', start=0.25, stop=2.25, score=-0.125),
    ]
    rows = list(csv.DictReader(io.StringIO(to_csv(hits))))
    assert [row["video"] for row in rows] == [hit.video for hit in hits] and float(rows[1]["score"]) == -0.125
    assert [Hit(**entry) for entry in json.loads(to_json(hits))] == hits
    (tmp_path / "hits.pkl").write_bytes(to_annotations(hits, "a dog runs"))
    clips = read_narrated(tmp_path / "hits.pkl").clips
    assert [(clip.start_second, clip.stop_second, clip.narrations) for clip in clips] == [
        (1.0, 3.0, ("a dog runs",)),
        (0.25, 2.25, ("a dog runs",)),
    ]
