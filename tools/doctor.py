"""What this machine can do, what is wrong with it in plain words, and what to type.

    python tools/doctor.py
    python tools/doctor.py --shards data/ek100/shards/train
    python tools/doctor.py --shards data/ek100/shards/train --config ek100_cls_tsf_l data.batch_size=16
    python tools/doctor.py --json --quick

The first line is the verdict; a table and the cures follow, the most effective first. Every check is ok, note (works,
but slower than need be, or worth knowing), missing (not there; work goes on without it) or broken.

With --shards the storage is measured, and whether the GPU decodes the shards' codec. With --config as well (or with
--config alone, where data.train names a shard set) each stage of a training step is measured on the config's own plan,
data and model: reading, decoding, augmenting, the whole loader, the model, and loader and model together. --short-side
and other options that the cures name are those of tools/shard_videos.py.

Exit status: 0 nothing is broken (things may be missing or slow), 1 something is broken, 2 wrong arguments,
130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _doctor_gpu as gpu
import _doctor_machine as machine_checks
from _doctor_findings import Finding, Machine, as_json, checked, exit_status, report
from _doctor_versions import check_versions

NEEDED = ("lavila", "omegaconf", "tqdm", "yaml")  # without which not even the checks can start
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
DECODE_SECONDS = 1.0  # for each decoder and codec
READ_SECONDS = 2.0  # for each way of reading
STEP_SECONDS = 6.0  # for each stage of a training step


def parser() -> argparse.ArgumentParser:
    """The command line."""
    description, epilog = (__doc__ or "").split("\n\n", 1)
    p = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = p.add_argument
    add("--shards", type=Path, metavar="DIR", help="a shard set made by tools/shard_videos.py")
    add("--config", metavar="NAME", help="a file of configs/ without .yaml, or a path; measures a training step")
    add("overrides", nargs="*", metavar="key=value", help="settings of the config, such as data.batch_size=8")
    add("--quick", action="store_true", help="measure nothing: no encoding, decoding, reading or training")
    add("--json", action="store_true", help="print everything as JSON instead of text")
    return p


class Doctor:
    """The checks, in the order in which they are told."""

    def __init__(self, machine: Machine, *, quick: bool) -> None:
        self.machine, self.quick = machine, quick
        self.findings: list[Finding] = []
        quota = machine_checks.cpu_quota(machine)
        self.threads = max(1, min(machine.affinity(), int(quota or 1 << 20)))
        self.stage_lines: list[str] = []

    def add(self, name: str, check: Callable[[], Finding]) -> Finding:
        """Run a check; whatever happens in it becomes a finding."""
        self.findings.append(checked(name, check))
        return self.findings[-1]

    def gpu_checks(self, shards: Any | None) -> None:
        """Driver, GPU, container, NVDEC."""
        machine = self.machine
        state = gpu.GpuState(driver=None, cuda=None, gpus=(), devices=0)

        def driver() -> Finding:
            nonlocal state
            state = gpu.gpu_state(machine)
            return gpu.check_driver(machine, state)

        self.add("driver", driver)
        self.add("gpu", lambda: gpu.check_gpu(machine, state))
        self.add("versions", lambda: check_versions(machine))
        self.add("container", lambda: gpu.check_container(machine, state))
        self.add("nvdec", lambda: gpu.check_nvdec(machine, state, codec=shards.codec if shards else None))

    def decoder_checks(self, folder: Path) -> None:
        """Rates of all decoders, and whether their pictures agree."""
        nvdec = gpu.nvdec_codecs(self.findings) if self.machine.torch().devices else []
        samples: Any = None

        def cpu() -> Finding:
            nonlocal samples
            import _doctor_decode as decode  # here, so that a missing package becomes a finding

            samples = decode.make_samples(folder)
            return decode.check_cpu_decoders(samples, threads=self.threads, seconds=DECODE_SECONDS)

        rates = self.add("cpu decode", cpu).facts.get("clips_per_second", {})
        if samples is None:
            return
        import _doctor_decode as decode

        if nvdec:
            self.add(
                "gpu decode",
                lambda: decode.check_nvdec_rate(
                    samples, nvdec, cpu=rates, threads=self.threads, seconds=DECODE_SECONDS
                ),
            )
        self.add("pictures", lambda: decode.check_pictures(samples, nvdec=nvdec))

    def machine_checks(self, shards: Any | None) -> None:
        """Cores, memory, storage, and what else the house is built on."""
        machine, seconds = self.machine, 0.0 if self.quick else READ_SECONDS

        def storage() -> Finding:
            from _doctor_storage import check_storage

            return check_storage(machine, shards, threads=self.threads, seconds=seconds)

        self.add("cores", lambda: machine_checks.check_cores(machine))
        self.add("memory", lambda: machine_checks.check_memory(machine))
        self.add("storage", storage)
        self.add("java", lambda: machine_checks.check_java(machine))
        self.add("slurm", lambda: machine_checks.check_slurm(machine))
        self.add("vocabularies", lambda: machine_checks.check_vocabularies(machine))
        self.add("cache", lambda: machine_checks.check_cache(machine))

    def step_check(self, config: Any, shards: Any, *, bar: Any, plain: bool) -> None:
        """Whether the config can run, and what bounds a training step."""

        def can_start() -> Finding:
            from _doctor_step import check_config

            return check_config(config, shards)

        def step() -> Finding:
            from _doctor_step import measure_step
            from _doctor_verdict import stage_lines, step_finding

            nvdec = bool(self.machine.torch().devices) and shards.codec in gpu.nvdec_codecs(self.findings)
            facts = measure_step(config, shards, nvdec=nvdec, seconds=STEP_SECONDS, bar=bar)
            self.stage_lines = stage_lines(facts, plain=plain)
            return step_finding(facts)

        self.add("config", can_start)
        if not self.quick:
            self.add("step", step)


def examine(args: argparse.Namespace, config: Any | None, shards: Any | None, machine: Machine) -> Doctor:
    """Run all checks that were asked for, with progress on stderr."""
    from tqdm import tqdm

    doctor = Doctor(machine, quick=args.quick)
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    stages: list[tuple[str, Callable[[], None]]] = [("driver and GPU", lambda: doctor.gpu_checks(shards))]
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder, tqdm(unit="part", dynamic_ncols=True) as bar:
        if not args.quick:
            stages.append(("decoders", lambda: doctor.decoder_checks(Path(folder))))
        stages.append(("machine", lambda: doctor.machine_checks(shards)))
        if config is not None and shards is not None:
            stages.append(("training step", lambda: doctor.step_check(config, shards, bar=bar, plain=plain)))
        bar.reset(total=len(stages))
        for name, stage in stages:
            bar.set_description(name)
            stage()
            bar.update()
    return doctor


def main(argv: Sequence[str] | None = None, *, machine: Machine | None = None) -> int:
    """Run the tool; returns the exit status."""
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
    from lavila.data.shard_format import ShardSetError
    from lavila.engine.command_line import leave_cores_to_others

    leave_cores_to_others()  # as training does
    config = shards = None
    given = [f"data.train={args.shards}"] if args.shards is not None else []
    try:
        config = load_config(args.config, [*given, *args.overrides]) if args.config else None
    except ConfigError as error:
        p.error(str(error))
    folder = args.shards or (Path(config.data.train) if config and config.data.train else None)
    if config and (folder is None or not folder.is_dir()):
        p.error(f"--config {args.config}: its data.train={config.data.train!r} is no folder; give --shards DIR")
    broken: list[Finding] = []
    if folder is not None:
        from lavila.data.shards import open_shard_set

        try:
            shards = open_shard_set(folder)
        except ShardSetError as error:
            fix = (f"python tools/inspect_shards.py {folder} --verify",)
            broken.append(Finding(name="shards", status="broken", found=str(error), fix=fix))
    for name in RANK_VARIABLES:  # one process is looked at; with these it would wait for others
        os.environ.pop(name, None)
    try:
        doctor = examine(args, config, shards, machine or Machine())
    except KeyboardInterrupt:
        print("\ndoctor: interrupted", file=sys.stderr)
        return 130
    findings = [*broken, *doctor.findings]
    print(json.dumps(as_json(findings), indent=1) if args.json else report(findings, doctor.stage_lines))
    return exit_status(findings)


if __name__ == "__main__":
    sys.exit(main())
