"""What train.py and evaluate.py share: arguments, logging, and mistakes of the user told in one line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

from lavila.config.load import known_names, load_config, to_yaml
from lavila.config.schema import ConfigError, RunConfig
from lavila.errors import UserError

USER_ERROR = 2  # exit status


def parse(description: str, *, example: str, arguments: list[str] | None = None) -> RunConfig:
    """The config that the command line asks for. Prints it and exits under --print-config. To be called first."""
    leave_cores_to_others()
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"configs: {', '.join(known_names())}\n\nexample: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        required=True,
        action="append",
        metavar="NAME",
        help="a file of lavila/configs/ without .yaml, or a path. May be given again, and then the later one wins: "
        "--config RECIPE --config toy is a recipe with a tiny model and the datasets of tools/make_toy_data.py",
    )
    parser.add_argument("--print-config", action="store_true", help="print the whole resolved config and stop")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything before the first step, print the shapes of a batch and an estimate of memory, and stop",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.batch_size=8 or seed=1")
    given = parser.parse_intermixed_args(arguments)
    try:
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


def run(work: Callable[[RunConfig], object], config: RunConfig) -> None:
    """Do the work of a command; errors that a user can cause end it with one line and status 2."""
    rank = int(os.environ.get("RANK", 0))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format="%(asctime)s %(message)s" if rank == 0 else f"%(asctime)s rank {rank}: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stdout,
    )
    try:
        work(config)
    except UserError as error:
        _fail(error, every_rank=True)
    except KeyboardInterrupt:
        _fail("stopped by the keyboard; the same command goes on from the newest checkpoint", every_rank=False)


def _fail(error: object, *, every_rank: bool) -> NoReturn:
    if every_rank or int(os.environ.get("RANK", 0)) == 0:
        sys.stderr.write(f"error: {error}\n")
    sys.exit(USER_ERROR)
