"""Checks the driver, the GPU, the container and NVDEC."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from lavila.data.nvdec.chip import Chip, nvdec_problem
from lavila.data.nvdec.driver import CodecCaps, DriverError, decode_caps, driver_cuda
from lavila.data.nvdec.fastest import NAME, kept
from lavila.doctor.findings import Finding, Machine
from lavila.files import user_path
from lavila.shards.pictures import StoredPictures, not_on_common_chips

SMI_FIELDS = ("name", "driver_version", "memory.total", "mig.mode.current")
SHOWN = 5  # the newest measurements of data.decoder=auto
SMI_SECONDS = 30.0  # without persistence mode, the first call after boot takes several seconds for each GPU
DRIVER_FOR = {11: 450, 12: 525, 13: 580}  # major release of CUDA -> its first driver, as NVIDIA documents it
CAPABILITIES = ("compute", "video", "utility")
TYPE_CAPABILITIES = (
    f"start the container with NVIDIA_DRIVER_CAPABILITIES={','.join(CAPABILITIES)}: docker run --gpus all -e "
    f"NVIDIA_DRIVER_CAPABILITIES={','.join(CAPABILITIES)} ..., or export it before srun --container-image=... (pyxis)"
)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as nvidia-smi lists it."""

    name: str
    memory_mib: int
    mig: bool


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """The driver and the GPUs of a machine."""

    driver: str | None  # version of the driver; None: there is none
    cuda: tuple[int, int] | None  # the newest CUDA release that it runs
    gpus: tuple[Gpu, ...]  # the GPUs that nvidia-smi lists
    devices: int  # number of devices /dev/nvidia0, /dev/nvidia1 ...
    problem: str = ""  # the error of nvidia-smi or of the driver library

    @property
    def present(self) -> bool:
        """Whether the machine has a GPU, usable or not."""
        return bool(self.gpus or self.devices)


def gpu_state(machine: Machine) -> GpuState:
    """Ask nvidia-smi, the driver's library and the kernel. Raises TimeoutExpired if nvidia-smi hangs."""
    smi = machine.run(
        "nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits", timeout=SMI_SECONDS
    )
    gpus, versions, problem = [], set(), ""
    if smi.status == 0:
        for line in smi.out.strip().splitlines():
            name, version, memory, mig = (field.strip() for field in line.split(","))
            gpus.append(Gpu(name=name, memory_mib=int(memory) if memory.isdecimal() else 0, mig=mig == "Enabled"))
            versions.add(version)
    elif smi.status is not None and "No devices were found" not in smi.said():
        problem = f"nvidia-smi: {smi.said()}"
    try:
        cuda = driver_cuda(machine.load)
    except DriverError as error:
        cuda, problem = None, problem or str(error)
    kernel = re.search(r"Module\s+(?:for \S+\s+)?(\d+\.[\d.]+)", machine.read("proc/driver/nvidia/version") or "")
    driver = next(iter(versions), kernel[1] if kernel else None)
    devices = len(list((machine.root / "dev").glob("nvidia[0-9]*")))
    return GpuState(driver=driver, cuda=cuda, gpus=tuple(gpus), devices=devices, problem=problem)


def check_driver(machine: Machine, state: GpuState) -> Finding:
    """Check that the driver works, and runs the CUDA release for which PyTorch was built."""
    name, facts = "driver", {"version": state.driver, "cuda": state.cuda}
    if state.problem:
        cure = ["reload the driver (reboot the node), or use another node"]
        if "version mismatch" in state.problem:
            cure = ["the driver was updated while loaded: reboot the node, or use another one"]
        elif "Unknown Error" in state.problem:
            cure = ["the container has lost its devices: start it again"]
        return Finding(name=name, status="broken", found=state.problem, fix=tuple(cure), facts=facts)
    if state.driver is None and state.cuda is None:
        found = "no NVIDIA driver: training and decoding run on the CPU"
        if state.devices:
            return Finding(
                name=name,
                status="broken",
                found=f"{state.devices} GPU(s) in /dev, but no driver library and no nvidia-smi",
                fix=(TYPE_CAPABILITIES, "with Apptainer or Singularity: add --nv"),
                facts=facts,
            )
        return Finding(name=name, status="missing", found=found, fix=_to_a_gpu(machine), facts=facts)
    summary = f"NVIDIA {state.driver or 'driver of unknown version'}"
    summary += f", runs CUDA up to {state.cuda[0]}.{state.cuda[1]}" if state.cuda else ", libcuda.so.1 cannot be loaded"
    built = machine.torch().cuda
    major = int(built.split(".")[0]) if built else None
    if major and state.cuda and state.cuda[0] < major:
        return Finding(
            name=name,
            status="broken",
            found=f"{summary}; PyTorch is built for CUDA {built}: driver {DRIVER_FOR.get(major, '?')} or newer",
            fix=_older_cuda(major, state.cuda[0]),
            facts=facts,
        )
    if state.present and not state.cuda:
        return Finding(name=name, status="broken", found=summary, fix=(TYPE_CAPABILITIES,), facts=facts)
    return Finding(name=name, status="ok", found=summary, facts=facts)


