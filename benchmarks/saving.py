"""How long training waits for a checkpoint: for the whole save, and for the copy that is then written beside it.

    python -m benchmarks.saving [--model base|tiny] [--rounds 5] [--folder DIR]

The state is that of a TimeSformer classifier of LaViLa's base size (TSF-B) with AdamW, on this machine's device, and
the disk is that of `--folder`. Three things are timed in turn, after a round that warms up:

* blocking: the run waits until the checkpoint is whole and synced (`engine.save_in_background=false`);
* wait: the run waits for the copy (`engine.save_in_background=true`), and a thread writes it. `first_wait` is that of
  the first save, five seconds after the start, when its memory is new;
* gap: while the thread writes, another one wakes up every millisecond. The longest time between two of its wakes is
  how long the thread kept Python to itself, which training would have waited for as well.

Medians, wall time. Writes benchmarks/results/saving.json and the table of docs/RELIABILITY.md between its markers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.common import fill_docs, machine
from lavila.config.schema import OptimConfig, RunConfig
from lavila.engine.checkpoint import Progress, TrainState
from lavila.engine.distributed import Process
from lavila.engine.optim import build_optimizer
from lavila.engine.saving import Saver
from lavila.files import user_path
from lavila.models.classifier import VideoClassifier
from lavila.models.timesformer import TimeSformer, TimeSformerConfig

REST_SECONDS = 5.0  # between the start of a run and its first save
DOCS = common.ROOT / "docs/RELIABILITY.md"
SIZES = {
    "base": TimeSformerConfig(num_frames=16),
    "tiny": TimeSformerConfig(image_size=32, patch_size=16, width=32, depth=2, heads=2, num_frames=4),
}


def state_of(size: str, device: torch.device) -> TrainState:
    """A model with a state of AdamW, as after an update."""
    model = VideoClassifier(TimeSformer(SIZES[size]), num_classes=(97, 300, 3806), dropout=0.0).to(device)
    config = OptimConfig(optimizer="adamw")
    optimizer = build_optimizer(model, config, in_backbone=lambda name: True, ranks=1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    return TrainState(model=model, optimizer=optimizer, scaler=scaler, progress=Progress(), order={})


@contextmanager
def longest_gap() -> Iterator[list[float]]:
    """The longest time, in seconds, between two wakes of a thread that wants to run every millisecond."""
    found, end = [0.0], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not end.wait(0.001):
            now = time.perf_counter()
            found[0], last = max(found[0], now - last), now

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield found
    finally:
        end.set()
        thread.join()


class Timed:
    """A run's saver, one save after another."""

    def __init__(self, folder: Path, state: TrainState, device: torch.device, *, background: bool) -> None:
        config = RunConfig(run_dir=str(folder), keep_checkpoints=1)
        config = replace(config, engine=replace(config.engine, save_in_background=background))
        folder.mkdir()
        process = Process(rank=0, world=1, local_world=1, device=device)
        self.state = state
        self.saver = Saver(config, process, state, extra={}, newest=None)
        self.saver.start()
        time.sleep(REST_SECONDS)

    def save(self) -> tuple[float, float, float]:
        """Seconds that the caller waits, seconds until the checkpoint is whole, and the longest gap meanwhile."""
        self.state.progress.updates += 1
        if self.state.progress.updates and torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        self.saver.save(meter={}, metrics=None)
        waited = time.perf_counter() - began
        with longest_gap() as gap:
            self.saver.finish()
        assert self.saver.is_saved, "the disk is full"
        return waited, time.perf_counter() - began, gap[0]


def measure(size: str, folder: Path, *, rounds: int) -> dict[str, Any]:
    """All figures, in seconds and bytes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = state_of(size, device)
    sides = {name: Timed(folder / name, state, device, background=name == "background") for name in SIDES}
    spent: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            spent[name].append(side.save())
    for side in sides.values():
        side.saver.close()
    last = folder / "background/checkpoints" / f"step-{state.progress.updates:08d}"
    later = {
        name: [statistics.median(column) for column in zip(*rows[1:], strict=True)] for name, rows in spent.items()
    }
    return {
        "model": size,
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "bytes": sum(path.stat().st_size for path in last.rglob("*") if path.is_file()),
        "rounds": rounds,
        "blocking": later["blocking"][1],
        "wait": later["background"][0],
        "first_wait": spent["background"][0][0],
        "beside": later["background"][1],
        "gap": later["background"][2],
        "share": later["background"][0] / later["blocking"][1],
    }


SIDES = ("blocking", "background")


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    about = found["machine"]
    rows = [
        ("a save that training waits for", f"{found['blocking']:.2f} s"),
        ("training waits for the copy", f"{found['wait']:.2f} s ({100 * found['share']:.1f} % of the above)"),
        ("the same for the first save of a run", f"{found['first_wait']:.2f} s"),
        ("until the copy is written and synced", f"{found['beside']:.2f} s"),
        ("longest time that the writing thread keeps Python to itself", f"{1000 * found['gap']:.0f} ms"),
    ]
    lines = [
        f"{found['parameters'] / 1e6:.0f} M parameters with AdamW, {found['bytes'] / 1e6:,.0f} MB a checkpoint; median "
        f"of {found['rounds']}; {about['gpu'] or about['processor']}, {about['cores']} cores, torch {about['torch']}.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {what} | {value} |" for what, value in rows),
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=user_path, help="on the disk to measure (one for temporary files)")
    given = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="saving-", dir=given.folder))
    try:
        found = measure(given.model, folder, rounds=given.rounds)
    finally:
        shutil.rmtree(folder)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found["machine"] = machine("torch", gpu=gpu)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    if given.model == "base":
        (common.RESULTS / "saving.json").write_text(json.dumps(found, indent=1) + "\n")
        fill_docs("saving", table(found), DOCS)


if __name__ == "__main__":
    main()
