"""The sample dataset's camera: one frame must not show the verb, and the moves must be there in the pictures."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from lavila.sample import camera
from lavila.sample.drawing import Footage, sampling_grid
from tests.footage import with_latin_tags

ROOT = Path(__file__).parents[2]

FOOTAGE = ROOT / "assets/bigbuckbunny.mp4"
BOX = (0.38, 0.0, 0.70, 0.42)
ASPECT = 16 / 9


def test_footage_with_tags_that_are_not_utf8_is_read(tmp_path: Path) -> None:
    tagged = with_latin_tags(FOOTAGE, tmp_path / "a.mp4")
    found, wanted = camera.read_source(tagged), camera.read_source(FOOTAGE)
    assert (found.frames, found.fps, found.width) == (wanted.frames, wanted.fps, wanted.width)
    assert len(Footage.load(tagged, 0, 20, height=48).planes) == 20


# ---------------------------------------------------------------- poses


def poses_of(verb: int, *, t: float | None, count: int = 1500) -> npt.NDArray[np.float64]:
    """[count, 4] poses of a verb at a random moment, or all at `t`."""
    rng = np.random.default_rng([7, verb])
    poses = []
    for _ in range(count):
        middle, travel = camera.draw_pose(rng, verb=verb, box=BOX, aspect=ASPECT)
        poses.append(middle + travel * ((rng.uniform() if t is None else t) - 0.5))
    return np.array(poses)


def ks_distance(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    places = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(x), places, side="right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def test_one_frame_does_not_show_the_verb() -> None:
    poses = [poses_of(verb, t=None) for verb in range(len(camera.VERBS))]
    limit = 2.23 * math.sqrt(2 / 1500)  # two equal distributions exceed it once in ten thousand
    for dimension in range(4):
        for a, b in itertools.combinations(range(len(camera.VERBS)), 2):
            distance = ks_distance(poses[a][:, dimension], poses[b][:, dimension])
            assert distance < limit, (camera.VERBS[a], camera.VERBS[b], dimension)
    # Nor do two dimensions together: they are independent whatever the verb.
    for verb, name in enumerate(camera.VERBS):
        assert np.abs(np.corrcoef(poses[verb].T) - np.eye(4)).max() < 0.13, name


def test_the_same_measure_sees_the_end_of_a_move() -> None:
    hold = camera.VERBS.index("hold")
    for verb, name in enumerate(camera.VERBS):
        moved = np.flatnonzero(camera.DIRECTIONS[name])
        for dimension in moved:
            ends, still = poses_of(verb, t=1.0, count=300), poses_of(hold, t=1.0, count=300)
            assert ks_distance(ends[:, dimension], still[:, dimension]) > 0.35, name


@pytest.mark.parametrize("aspect", [16 / 9, 4 / 3, 9 / 16, 3.0])
def test_the_window_stays_inside_the_picture(aspect: float) -> None:
    rng = np.random.default_rng(3)
    for verb, box in itertools.product(range(len(camera.VERBS)), [(0.0, 0.0, 0.2, 0.2), (0.7, 0.6, 1.0, 1.0)]):
        for _ in range(20):
            middle, travel = camera.draw_pose(rng, verb=verb, box=box, aspect=aspect)
            for t in (-0.5, 0.5):
                grid = sampling_grid(middle + travel * t, 8, 8, aspect)
                assert float(grid.abs().max()) <= 1.0


def test_a_picture_too_wide_is_refused() -> None:
    with pytest.raises(camera.SampleError, match=r"8\.00"):
        camera.standing_room(8.0)


# ---------------------------------------------------------------- pictures


@pytest.fixture(scope="module")
def footage() -> Footage:
    return Footage.load(FOOTAGE, 0, 2, height=144)


def phase_correlation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> tuple[float, float]:
    """Down, right in pixels by which the content of `b` lies further than that of `a`."""
    window = np.hanning(a.shape[0])[:, None] * np.hanning(a.shape[1])
    cross = np.fft.fft2((b - b.mean()) * window) * np.fft.fft2((a - a.mean()) * window).conj()
    peak = np.fft.ifft2(cross / np.maximum(np.abs(cross), 1e-9)).real
    place = np.unravel_index(peak.argmax(), peak.shape)
    down, right = (int(p) - n if p > n // 2 else int(p) for p, n in zip(place, peak.shape, strict=True))
    return down, right


@pytest.mark.parametrize(
    ("verb", "down", "right"), [("pan-left", 0, 1), ("pan-right", 0, -1), ("tilt-up", 1, 0), ("tilt-down", -1, 0)]
)
def test_pans_and_tilts_shift_the_picture(footage: Footage, verb: str, down: int, right: int) -> None:
    rng = np.random.default_rng(5)
    middle, travel = camera.draw_pose(rng, verb=camera.VERBS.index(verb), box=(0.3, 0.3, 0.6, 0.7), aspect=ASPECT)
    middle[2:] = 0  # level, usual window: the shift is then along the picture's sides
    height, width = footage.size
    views = [footage.render(0, middle + travel * t)[:height].astype(float) for t in (-0.25, 0.25)]
    expected = down * camera.TILT / 2 * height, right * camera.PAN / 2 * width
    assert phase_correlation(*views) == pytest.approx(expected, abs=1.0)


def ramp_footage() -> Footage:
    """Luma grows to the right by 200 levels per picture height: one view of it shows zoom and roll."""
    luma = (20 + 200 / ASPECT * torch.arange(640) / 640 * ASPECT).expand(1, 1, 360, 640)
    return Footage(planes=[(luma, torch.full((1, 2, 180, 320), 128.0))], aspect=ASPECT, size=(144, 256))


def seen_zoom_and_roll(pose: camera.Pose) -> tuple[float, float]:
    picture = ramp_footage().render(0, pose)[:144].astype(float)
    down, right = (float(np.polyfit(range(n), picture.mean(axis=1 - i), 1)[0]) for i, n in enumerate(picture.shape))
    return math.hypot(down, right), math.atan2(-down, right)


@pytest.mark.parametrize(
    ("verb", "growth", "turn"),
    [
        ("zoom-in", 1 / camera.ZOOM, 0.0),
        ("zoom-out", camera.ZOOM, 0.0),
        ("rotate-clockwise", 1.0, camera.ROLL),
        ("rotate-counter-clockwise", 1.0, -camera.ROLL),
        ("pan-left", 1.0, 0.0),
        ("hold", 1.0, 0.0),
    ],
)
def test_zooms_and_rolls_are_seen(verb: str, growth: float, turn: float) -> None:
    middle, travel = camera.draw_pose(np.random.default_rng(2), verb=camera.VERBS.index(verb), box=BOX, aspect=ASPECT)
    (slope, roll), (later_slope, later_roll) = (seen_zoom_and_roll(middle + travel * t) for t in (-0.5, 0.5))
    assert later_slope / slope == pytest.approx(growth, rel=0.03)
    assert later_roll - roll == pytest.approx(turn, abs=0.03)


def test_damaged_footage_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mp4"
    content = bytearray(FOOTAGE.read_bytes())
    content[400_000:700_000] = bytes(300_000)
    damaged.write_bytes(content)
    with pytest.raises(camera.SampleError, match=r"damaged\.mp4"):
        Footage.load(damaged, 0, 132, height=64)