def _older_cuda(built: int, runs: int) -> tuple[str, ...]:
    update = f"install NVIDIA driver {DRIVER_FOR.get(built, '(see the CUDA release notes)')} or newer on the node"
    if runs != 12:
        return (update,)
    return (
        update,
        "or use builds for CUDA 12: pip uninstall -y nvidia-dali-cuda130 && pip install nvidia-dali-cuda120 && pip "
        "install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu126",
    )


def _to_a_gpu(machine: Machine) -> tuple[str, ...]:
    slurm = machine.run("sinfo", "--version").status == 0
    return ("srun --gres=gpu:1 --cpus-per-task=8 --pty python tools/doctor.py",) if slurm else ()


def check_gpu(machine: Machine, state: GpuState) -> Finding:
    """List the GPUs, and check that PyTorch can use them."""
    name, seen = "gpu", machine.torch()
    facts = {"gpus": [asdict(gpu) for gpu in state.gpus], "devices": state.devices, "torch_devices": seen.devices}
    if not state.present:
        found = "no NVIDIA GPU: everything runs on the CPU, in full but slowly"
        if state.driver:
            found = "a driver, but no GPU is given to this job or container"
        fix = ("ask for one: srun --gres=gpu:1 ..., docker run --gpus all ...",) if state.driver else ()
        return Finding(name=name, status="missing", found=found, fix=fix, facts=facts)
    kinds = {gpu.name: sum(other.name == gpu.name for other in state.gpus) for gpu in state.gpus}
    memory = min((gpu.memory_mib for gpu in state.gpus), default=0) / 1024
    summary = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or f"{state.devices} in /dev"
    summary += f", {memory:.0f} GiB each" if memory else ""
    summary += ", split by MIG" if any(gpu.mig for gpu in state.gpus) else ""
    if seen.devices:
        fewer = seen.devices < len(state.gpus)
        summary += f"; PyTorch may use {seen.devices} of them" if fewer else ""
        return Finding(name=name, status="note" if fewer else "ok", found=summary, facts=facts)
    hidden = machine.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1", "NoDevFiles"):
        found, fix = f"{summary}, hidden by CUDA_VISIBLE_DEVICES={hidden!r}", ("unset CUDA_VISIBLE_DEVICES",)
    elif seen.cuda is None:
        found = f"{summary}; the installed PyTorch is a build without CUDA"
        fix = ("pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu130",)
    else:
        found, fix = f"{summary}; PyTorch cannot use any", ()
        if state.cuda and state.cuda[0] >= int(seen.cuda.split(".")[0]):
            fix = ('python -c "import torch; torch.cuda.init()"   (says why)',)
    return Finding(name=name, status="broken", found=found, fix=fix, facts=facts)


def in_container(machine: Machine) -> str | None:
    """The kind of container in which this runs; None without any sign of one."""
    if (machine.root / ".dockerenv").exists():
        return "Docker"
    if (machine.root / "run/.containerenv").exists():
        return "Podman"
    for variable, kind in (
        ("APPTAINER_CONTAINER", "Apptainer"),
        ("SINGULARITY_CONTAINER", "Singularity"),
        ("ENROOT_ROOTFS", "Enroot"),
        ("KUBERNETES_SERVICE_HOST", "Kubernetes"),
        ("NVIDIA_VISIBLE_DEVICES", "with NVIDIA's runtime"),
    ):
        if variable in machine.environ:
            return kind
    return None


