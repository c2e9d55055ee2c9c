"""Small shard sets of synthetic video, shared by all tests; and what marks a test as one for a GPU."""

from __future__ import annotations

import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores; the threads of one would fight for them
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch is imported

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from lavila.cluster import workers
from lavila.ingest.encode import EncodeSettings, Interval, encode_clip
from lavila.ingest.jobs import clip_row
from lavila.records import Clip
from lavila.shards.reader import ShardSet, open_shard_set
from lavila.shards.writer import SetContents, ShardWriter, write_manifest
from tests import forks
from tests.commands import run_here
from tests.footage import Coding, Picture, write_video
from tests.shared import made_once

# A shell lets its background jobs ignore Ctrl-C, and commands that such a job starts inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("any machine", deadline=None)  # 200 ms by default, which a busy machine exceeds
settings.load_profile("any machine")

CLASSES = {
    "verb": ["left", "right", "hold"],
    "noun": ["dark", "bright"],
    "action": ["left dark", "right bright", "hold dark"],
}
FRAMES = (30, 24, 41, 9, 30, 33, 30, 24, 41, 9, 30, 33)  # frames of each clip; 9 is shorter than a view
EPOCHS = 20  # of `undisturbed`, and of the trainings that are compared with it; an epoch is three updates
TALL = (2, 8)  # clips that are higher than wide


def moving_picture(number: int, *, seed: int, height: int, width: int) -> Picture:
    """A smooth coloured pattern that moves to the left; every clip has its own."""
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    y, x = np.mgrid[0:height, 0:width] / 24.0
    waves = [np.sin(x + number * 0.3 + p) * np.cos(y * (1 + i / 2) + p) for i, p in enumerate(phase)]
    return (128 + 100 * np.stack(waves, axis=2)).astype(np.uint8)


def make_shard_set(
    folder: Path, videos: Path, *, codec: str, clips: int = len(FRAMES), size: tuple[int, int] = (64, 112)
) -> ShardSet:
    """A whole shard set of `clips` clips in two tars. `size`: height and width of most clips, multiples of 16."""
    folder.mkdir(parents=True)
    rows, files = [], []
    settings = EncodeSettings(codec=codec, short_side=size[0], speed="8" if codec == "vp9" else "ultrafast")
    for number in range(2):
        with ShardWriter(folder, number) as writer:
            for i in range(number, clips, 2):
                height, width = size[::-1] if i in TALL else size
                path = videos / f"{i}.mp4"
                if not path.exists():
                    pictures = (moving_picture(n, seed=i, height=height, width=width) for n in range(FRAMES[i]))
                    write_video(path, pictures, Coding())
                clip = Clip(
                    clip_id=f"clip_{i}",
                    video_id=str(i),
                    video_path=path.name,
                    start_second=0.0,
                    stop_second=None,
                    narrations=(f"clip number {i}",),
                    verb=i % 3,
                    noun=i % 2,
                    action=i % 3,
                )
                encoded = encode_clip(path, interval=Interval(start_second=0.0, stop_second=None), settings=settings)
                rows.append(writer.add(clip.clip_id, encoded.data, clip_row(clip, encoded)))
        files.append(writer.file)
    facts = {"dataset": "synthetic", "split": "train", "encoder": {"codec": codec}}
    write_manifest(folder, rows=rows, shards=files, contents=SetContents(classes=CLASSES, facts=facts))
    return open_shard_set(folder)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the datasets that `--config toy` reads; made once for all processes."""
    from tests.toy import make_toy_datasets  # imports the commands, which few tests need

    return made_once(tmp_path_factory, "toy", make_toy_datasets)


@pytest.fixture(scope="session")
def every_form(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample dataset in every published form, and in `printed` what the command that made it said."""
    import make_sample_dataset  # imports PyTorch

    from tests.toy import EVERY_FORM

    def make(folder: Path) -> None:
        done = run_here(make_sample_dataset.main, [*EVERY_FORM, "--out", folder / "sample", "--workers", "1"])
        assert done.returncode == 0, done.stderr
        (folder / "printed").write_text(done.stdout)

    return made_once(tmp_path_factory, "every-form", make)


