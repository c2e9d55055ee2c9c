"""Machines for the tests of tools/doctor.py: outputs as real ones give them, and driver libraries that answer."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from lavila.doctor.findings import Machine, Ran, TorchFacts
from tests.data.nvdec.fakes import Codecs, FakeCuda, FakeCuvid

A100 = "NVIDIA A100-SXM4-80GB, 580.65.06, 81920, Disabled\n"
H100_OLD = "NVIDIA H100 80GB HBM3, 550.54.15, 81559, Disabled\n"
VERSIONS = {
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "nvidia-dali-cuda130": "2.4.0",
    "av": "18.1.0",
    "open_clip_torch": "3.3.0",
    "submitit": "1.5.3",
}
KERNEL = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Wed Mar  6 20:24:30 UTC 2026\nGCC version: gcc 12\n"


class Fake:
    """A machine that is put together piece by piece."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ: dict[str, str] = {"HOME": str(root / "home")}
        self.commands: dict[str, Ran | Exception] = {}
        self.libraries: dict[str, Any] = {}
        self.packages = dict(VERSIONS)
        self.torchvision_requires = ["numpy", "torch>=2.14.0", "pillow!=8.3.*,>=5.3.0"]
        self.torch = TorchFacts(cuda="13.0", devices=0)
        self.cpus = 8

    def file(self, path: str, text: str = "") -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def gpu(self, smi: str, *, cuda: int, codecs: Codecs | None, usable: int = 1) -> None:
        """A GPU; `codecs` None: the container was not given libnvcuvid.so.1."""
        self.commands["nvidia-smi"] = Ran(status=0, out=smi)
        self.file("proc/driver/nvidia/version", KERNEL.format(smi.split(",")[1].strip()))
        self.file("dev/nvidia0")
        library = FakeCuda(cuda)
        self.libraries["libcuda.so.1"] = library
        if codecs is not None:
            self.libraries["libnvcuvid.so.1"] = FakeCuvid(library, codecs)
        self.torch = TorchFacts(cuda="13.0", devices=usable)

    def run(self, *command: str, timeout: float = 10.0) -> Ran:
        answer = self.commands.get(command[0], Ran(status=None))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def load(self, name: str) -> Any:
        if name not in self.libraries:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return self.libraries[name]

    def machine(self) -> Machine:
        return Machine(
            root=self.root,
            environ=self.environ,
            run=self.run,
            load=self.load,
            versions=lambda: self.packages,
            requirements=lambda name: {"torchvision": self.torchvision_requires}[name],
            torch=lambda: self.torch,
            affinity=lambda: self.cpus,
        )


def hanging(command: str) -> Exception:
    return subprocess.TimeoutExpired([command], 30.0)
