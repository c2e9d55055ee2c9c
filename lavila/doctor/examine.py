"""The checks of the doctor, in their order."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lavila.doctor import gpu
from lavila.doctor import machine as machine_checks
from lavila.doctor.findings import Finding, Machine, checked
from lavila.doctor.versions import check_versions
from lavila.shards.pictures import StoredPictures

DECODE_SECONDS = 1.0  # time for each decoder and codec
READ_SECONDS = 2.0  # time for each way of reading
STEP_SECONDS = 6.0  # time for each stage of a training step


class Doctor:
    """The checks, in the order of the report."""

    def __init__(self, machine: Machine, *, quick: bool) -> None:
        self.machine, self.quick = machine, quick
        self.findings: list[Finding] = []
        quota = machine_checks.cpu_quota(machine)
        self.threads = max(1, min(machine.affinity(), int(quota or 1 << 20)))
        self.stage_lines: list[str] = []

    def add(self, name: str, check: Callable[[], Finding]) -> Finding:
        """Run a check. Its result or its error becomes a finding."""
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
        pictures = StoredPictures.of(shards) if shards else None
        self.add("nvdec", lambda: gpu.check_nvdec(machine, state, pictures=pictures))
        self.add("auto", lambda: gpu.check_auto(machine, state))

    def decoder_checks(self, folder: Path) -> None:
        """The rates of all decoders, and the differences of their pictures."""
        nvdec = gpu.nvdec_codecs(self.findings) if self.machine.torch().devices else []
        samples: Any = None

        def cpu() -> Finding:
            nonlocal samples
            from lavila.doctor import decode  # imported here, so that a missing package becomes a finding

            samples = decode.make_samples(folder)
            return decode.check_cpu_decoders(samples, threads=self.threads, seconds=DECODE_SECONDS)

        rates = self.add("cpu decode", cpu).facts.get("clips_per_second", {})
        if samples is None:
            return
        from lavila.doctor import decode

        if nvdec:
            self.add(
                "gpu decode",
                lambda: decode.check_nvdec_rate(samples, nvdec, cpu=rates, seconds=DECODE_SECONDS),
            )
        self.add("pictures", lambda: decode.check_pictures(samples, nvdec=nvdec))

    def machine_checks(self, shards: Any | None) -> None:
        """Cores, memory, storage, Java, SLURM, vocabularies and the cache folder."""
        machine, seconds = self.machine, 0.0 if self.quick else READ_SECONDS

        def storage() -> Finding:
            from lavila.doctor.storage import check_storage

            return check_storage(machine, shards, threads=self.threads, seconds=seconds)

        self.add("cores", lambda: machine_checks.check_cores(machine))
        self.add("memory", lambda: machine_checks.check_memory(machine))
        self.add("storage", storage)
        self.add("java", lambda: machine_checks.check_java(machine))
        self.add("slurm", lambda: machine_checks.check_slurm(machine))
        self.add("vocabularies", lambda: machine_checks.check_vocabularies(machine))
        self.add("cache", lambda: machine_checks.check_cache(machine))

    def step_check(self, config: Any, shards: Any, *, bar: Any, plain: bool) -> None:
        """Check that the config can run, and find what bounds a training step."""

        def can_start() -> Finding:
            from lavila.doctor.step import check_config

            return check_config(config, shards)

        def step() -> Finding:
            from lavila.doctor.step import measure_step
            from lavila.doctor.verdict import stage_lines, step_finding

            nvdec = bool(self.machine.torch().devices) and shards.codec in gpu.nvdec_codecs(self.findings)
            facts = measure_step(config, shards, nvdec=nvdec, seconds=STEP_SECONDS, bar=bar)
            self.stage_lines = stage_lines(facts, plain=plain)
            return step_finding(facts)

        self.add("config", can_start)
        if not self.quick:
            self.add("step", step)


def examine(args: argparse.Namespace, config: Any | None, shards: Any | None, machine: Machine) -> Doctor:
    """Run the checks that the arguments select, with a bar on stderr."""
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