@pytest.fixture(scope="session", autouse=True)
def workers_are_forked() -> Iterator[None]:
    """Processes that make and verify shards start in no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_start", forks.start_worker)
        yield


@pytest.fixture(autouse=True)
def no_realtime_is_left() -> Iterator[None]:
    """Every later test inherits the priority of this process, and its busy children would then stop the machine."""
    yield
    realtime = []
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208
        with suppress(ProcessLookupError):  # it has ended since
            if os.sched_getscheduler(int(thread)) in (os.SCHED_FIFO, os.SCHED_RR):
                realtime.append(thread)
    workers.end_realtime()
    assert not realtime, "it leaves threads with real-time priority: call end_realtime()"


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, vp9_shards: ShardSet) -> Path:
    """The run folder of a training by two ranks that nothing disturbs: EPOCHS epochs of `config_file`."""
    from tests.engine.test_runs import ENVIRONMENT, TRAIN, config_file  # imports the commands, which few tests need

    def make(folder: Path) -> None:
        path = config_file(folder, vp9_shards, optim={"epochs": EPOCHS}, keep_checkpoints=1)
        done = forks.run_ranks(2, TRAIN, "--config", path, environment=ENVIRONMENT)
        assert [rank.returncode for rank in done] == [0, 0], done

    return made_once(tmp_path_factory, "undisturbed", make) / "run"


@pytest.fixture(scope="session")
def vp9_shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return open_shard_set(shards_of(tmp_path_factory, "vp9"))


@pytest.fixture(scope="session")
def h264_shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return open_shard_set(shards_of(tmp_path_factory, "h264"))


LEAST_FOR_GPUS = (144, 256)  # every codec's pictures are decoded by NVDEC from this size on


@pytest.fixture(scope="session")
def gpu_shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ShardSet]:
    """Codec -> a shard set with pictures that a GPU decodes."""
    return lambda codec: open_shard_set(shards_of(tmp_path_factory, codec, size=LEAST_FOR_GPUS))


def shards_of(factory: pytest.TempPathFactory, codec: str, *, size: tuple[int, int] = (64, 112)) -> Path:
    """The folder of a shard set; all tests share it."""

    def make(folder: Path) -> None:
        (folder / "videos").mkdir()
        make_shard_set(folder / "shards", folder / "videos", codec=codec, size=size)

    return made_once(factory, f"{codec}-{size[0]}", make) / "shards"


# The folders of tests that take longest: they come first, so that no process is left alone with one of them at the end.
SLOWEST = ("engine", "tools", "slurm", "configs", "ingest", "doctor", "sample", "data", "inspection", "cluster")


ONE_AT_A_TIME = ("tests/slurm/", "tests/gpu/")  # there is one SLURM and, mostly, one GPU for all


def scope_of(nodeid: str) -> str:
    """The tests with which a test shares a process: those of its file, or of its folder."""
    file = nodeid.partition("::")[0]
    return next((folder for folder in ONE_AT_A_TIME if file.startswith(folder)), file)


class ByFile(LoadScopeScheduling):
    """A process gets all tests of a file, because they share what its fixtures make.

    xdist's own `--dist loadgroup` writes groups to an attribute that pytest 9.2 no longer reads.
    """

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def pytest_configure() -> None:
    """Before any test."""
    forks.share_server()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """How `make test` deals tests out to processes."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests skip, and which come first."""
    skip_without_gpu(items)
    items.sort(key=lambda item: [*SLOWEST, item.path.parent.name].index(item.path.parent.name))


def skip_without_gpu(items: list[pytest.Item]) -> None:
    """GPU tests skip without a GPU; where one must be there, LAVILA_REQUIRE_GPU=1 lets them run and fail."""
    if torch.cuda.is_available() or os.environ.get("LAVILA_REQUIRE_GPU") == "1":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here; LAVILA_REQUIRE_GPU=1 makes this a failure"))