def check_container(machine: Machine, state: GpuState) -> Finding:
    """Check that a container gets all parts of the driver: compute (CUDA), video (NVDEC), utility (nvidia-smi)."""
    name, kind, given = "container", in_container(machine), machine.environ.get("NVIDIA_DRIVER_CAPABILITIES")
    facts = {"kind": kind, "NVIDIA_DRIVER_CAPABILITIES": given}
    if kind is None and given is None:
        return Finding(name=name, status="ok", found="no sign of a container", facts=facts)
    summary = (
        f"container ({kind or 'kind unknown'}), NVIDIA_DRIVER_CAPABILITIES={given if given is not None else 'not set'}"
    )
    if not (state.present or state.driver):
        return Finding(name=name, status="ok", found=f"{summary}; without a GPU it does not matter", facts=facts)
    capabilities = {part.strip() for part in (given or "").split(",")}
    lacking = [one for one in CAPABILITIES if one not in capabilities and "all" not in capabilities]
    loads = _loads(machine, "libnvcuvid.so.1")
    if not lacking and loads:
        return Finding(name=name, status="ok", found=summary, facts=facts)
    if loads and (given is None or "video" not in lacking):
        return Finding(name=name, status="ok", found=f"{summary}; libnvcuvid.so.1 is there all the same", facts=facts)
    if loads:
        found = f"{summary} lacks {', '.join(lacking)}, though libnvcuvid.so.1 is there"
        return Finding(name=name, status="note", found=found, fix=(TYPE_CAPABILITIES,), facts=facts)
    found = (
        f"{summary} lacks {', '.join(lacking) or 'nothing'}; libnvcuvid.so.1 cannot be loaded, so NVDEC cannot be used"
    )
    fix = (
        TYPE_CAPABILITIES if lacking else "start the container with the host's driver: --gpus all, or --nv (Apptainer)"
    )
    return Finding(name=name, status="broken", found=found, fix=(fix,), facts=facts)


def _loads(machine: Machine, library: str) -> bool:
    try:
        machine.load(library)
    except OSError:
        return False
    return True


def check_nvdec(machine: Machine, state: GpuState, *, pictures: StoredPictures | None) -> Finding:
    """List the codecs that the GPU decodes. `pictures`: those of the shard set; None = there is no set."""
    name = "nvdec"
    if not state.present:
        return Finding(name=name, status="missing", found="no GPU, so no NVDEC: videos are decoded on the CPU")
    meanwhile = "until then: train.py ... data.decoder=host (any codec) or data.decoder=dali_cpu (vp9), on the CPU"
    try:
        caps = decode_caps(machine.load)
    except OSError as error:
        fix = (TYPE_CAPABILITIES, meanwhile) if in_container(machine) else (
            "install the decode library of the driver's version: apt install libnvidia-decode-"
            f"{(state.driver or '580').split('.')[0]}-server (Debian, Ubuntu)", meanwhile)  # fmt: skip
        return Finding(name=name, status="broken", found=f"{error}: NVDEC cannot be used", fix=fix)
    except DriverError as error:
        return Finding(name=name, status="broken", found=str(error), fix=(meanwhile,))
    facts = {kind: asdict(one) for kind, one in caps.items()}
    summary = "; ".join(_codec_text(kind, one) for kind, one in caps.items())
    gpu = next((one.name for one in state.gpus), "this GPU")
    problem = nvdec_problem(Chip(name=gpu, codecs=caps), pictures) if pictures else None
    if problem:
        found = f"the shards are decoded on the CPU (data.decoder=auto): {problem}; {summary}"
        cure = not_on_common_chips(pictures) if pictures else None
        return Finding(name=name, status="note", found=found, fix=(cure,) if cure else (), facts=facts)
    if not any(one.supported for one in caps.values()):
        return Finding(
            name=name, status="broken", found=f"this GPU decodes no codec; {summary}", fix=(meanwhile,), facts=facts
        )
    return Finding(name=name, status="ok", found=summary, facts=facts)


def check_auto(machine: Machine, state: GpuState) -> Finding:
    """List what `data.decoder=auto` stands for, as loaders on this machine have measured it."""
    name, home = "auto", machine.environ.get("LAVILA_HOME") or f"{machine.environ.get('HOME', '~')}/.cache/lavila"
    if not state.present:
        return Finding(name=name, status="ok", found="no GPU: data.decoder=auto is host")
    file = user_path(home) / NAME
    found = kept(file)[-SHOWN:]
    if not found:
        text = "data.decoder=auto was not measured here yet: the first loader of a shard set does so, in seconds"
        return Finding(name=name, status="ok", found=text)
    lines = [
        f"{one.fastest} for {one.situation['frames']} frames at {one.situation['size']} px of {one.situation['codec']} "
        f"with {one.situation['threads']} threads ({one.text}; {one.when})"
        for one in found
    ]
    facts = {"file": str(file), "measured": [asdict(one) for one in found]}
    return Finding(name=name, status="ok", found=f"data.decoder=auto is {'; '.join(lines)}", facts=facts)


def _codec_text(name: str, caps: CodecCaps) -> str:
    if not caps.supported:
        return f"{name} not decoded"
    sizes = f"{caps.min_width}x{caps.min_height} to {caps.max_width}x{caps.max_height}"
    return f"{name} by {caps.engines} engine(s), {sizes}"


def nvdec_codecs(findings: Sequence[Finding]) -> list[str]:
    """The codecs that NVDEC decodes, from the finding of check_nvdec."""
    facts = next((one.facts for one in findings if one.name == "nvdec" and one.status in ("ok", "note")), {})
    return [name for name, caps in facts.items() if caps["supported"]]
