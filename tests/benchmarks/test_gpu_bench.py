"""The GPU benchmark keeps what it learnt when a part fails, and its parts run with named stubs where no GPU is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import parts, run
from benchmarks.gpu.material import FPS, Material, make_clip, write_film
from benchmarks.gpu.parts import Results
from benchmarks.gpu.stubs import StubGpu
from lavila.data.streams.mp4 import read_mp4
from lavila.data.streams.reduction import Stream

SCRIPTS = {
    "material": "pass",
    "small": "import os, signal; os.kill(os.getpid(), signal.SIGABRT)",
    "chip": "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
    "pictures": "import sys; print('its last word', file=sys.stderr); sys.exit(3)",
    "zeroed": "pass",
}


def test_a_part_that_dies_hangs_or_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "child", lambda name, args: [sys.executable, "-c", SCRIPTS[name]])
    monkeypatch.setattr(run, "PARTS", [run.Part(name=name, seconds=1) for name in SCRIPTS if name != "material"])
    assert run.main(["--out", str(tmp_path / "out"), "--only", *list(SCRIPTS)[1:]]) == 1
    ends = json.loads((tmp_path / "out" / "parts.json").read_text())
    assert {name: one["ended"] for name, one in ends.items()} == {
        "material": "whole",
        "small": "killed by signal 6",
        "chip": "stopped after 1 s",
        "pictures": "status 3",
        "zeroed": "whole",
    }
    assert ends["pictures"]["stderr"] == ["its last word"] and "its last word" in capsys.readouterr().out


def test_no_part_begins_after_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "child", lambda name, args: [sys.executable, "-c", "import time; time.sleep(60)"])
    assert run.main(["--out", str(tmp_path), "--minutes", "0.02", "--only", "small", "zeroed"]) == 1
    ends = json.loads((tmp_path / "parts.json").read_text())
    assert [ends[name]["ended"] for name in ("small", "zeroed")] == ["no time was left"] * 2


def test_every_part_of_the_list_can_be_started() -> None:
    assert [part.name for part in run.PARTS] == [name for name in parts.PARTS if name != "material"]
    args = run.parse(["--out", "x", "--stub", "--tiny"])
    assert run.child("rates", args)[-2:] == ["--stub", "--tiny"] and args.minutes == 8
    assert sum(part.seconds for part in run.PARTS) < 600


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    made = Material(folder=tmp_path_factory.mktemp("gpu"), tiny=True)
    write_film(made.film, frames=4 * FPS, short_side=made.short_side)
    for codec, kind in (("vp9", "small"), ("h264", "short"), ("h264", "chunk")):
        make_clip(made, codec, kind)
    return made


def outcome(part: str, material: Material, folder: Path, gpu: StubGpu) -> list[dict[str, object]]:
    results = Results(folder / "x.json", gpu, tiny=True)
    parts.PARTS[part](gpu, material, results)
    found = json.loads((folder / "x.json").read_text())
    assert found["rows"] == results.rows and found["stubs"] == gpu.names and found["machine"]["python"]
    return results.rows


def test_equal_pictures_and_damage_are_distinguished(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "CODECS", ("h264",))
    rows = outcome("pictures", material, tmp_path, gpu := StubGpu())
    assert [(row["layout"], row["form"]) for row in rows] == [
        (layout, form) for layout in ("short", "chunk") for form in ("whole", "reduced")
    ]
    assert all(row["wrong"] == 0 and row["most"] == 0 for row in rows) and gpu.names == ["decoder"]
    damage = outcome("zeroed", material, tmp_path, StubGpu())
    assert [row["outcome"] for row in damage] == ["error"] * 3 and all(row["error"] for row in damage)


def test_shifted_pictures_are_reported_with_their_shift(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after hidden frames: a decoder gives frame n - 2 for n."""
    monkeypatch.setattr(parts, "CODECS", ("h264",))
    real = StubGpu.probe

    def shifted(self: StubGpu, batches: list[list[parts.Any]], codec: str, **others: int) -> object:
        moved = [[parts.as_payload(one.data, (one.frames - 2).clip(0)) for one in batch] for batch in batches]
        return real(self, moved, codec, **others)

    monkeypatch.setattr(StubGpu, "probe", shifted)
    monkeypatch.setattr(parts, "reduced", lambda data, frames: Stream(data, frames))
    rows = outcome("pictures", material, tmp_path, StubGpu())
    assert all(row["wrong"] and row["shift"] == -2 for row in rows)


def test_the_small_clip_is_small_and_a_death_is_on_record(material: Material, tmp_path: Path) -> None:
    packets = read_mp4(material.clip("vp9", "small")).packets
    assert packets.codec == "vp9"
    seen: list[str] = []

    class Dying(StubGpu):
        def probe(self, *given: object, **others: object) -> object:  # type: ignore[override]
            seen.append(json.loads((tmp_path / "x.json").read_text())["rows"][0]["outcome"])
            raise RuntimeError("encountered:\nresolution not supported")

    (row,) = outcome("small", material, tmp_path, Dying())
    assert row["outcome"] == "error" and "not supported" in str(row["error"]) and "died" in seen[0]
