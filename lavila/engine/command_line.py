"""What commands share: arguments, logging, and one line for a mistake of the user."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from lavila.cluster.launch import STOPPED
from lavila.config.load import flatten, known_names, load_config, to_dict, to_yaml
from lavila.config.schema import ConfigError, RunConfig
from lavila.engine.signals import Stopped
from lavila.errors import UserError
from lavila.files import explained, user_path

log = logging.getLogger(__name__)

USER_ERROR = 2  # exit status
# Settings that saved predictions leave open, and beginnings of such: where the clips lie, how the report's pictures are
# decoded, what else is written.
OF_SCORING = (
    "name", "submission", "device", "data.val", "data.folder", "data.decoder", "data.threads", "data.prefetch",
    "data.host_memory_gib", "data.max_bad_clips", "data.read_seconds", "views.batch_size", "engine", "dry_run",
)  # fmt: skip


def parse(
    description: str, *, example: str, scores_again: bool = False, arguments: list[str] | None = None
) -> RunConfig:
    """The config that the command line asks for. Prints it and exits under --print-config. To be called first.

    scores_again: the command has --from, whose folder of saved predictions takes the place of --config.
    """
    leave_cores_to_others()
    compute_the_same_bits()
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"configs: {', '.join(known_names())}\n\nexample: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--config",
        action="append",
        metavar="NAME",
        help="a file of lavila/configs/ without .yaml, or a path. May be given again, and then the later one wins: "
        "--config RECIPE --config toy is a recipe with a tiny model and the datasets of tools/make_toy_data.py",
    )
    if scores_again:
        source.add_argument(
            "--from", dest="predictions", metavar="DIR", help="saved predictions to score again, without a model"
        )
    parser.add_argument("--print-config", action="store_true", help="print the whole resolved config and stop")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything before the first step, print the shapes of a batch and an estimate of memory, and stop",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.batch_size=8 or seed=1")
    given, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        keys = [word.lstrip("-") for word in unknown if "=" in word]
        parser.error(
            f"unrecognized arguments: {' '.join(unknown)}; a setting has the form key=value, without dashes"
            + (f": {' '.join(keys)}" if keys else "")
        )
    try:
        if given.config is None:
            config = _config_of_predictions(user_path(given.predictions), given.overrides)
        else:
            config = load_config(given.config, given.overrides)
    except ConfigError as error:
        _fail(error, every_rank=False)
    if given.print_config:
        sys.stdout.write(to_yaml(config))
        sys.exit(0)
    return replace(config, dry_run=given.dry_run or config.dry_run)


def leave_cores_to_others() -> None:
    """Let OpenMP's threads sleep while they wait for one another; works until PyTorch is imported.

    By default they go round in a busy loop. On cores that the loader's threads or other programs want as well, a step
    on the CPU then takes several times as long: quickstart 13 to 30 clips/s instead of 110 to 230, measured in turn.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def compute_the_same_bits() -> None:
    """Have MKL add up matrix products in one order, whatever the number of threads; works until PyTorch is imported.

    One process has all cores by default, each of several that torchrun starts has one. Neither predictions nor a run
    that continues elsewhere shall depend on that. In this order, on Intel's processors, a row's product does not
    depend on the number of rows either, nor a narrator's texts on the clips beside them; on AMD's it does. In turn
    with and without, on one core with AVX-512: 0.94 s and 0.89 to 1.01 s for a forward pass.
    """
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text(errors="replace").split() if cpu.is_file() else []
    branch = next((name for name, flag in (("AVX512", "avx512f"), ("AVX2", "avx2")) if flag in flags), None)
    if branch is not None:
        os.environ.setdefault("MKL_CBWR", f"{branch},STRICT")


def _config_of_predictions(folder: Path, overrides: list[str]) -> RunConfig:
    """The config that saved predictions were made with, for scoring them again."""
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"--from {folder}: holds no config.yaml, so these are no saved predictions; give the folder `predictions` "
            "beside a report"
        )
    made, asked = (load_config(folder / "config.yaml", given) for given in ([], overrides))
    before = flatten(to_dict(made))
    for key, value in flatten(to_dict(asked)).items():
        if before.get(key) != value and not key.startswith(OF_SCORING):
            raise ConfigError(
                f"--from {folder}: {key}={value}, but these predictions were made with {before.get(key)}; leave it "
                f"out, or evaluate the model again. Here one can set {', '.join(OF_SCORING)}"
            )
    return replace(asked, predictions=str(folder))


def start_log() -> None:
    """Print what the package logs: all of the main rank, warnings of the others; of several ranks with their number."""
    rank, several = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)) > 1
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=f"%(asctime)s rank {rank}: %(message)s" if several else "%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stdout,
    )


def run_tool(name: str, work: Callable[[], int | None], *, interrupted: str) -> int:
    """The exit status of a tool's work: its own or 0, 130 after Ctrl-C, 1 after an error, which is one line.

    interrupted: what is said after Ctrl-C of what is kept.
    """
    try:
        return work() or 0
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; {interrupted}\n")
        return 130
    except UserError as error:
        problem = str(error)
    except OSError as error:
        problem = explained(error)
    sys.stderr.write(f"{name}: error: {problem}\n")
    return 1


def run(work: Callable[[RunConfig], object], config: RunConfig) -> None:
    """Do the work of a command; errors that a user can cause end it with one line and status 2.

    A run that a signal stopped ends with status 75.
    """
    start_log()
    if config.engine.cpu_threads:
        import torch  # the work has imported it

        torch.set_num_threads(config.engine.cpu_threads)
    try:
        work(config)
    except Stopped as stopped:
        log.warning("%s", stopped)
        sys.exit(STOPPED)
    except UserError as error:
        _fail(error, every_rank=True)
    except KeyboardInterrupt:
        _fail("stopped by the keyboard; the same command continues from the newest checkpoint", every_rank=False)


def _fail(error: object, *, every_rank: bool) -> NoReturn:
    if every_rank or int(os.environ.get("RANK", 0)) == 0:
        sys.stderr.write(f"error: {error}\n")
    sys.exit(USER_ERROR)
