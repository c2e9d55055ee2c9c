"""Fixtures that all tests share; what marks a test as one for a GPU; how tests are dealt out to processes.

The process that deals them out loads this file, too. So what takes long to import is imported where it is used.
"""

from __future__ import annotations

import gc
import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores; the threads of one would fight for them
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch is imported

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from lavila.cluster import workers
from tests import forks
from tests.commands import run_here
from tests.shared import made_once

if TYPE_CHECKING:
    from lavila.shards.reader import ShardSet

# A shell lets its background jobs ignore Ctrl-C, and commands that such a job starts inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

EPOCHS = 20  # of `undisturbed`, and of the trainings that are compared with it; an epoch is three updates
PER_CORE, MOST = 1.5, 8  # processes of `make test`: tests wait for files and for each other, and each takes 1 GB


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
    from lavila.shards.reader import open_shard_set

    return open_shard_set(shards_of(tmp_path_factory, "vp9"))


@pytest.fixture(scope="session")
def h264_shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    from lavila.shards.reader import open_shard_set

    return open_shard_set(shards_of(tmp_path_factory, "h264"))


LEAST_FOR_GPUS = (144, 256)  # every codec's pictures are decoded by NVDEC from this size on


@pytest.fixture(scope="session")
def gpu_shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ShardSet]:
    """Codec -> a shard set with pictures that a GPU decodes."""
    from lavila.shards.reader import open_shard_set

    return lambda codec: open_shard_set(shards_of(tmp_path_factory, codec, size=LEAST_FOR_GPUS))


def shards_of(factory: pytest.TempPathFactory, codec: str, *, size: tuple[int, int] = (64, 112)) -> Path:
    """The folder of a shard set; all tests share it."""
    from tests.shard_sets import make_shard_set

    def make(folder: Path) -> None:
        (folder / "videos").mkdir()
        make_shard_set(folder / "shards", folder / "videos", codec=codec, size=size)

    return made_once(factory, f"{codec}-{size[0]}", make) / "shards"


# The folders of tests that take longest: they come first, so that no process is left alone with one of them at the end.
SLOWEST = ("slurm", "engine", "tools", "configs", "ingest", "doctor", "sample", "data", "inspection", "cluster")


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


def pytest_configure(config: pytest.Config) -> None:
    """Before any test."""
    forks.share_server()
    if hasattr(config, "workerinput") or not config.getoption("numprocesses"):  # not in the process that deals them out
        from hypothesis import settings

        settings.register_profile("any machine", deadline=None)  # 200 ms by default, which a busy machine exceeds
        settings.load_profile("any machine")


def pytest_xdist_auto_num_workers() -> int:
    """How many processes `make test` takes."""
    return min(round(PER_CORE * len(os.sched_getaffinity(0))), MOST)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """How `make test` deals tests out to processes."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests skip, and which come first."""
    skip_without_gpu(items)
    items.sort(key=lambda item: [*SLOWEST, item.path.parent.name].index(item.path.parent.name))


def pytest_collection_finish() -> None:
    """What is there by now stays to the end, so the collector of cycles leaves it out: it took 0.8 s each time."""
    gc.freeze()


def skip_without_gpu(items: list[pytest.Item]) -> None:
    """GPU tests skip without a GPU; where one must be there, LAVILA_REQUIRE_GPU=1 lets them run and fail."""
    import torch

    if torch.cuda.is_available() or os.environ.get("LAVILA_REQUIRE_GPU") == "1":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here; LAVILA_REQUIRE_GPU=1 makes this a failure"))
