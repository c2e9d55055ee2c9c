"""nvdec or host: measured once for each situation, kept with the machine's name, by one process at a time."""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lavila.data.nvdec.fastest import KEPT, Situation, fastest, kept
from lavila.data.pictures import DecoderName
from lavila.shards.format import ShardSetError

SITUATION = Situation(
    gpu="NVIDIA H100",
    threads=8,
    shard_set="/sets/a",
    codec="hevc",
    clips=64,
    views=(1, 1),
    frames=16,
    size=224,
    half=True,
)


class Rates:
    """Decoders with given rates; an exception in place of a rate is raised."""

    def __init__(self, nvdec: float | Exception, host: float | Exception) -> None:
        self.rates = {"nvdec": nvdec, "host": host}
        self.asked: list[str] = []

    def __call__(self, decoder: DecoderName) -> float:
        self.asked.append(decoder)
        rate = self.rates[decoder]
        if isinstance(rate, Exception):
            raise rate
        return rate


@pytest.mark.parametrize(("nvdec", "host", "chosen"), [(500.0, 400.0, "nvdec"), (300.0, 400.0, "host")])
def test_the_faster_is_chosen_and_kept(tmp_path: Path, nvdec: float, host: float, chosen: str) -> None:
    rates, file = Rates(nvdec, host), tmp_path / "home" / "decoders.json"
    first = fastest(SITUATION, rates, file=file)
    again = fastest(SITUATION, rates, file=file)
    assert first[0] == again[0] == chosen and rates.asked == ["nvdec", "host"]
    assert all(word in again[1] for word in (socket.gethostname(), f"nvdec {nvdec:.0f}", f"host {host:.0f}"))
    (entry,) = kept(file)
    assert entry.fastest == chosen and entry.situation["gpu"] == "NVIDIA H100" and kept(file, machine="other") == []


@pytest.mark.parametrize(
    "change", [{"threads": 4}, {"codec": "vp9"}, {"shard_set": "/sets/b"}, {"size": 336}, {"gpu": "NVIDIA A100"}]
)
def test_another_situation_is_measured_for_itself(tmp_path: Path, change: dict[str, object]) -> None:
    rates, file = Rates(2.0, 1.0), tmp_path / "decoders.json"
    fastest(SITUATION, rates, file=file)
    fastest(replace(SITUATION, **change), rates, file=file)  # type: ignore[arg-type]
    assert len(rates.asked) == 4 and len(kept(file)) == 2


def test_another_machine_is_measured_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates, file = Rates(2.0, 1.0), tmp_path / "decoders.json"
    fastest(SITUATION, rates, file=file)
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    fastest(SITUATION, rates, file=file)
    assert len(rates.asked) == 4 and len(json.loads(file.read_text())) == 2


def test_a_failing_nvdec_is_named_and_a_failing_host_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "decoders.json"
    chosen, why = fastest(SITUATION, Rates(RuntimeError("no engine\nat all"), 3.0), file=file)
    assert chosen == "host" and "no engine" in why and "\n" not in why
    with pytest.raises(ShardSetError):
        fastest(replace(SITUATION, size=1), Rates(1.0, ShardSetError("a tar is gone")), file=file)
    assert len(kept(file)) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"m": [{"x": 1}]}', '{"m": 3}'])
def test_a_file_that_is_no_file_of_measurements_is_written_anew(tmp_path: Path, text: str) -> None:
    file = tmp_path / "decoders.json"
    file.write_text(text)
    assert fastest(SITUATION, Rates(2.0, 1.0), file=file)[0] == "nvdec" and len(kept(file)) == 1


def test_a_folder_that_cannot_be_written_costs_a_measurement_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    rates = Rates(2.0, 1.0)
    for _ in range(2):
        assert fastest(SITUATION, rates, file=tmp_path / "file" / "decoders.json")[0] == "nvdec"
    assert len(rates.asked) == 4


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "decoders.json"
    fastest(SITUATION, Rates(2.0, 1.0), file=file)
    found = json.loads(file.read_text())
    found[socket.gethostname()] *= 2 * KEPT
    file.write_text(json.dumps(found))
    fastest(replace(SITUATION, size=1), Rates(2.0, 1.0), file=file)
    assert len(kept(file)) == KEPT and kept(file)[-1].situation["size"] == 1


def test_one_process_at_a_time_measures(tmp_path: Path) -> None:
    file, begun, measured = tmp_path / "decoders.json", threading.Event(), []

    def slow(decoder: DecoderName) -> float:
        measured.append(decoder)
        begun.set()
        return 1.0

    others = [threading.Thread(target=fastest, args=(SITUATION, slow), kwargs={"file": file}) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join(20)
    assert measured == ["nvdec", "host"] and begun.is_set() and len(kept(file)) == 1
