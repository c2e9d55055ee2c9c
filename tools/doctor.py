"""Shows what this machine can do, what is wrong with it, and what to type.

    python tools/doctor.py
    python tools/doctor.py --shards data/ek100/shards/train
    python tools/doctor.py --shards data/ek100/shards/train --config ek100_cls_tsf_l data.batch_size=16
    python tools/doctor.py --json --quick

The first line is the verdict. A table follows, then the cures with the most effective first. Every check is ok, note
(works, but slower than it could, or worth knowing), missing (absent; work continues without it) or broken.

--shards measures the storage, and whether the GPU decodes the shards' codec. --config measures each stage of a training
step on the config's plan, data and model: reading, decoding, augmenting, the whole loader, the model, and loader and
model together. It needs --shards, or a data.train that names a shard set. Where a cure names --short-side and the like,
these are options of tools/shard_videos.py.

Exit status: 0 nothing is broken (things may be missing or slow), 1 something is broken, 2 wrong arguments,
130 interrupted.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import argparse
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lavila.arguments import parser_of
from lavila.doctor.examine import examine
from lavila.doctor.findings import Finding, Machine, as_json, exit_status, report
from lavila.files import user_path

NEEDED = ("lavila", "omegaconf", "tqdm", "yaml")  # the packages that the checks need to start
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = parser_of(__doc__)
    add = p.add_argument
    add("--shards", type=user_path, metavar="DIR", help="a shard set made by tools/shard_videos.py")
    add("--config", action="append", metavar="NAME",
        help="a file of lavila/configs/ without .yaml, or a path; measures a step; may be repeated")  # fmt: skip
    add("overrides", nargs="*", metavar="key=value", help="settings of the config, such as data.batch_size=8")
    add("--quick", action="store_true", help="look, but measure nothing: no encoding, decoding, reading or training")
    add("--json", action="store_true", help="print everything as JSON instead of text")
    return p


def main(argv: Sequence[str] | None = None, *, machine: Machine | None = None) -> int:
    """Run the tool. Returns the exit status."""
    try:
        return work(argv, machine or Machine())
    except KeyboardInterrupt:
        print("\ndoctor: interrupted", file=sys.stderr)
        return 130


def work(argv: Sequence[str] | None, machine: Machine) -> int:
    """As `main`, up to Ctrl-C."""
    p = parser()
    args = p.parse_intermixed_args(argv)
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(
            f"BROKEN: this Python ({sys.executable}) has no {', '.join(lacking)}; use the project's own: "
            "make venv, then .venv/bin/python tools/doctor.py"
        )
        return 1
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    if args.overrides and not args.config:
        p.error(f"{args.overrides[0]}: settings need a config: give --config NAME")
    if args.shards is not None and not args.shards.is_dir():
        p.error(f"--shards {args.shards}: no such folder; make a shard set with tools/shard_videos.py")
    from lavila.config.load import load_config
    from lavila.config.schema import ConfigError
    from lavila.engine.command_line import leave_cores_to_others
    from lavila.shards.format import ShardSetError

    leave_cores_to_others()  # as training does
    config = shards = None
    given = [f"data.train={args.shards}"] if args.shards is not None else []
    try:
        config = load_config(args.config, [*given, *args.overrides]) if args.config else None
    except ConfigError as error:
        p.error(str(error))
    folder = args.shards or (Path(config.data.train) if config and config.data.train else None)
    if config and (folder is None or not folder.is_dir()):
        p.error(
            f"--config {' '.join(args.config)}: its data.train={config.data.train!r} is no folder; give --shards DIR"
        )
    broken: list[Finding] = []
    if folder is not None:
        from lavila.shards.reader import open_shard_set

        try:
            shards = open_shard_set(folder)
        except ShardSetError as error:
            fix = (f"python tools/inspect_shards.py {folder} --verify",)
            broken.append(Finding(name="shards", status="broken", found=str(error), fix=fix))
    for name in RANK_VARIABLES:  # with these variables, this one process would wait for others
        os.environ.pop(name, None)
    doctor = examine(args, config, shards, machine)
    findings = [*broken, *doctor.findings]
    print(json.dumps(as_json(findings), indent=1) if args.json else report(findings, doctor.stage_lines))
    return exit_status(findings)


if __name__ == "__main__":
    run_main(main)
