"""tools/doctor.py on machines with GPUs that are not here: driver, GPU, container, NVDEC, versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lavila.data.nvdec.fastest import NAME, Situation, fastest
from lavila.doctor.examine import Doctor
from lavila.doctor.findings import Finding, Ran, TorchFacts, exit_status
from lavila.doctor.versions import check_versions
from tests.data.nvdec.fakes import A100_CODECS, FakeCuda
from tests.doctor.fakes import A100, H100_OLD, Fake, hanging

NUMBERS = ("engines", "min_width", "min_height", "max_width", "max_height")


class Vp9Shards:
    codec = "vp9"
    clips = pa.table({"height": [288, 288], "width": [512, 384]})


class Av1Shards(Vp9Shards):
    codec = "av1"


class SmallShards(Vp9Shards):
    clips = pa.table({"height": [288, 96], "width": [512, 160]})


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def examined(fake: Fake, shards: object = None) -> dict[str, Finding]:
    doctor = Doctor(fake.machine(), quick=True)
    doctor.gpu_checks(shards)
    return {one.name: one for one in doctor.findings}


def statuses(found: dict[str, Finding]) -> dict[str, str]:
    return {name: one.status for name, one in found.items()}


def test_an_a100_that_works(fake: Fake) -> None:
    fake.gpu(A100 * 2, cuda=13000, codecs=A100_CODECS, usable=2)
    found = examined(fake, Vp9Shards())
    assert set(statuses(found).values()) == {"ok"}
    assert "580.65.06" in found["driver"].found and "13.0" in found["driver"].found
    assert "2 x NVIDIA A100-SXM4-80GB, 80 GiB each" in found["gpu"].found
    assert (
        "av1 not decoded" in found["nvdec"].found and "vp9 by 5 engine(s), 128x128 to 8192x8192" in found["nvdec"].found
    )
    assert found["nvdec"].facts["av1"] == {"supported": False} | dict.fromkeys(NUMBERS, 0)
    assert not any(one.fix for one in found.values())
    cuda = fake.libraries["libcuda.so.1"]
    assert (cuda.current, cuda.retained) == (0, 0)  # the context was given back


@pytest.mark.parametrize(
    ("shards", "words"), [(Av1Shards(), ("AV1", "hidden")), (SmallShards(), ("vp9 from 128x128", "160x96"))]
)
def test_shards_that_the_chip_cannot_decode_are_decoded_on_the_cpu(fake: Fake, shards: object, words: Any) -> None:
    fake.gpu(A100, cuda=13000, codecs=A100_CODECS)
    found = examined(fake, shards)["nvdec"]
    assert found.status == "note" and all(word in found.found for word in words)
    assert "--codec" in found.fix[0]


def test_an_h100_whose_driver_is_too_old_for_cuda_13(fake: Fake) -> None:
    fake.gpu(H100_OLD, cuda=12040, codecs=A100_CODECS, usable=0)
    found = examined(fake)
    assert found["driver"].status == "broken"
    assert (
        "550.54.15, runs CUDA up to 12.4; PyTorch is built for CUDA 13.0: driver 580 or newer" in found["driver"].found
    )
    assert "driver 580" in found["driver"].fix[0] and "nvidia-dali-cuda120" in found["driver"].fix[1]
    assert found["gpu"].status == "broken" and found["versions"].status == "ok"


def test_builds_for_cuda_12_fit_that_driver(fake: Fake) -> None:
    fake.gpu(H100_OLD, cuda=12040, codecs=A100_CODECS)
    fake.torch = TorchFacts(cuda="12.6", devices=1)
    fake.packages["nvidia-dali-cuda120"] = fake.packages.pop("nvidia-dali-cuda130")
    assert set(statuses(examined(fake)).values()) == {"ok"}


def test_a_container_without_video(fake: Fake) -> None:
    fake.gpu(A100, cuda=13000, codecs=None)
    fake.file(".dockerenv")
    fake.environ["NVIDIA_DRIVER_CAPABILITIES"] = "compute,utility"
    found = examined(fake)
    assert statuses(found) == {
        "driver": "ok",
        "gpu": "ok",
        "versions": "ok",
        "container": "broken",
        "nvdec": "broken",
        "auto": "ok",
    }
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility lacks video" in found["container"].found
    assert "-e NVIDIA_DRIVER_CAPABILITIES=compute,video,utility" in found["container"].fix[0]
    assert found["nvdec"].fix[0] == found["container"].fix[0] and "data.decoder=host" in found["nvdec"].fix[1]


@pytest.mark.parametrize("given", ["all", "compute,video,utility", "video,compute,utility,graphics"])
def test_a_container_with_all_it_needs(fake: Fake, given: str) -> None:
    fake.gpu(A100, cuda=13000, codecs=A100_CODECS)
    fake.file("run/.containerenv")
    fake.environ["NVIDIA_DRIVER_CAPABILITIES"] = given
    assert examined(fake)["container"].status == "ok"


def test_a_variable_without_video_whose_library_is_there_all_the_same(fake: Fake) -> None:
    fake.gpu(A100, cuda=13000, codecs=A100_CODECS)
    fake.environ["NVIDIA_DRIVER_CAPABILITIES"] = "compute"
    found = examined(fake)
    assert found["container"].status == "note" and "lacks video, utility" in found["container"].found
    assert found["nvdec"].status == "ok"


def test_no_gpu_at_all_is_missing_and_not_broken(fake: Fake) -> None:
    found = examined(fake)
    assert statuses(found) == {
        "driver": "missing", "gpu": "missing", "versions": "ok", "container": "ok", "nvdec": "missing", "auto": "ok",
    }  # fmt: skip
    assert exit_status(list(found.values())) == 0


def test_a_login_node_shows_how_to_get_to_a_gpu(fake: Fake) -> None:
    fake.commands["sinfo"] = Ran(status=0, out="slurm 24.05.1\n")
    assert "srun --gres=gpu:1" in examined(fake)["driver"].fix[0]


def test_devices_without_a_driver_library(fake: Fake) -> None:
    fake.file("dev/nvidia0")
    found = examined(fake)["driver"]
    assert found.status == "broken" and "--nv" in found.fix[1]


@pytest.mark.parametrize(
    ("status", "said", "cure"),
    [
        (18, "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.65\n", "reboot"),
        (255, "Failed to initialize NVML: Unknown Error\n", "start it again"),
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
            "NVIDIA driver is installed and running.\n\n", "another node"),
    ],
)  # fmt: skip
def test_what_nvidia_smi_complains_of(fake: Fake, status: int, said: str, cure: str) -> None:
    fake.commands["nvidia-smi"] = Ran(status=status, out=said)
    found = examined(fake)["driver"]
    assert found.status == "broken" and said.splitlines()[0] in found.found and cure in found.fix[0]


def test_a_driver_that_gives_no_devices(fake: Fake) -> None:
    fake.commands["nvidia-smi"] = Ran(status=6, out="No devices were found\n")
    fake.file(
        "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release\n"
    )
    fake.libraries["libcuda.so.1"] = FakeCuda()
    found = examined(fake)
    assert found["driver"].status == "ok" and "580.65.06" in found["driver"].found
    assert found["gpu"].status == "missing" and "--gres=gpu:1" in found["gpu"].fix[0]


def test_nvidia_smi_that_hangs_stops_nothing_else(fake: Fake) -> None:
    fake.commands["nvidia-smi"] = hanging("nvidia-smi")
    found = examined(fake)
    assert found["driver"].status == "broken" and "nvidia-smi did not answer within 30 s" in found["driver"].found
    assert found["versions"].status == "ok" and len(found) == 6


def test_nvidia_smi_that_prints_nonsense_is_a_finding(fake: Fake) -> None:
    fake.commands["nvidia-smi"] = Ran(status=0, out="what?\n")
    found = examined(fake)["driver"]
    assert found.status == "broken" and "the check failed: ValueError" in found.found


@pytest.mark.parametrize(
    ("visible", "cuda", "word"),
    [("", "13.0", "unset CUDA_VISIBLE_DEVICES"), (None, None, "whl/cu130"), ("0", "13.0", "torch.cuda.init()")],
)
def test_a_gpu_that_pytorch_cannot_use(fake: Fake, visible: str | None, cuda: str | None, word: str) -> None:
    fake.gpu(A100, cuda=13000, codecs=A100_CODECS)
    fake.torch = TorchFacts(cuda=cuda, devices=0)
    if visible is not None:
        fake.environ["CUDA_VISIBLE_DEVICES"] = visible
    found = examined(fake)["gpu"]
    assert found.status == "broken" and word in found.fix[0]


def test_fewer_gpus_for_pytorch_than_there_are(fake: Fake) -> None:
    fake.gpu(A100 * 4, cuda=13000, codecs=A100_CODECS, usable=1)
    found = examined(fake)["gpu"]
    assert found.status == "note" and "PyTorch may use 1 of them" in found.found


@pytest.mark.parametrize(
    ("changes", "found", "cure"),
    [
        ({"nvidia-dali": "1.0"}, "placeholder, not DALI", "pip uninstall -y nvidia-dali &&"),
        ({"nvidia-dali-cuda130": None}, "DALI is not installed", "pip install 'nvidia-dali-cuda130>=2.1'"),
        ({"nvidia-dali-cuda120": "2.4.0"}, "overwrite each other", "-y nvidia-dali-cuda120 nvidia-dali-cuda130"),
        ({"nvidia-dali-cuda130": None, "nvidia-dali-cuda120": "2.4.0"}, "is for CUDA 12, torch for CUDA 13", "cuda130"),
        ({"nvidia-dali-cuda130": "2.0.0"}, "does not decode on the CPU", "pip install -U"),
        ({"torch": "2.13.0+cu130"}, "torch 2.13.0+cu130", "pip install -U torchvision torch==2.13.0"),
        ({"av": None}, "av is not installed", "pip install -e ."),
    ],
)  # fmt: skip
def test_versions_that_do_not_fit(fake: Fake, changes: dict[str, str | None], found: str, cure: str) -> None:
    for name, version in changes.items():
        if version is None:
            fake.packages.pop(name)
        else:
            fake.packages[name] = version
    one = check_versions(fake.machine())
    assert one.status == "broken" and found in one.found and len(one.fix) == 1 and cure in one.fix[0]


@pytest.mark.parametrize(
    ("requirement", "torch", "fits"),
    [
        ("torch==2.13.0", "2.13.0+cu130", True),
        ("torch==2.13.0", "2.14.1", False),
        ("torch>=2.14.0", "2.15.0", True),
        ("torch>=2.14.0", "2.15.0a0+git1234", True),
        ("torch>=2.14.0", "2.13.1", False),
    ],
)
def test_torchvision_says_which_torch_it_takes(fake: Fake, requirement: str, torch: str, fits: bool) -> None:
    fake.packages["torch"] = torch
    fake.torchvision_requires = ["numpy", requirement, "scipy; extra == 'scipy'"]
    assert (check_versions(fake.machine()).status == "ok") == fits


def test_what_is_installed_here_fits() -> None:
    from lavila.doctor.findings import Machine

    assert check_versions(Machine()).status == "ok"


def test_what_auto_stands_for_is_shown(fake: Fake, tmp_path: Path) -> None:
    fake.gpu(A100, cuda=13000, codecs=A100_CODECS)
    assert "not measured" in examined(fake)["auto"].found
    situation = Situation(
        gpu="A", threads=8, shard_set="/x", codec="hevc", clips=4, views=(1, 1), frames=16, size=224, half=True
    )
    fake.environ["LAVILA_HOME"] = str(tmp_path / "here")
    fastest(situation, lambda decoder: {"nvdec": 120.0, "host": 80.0}[decoder], file=tmp_path / "here" / NAME)
    found = examined(fake)["auto"]
    assert "auto is nvdec" in found.found and "nvdec 120, host 80 clips/s" in found.found
    assert found.facts["measured"][0]["clips_per_second"] == {"nvdec": 120.0, "host": 80.0}
