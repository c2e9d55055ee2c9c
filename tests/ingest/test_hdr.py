"""HDR video is stored as a player shows it on an ordinary screen; ordinary video stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lavila.demo.footage import Look, Window, WindowPictures, read_windows
from lavila.ingest.encode import EncodedClip, EncodeSettings, Interval, encode_chunk, encode_clip
from lavila.ingest.hdr import BT709, P3, compressed, hlg_light, pq_light, tone_mapped
from tests.footage import decode
from tests.ingest.hdr_video import HLG, PQ, Floats, columns, hlg_signal, signal_of, write_hdr

CLEAN = EncodeSettings(codec="h264", short_side=96, crf=4)
LIGHT: Floats = np.array([0.5, 5, 20, 50, 80, 203, 400, 1000])  # cd/m2
TRANSFERS = pytest.mark.parametrize("transfer", [PQ, HLG], ids=["PQ", "HLG"])


def stored(path: Path) -> EncodedClip:
    return encode_clip(path, interval=Interval(start_second=0.0, stop_second=None), settings=CLEAN)


def levels(path: Path) -> Floats:
    """[N, 3]: the middle of each stripe."""
    return decode(stored(path).data)[1][48, 16::32].astype(float)


@TRANSFERS
def test_light_becomes_the_level_that_an_ordinary_screen_needs(tmp_path: Path, transfer: int) -> None:
    """Up to 80 cd/m2 it is the same light, where 203 are the top of the screen; 1000 cd/m2 are that top."""
    found = levels(write_hdr(tmp_path / "a.mp4", columns(signal_of(LIGHT, transfer)), transfer))
    assert np.ptp(found, axis=1).max() <= 1, "grey stays grey"
    dark = LIGHT <= 80
    assert np.abs(found[dark, 0] - 255 * (LIGHT[dark] / 203) ** (1 / 2.4)).max() < 2
    assert (np.diff(found[:, 0]) > 4).all() and found[-1, 0] >= 254
    assert found[5, 0] == pytest.approx(230, abs=2), "reference white stays below the highlights"


def test_the_same_light_is_the_same_level_in_pq_and_hlg(tmp_path: Path) -> None:
    pq, hlg = (
        levels(write_hdr(tmp_path / f"{transfer}.mp4", columns(signal_of(LIGHT, transfer)), transfer))
        for transfer in (PQ, HLG)
    )
    assert np.abs(pq - hlg).max() <= 2, "but for the steps of 10 bits"


@TRANSFERS
def test_colours_keep_their_hue(tmp_path: Path, transfer: int) -> None:
    """Of BT.709's red only red is left, though BT.2020 mixes it of all three. The smallest channel is blurred most."""
    red_of_709 = np.array([[0.6274, 0.0691, 0.0164], [0.3293, 0.9195, 0.0880], [0.0433, 0.0114, 0.8956]])
    light = red_of_709 * 80
    if transfer == HLG:  # the system gamma works on the luminance
        scene = light / 1000 * ((light @ [0.2627, 0.6780, 0.0593])[:, None] / 1000) ** (1 / 1.2 - 1)
        signal = hlg_signal(scene)
    else:
        signal = signal_of(light, PQ)
    found = levels(write_hdr(tmp_path / "a.mp4", columns(signal), transfer))
    top = 255 * (80 / 203) ** (1 / 2.4)
    assert np.abs(np.diag(found) - top).max() < 4
    assert (found - np.diag(np.diag(found))).max() < 30


@TRANSFERS
def test_the_kind_of_pictures_is_known(tmp_path: Path, transfer: int) -> None:
    picture = columns(signal_of(LIGHT, transfer))
    name = {PQ: "PQ", HLG: "HLG"}[transfer]
    hdr = write_hdr(tmp_path / "a.mp4", picture, transfer)
    assert stored(hdr).kind.hdr == name
    assert encode_chunk(hdr, number=0, seconds=1.0, settings=CLEAN).kind.hdr == name
    ordinary = write_hdr(tmp_path / "b.mp4", picture, transfer, tagged=False)
    assert stored(ordinary).kind.row() == {}
    assert np.abs(levels(hdr) - levels(ordinary)).max() > 20


def test_windows_of_footage_show_the_same_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    video = write_hdr(tmp_path / "a.mp4", columns(signal_of(LIGHT, HLG)), HLG, frames=25)
    look = Look(frames=1, size=96, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    with caplog.at_level("INFO"):
        (seen,) = read_windows(video, [Window(start=0.0, stop=1.0)], [look])
    assert isinstance(seen, WindowPictures)
    assert np.abs(seen.middle[48, 16::32].astype(float) - levels(video)).max() <= 2
    assert any("HLG" in record.message and str(video) in record.message for record in caplog.records)


def test_curves() -> None:
    assert pq_light(np.array([0.0, 0.508078, 0.751827, 1.0])) == pytest.approx([0, 100, 1000, 10_000], rel=1e-4)
    assert hlg_light(np.full((1, 3), 0.75))[0] == pytest.approx(203, abs=0.5)
    assert hlg_light(np.ones((1, 3)))[0] == pytest.approx(1000)
    assert not np.isnan(hlg_light(np.zeros((1, 3)))).any()
    light = np.linspace(0.01, 1000, 5000)
    assert (np.diff(compressed(light)) > 0).all() and compressed(1000.0) == pytest.approx(203)
    assert compressed(10_000.0) == pytest.approx(203), "what is brighter still is cut off"
    assert compressed(light[light < 85]) == pytest.approx(light[light < 85])


@pytest.mark.parametrize("primaries", [BT709, P3])
def test_white_is_white_whatever_the_primaries(primaries: int) -> None:
    grey = np.linspace(0, 1, 11)[:, None].repeat(3, 1)
    found = tone_mapped(grey, transfer=HLG, primaries=primaries)
    assert np.ptp(found, axis=1).max() < 1e-4
    assert found == pytest.approx(tone_mapped(grey, transfer=HLG, primaries=9), abs=1e-3)
