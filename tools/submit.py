"""Runs train.py, evaluate.py, shard_videos.py or narrate.py as a SLURM job.

    python tools/submit.py --settings cluster.yaml --nodes 2 --gpus-per-node 8 train.py --config ek100_mir_tsf_b
    python tools/submit.py --settings cluster.yaml --array 64 --array-parallelism 16 narrate.py --shards ... --out ...

Options before the command are for SLURM, all after it are the command's. A YAML file of --settings gives defaults under
the same names (gpus_per_node: 8). A job that is preempted or out of time saves, is requeued and continues by itself.
docs/SLURM.md says more.

Exit status: 0 submitted (with --follow: ended well), 1 with --follow: not, 2 wrong arguments.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from lavila.arguments import name_and_value, parser_of
from lavila.cluster.launch import Launch
from lavila.cluster.submission import SlurmSettings, Submitted, follow, script, settings_of, submit
from lavila.errors import UserError
from lavila.files import user_path

ROOT = Path(__file__).resolve().parents[1]
# The commands, and what each needs to continue where an earlier start was cut short.
COMMANDS: dict[str, tuple[Path, tuple[str, ...]]] = {
    "train.py": (ROOT / "train.py", ()),
    "evaluate.py": (ROOT / "evaluate.py", ()),
    "shard_videos.py": (ROOT / "tools/shard_videos.py", ("--resume",)),
    "narrate.py": (ROOT / "tools/narrate.py", ()),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = parser_of(__doc__)
    add = p.add_argument
    add("--settings", type=user_path, metavar="FILE", help="YAML file of defaults for the options below")
    add("--minutes", type=int, metavar="N", help="time limit")
    add("--nodes", type=int, metavar="N", help="machines (1)")
    add("--gpus-per-node", type=int, metavar="N", help="GPUs of each, with a process for each GPU")
    add("--tasks-per-node", type=int, metavar="N", help="processes of each (one for each GPU, or one)")
    add("--cpus-per-task", type=int, metavar="N", help="cores of each process")
    add("--memory-gb", type=float, metavar="GB", help="main memory of each node")
    for name in ("partition", "account", "qos", "constraint", "name"):
        add(f"--{name}", metavar="NAME", help="as sbatch has it")
    add("--array", type=int, metavar="N", help="narrate.py: N elements of a job array share the work")
    add("--array-parallelism", type=int, metavar="N", help="elements at a time (all)")
    add("--signal-seconds", type=int, metavar="S", help="time for saving before the time limit (120)")
    add("--logs", metavar="DIR", help="folder of logs, which all nodes see (runs/slurm)")
    add("--option", action="append", type=name_and_value, default=[], metavar="NAME=VALUE",
        help="any further option of sbatch; repeatable")  # fmt: skip
    add("--print", action="store_true", help="print the script for sbatch and submit nothing")
    add("--follow", action="store_true", help="show the log of rank 0 until the job ends; Ctrl-C leaves the job")
    add("command", choices=COMMANDS, metavar="COMMAND", help=f"one of {', '.join(COMMANDS)}")
    add("arguments", nargs=argparse.REMAINDER, metavar="...", help="the command's arguments")
    return p


def settings(args: argparse.Namespace) -> SlurmSettings:
    """What the arguments and the file of defaults ask for."""
    given: dict[str, Any] = {name: getattr(args, name, None) for name in SlurmSettings.__dataclass_fields__}
    given["extra"] = dict(args.option)
    found = settings_of(args.settings, given)
    if found.array is not None and args.command != "narrate.py":
        more = "; give it --cluster slurm --jobs N, and it makes an array itself" if "shard" in args.command else ""
        raise UserError(f"--array {found.array}: {args.command} does not share its work among elements{more}")
    return found


def say(jobs: list[Submitted], command: str) -> None:
    """What was submitted, where its logs are, and how to follow it."""
    first, last = jobs[0], jobs[-1]
    array = first.id.partition("_")[0]
    several = f" to {last.id}" if len(jobs) > 1 else ""
    print(f"job {first.id}{several}: {command}")
    print(f"log of rank 0: {first.logs[0]}")
    if len(first.logs) > 1:
        print(f"logs of the other ranks: {first.logs[1]} to {last.logs[-1].name}")
    print(f"follow: tail -F {first.logs[0]}")
    print(f"state: squeue --job {array}        stop: scancel {array}")


def main() -> None:
    """See the module's docstring."""
    args = parser().parse_args()
    try:
        wanted = settings(args)
        path, when_requeued = COMMANDS[args.command]
        name = f"lavila-{path.stem}"
        if args.print:
            print(script(wanted, name=name))
            return
        command = (sys.executable, "-u", str(path), *args.arguments)
        launch = Launch(command=command, folder=str(Path.cwd()), when_requeued=when_requeued)
        jobs = submit(launch, wanted, name=name)
    except UserError as error:
        print(f"submit.py: {error}", file=sys.stderr)
        sys.exit(2)
    say(jobs, shlex.join([args.command, *args.arguments]))
    if args.follow:
        try:
            sys.exit(0 if follow(jobs, sys.stdout) else 1)
        except KeyboardInterrupt:
            print(f"\nno longer followed; the job continues (scancel {jobs[0].id} ends it)")


if __name__ == "__main__":
    run_main(main)
