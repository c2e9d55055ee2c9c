"""tools/doctor.py: its command line, what it reports of this machine, and of machines whose files are made up."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import doctor
import numpy as np
import pytest

from lavila.doctor import decode, examine
from lavila.doctor.findings import (
    Finding,
    Machine,
    Ran,
    as_json,
    checked,
    exit_status,
    fixes,
    report,
    run_command,
    verdict,
)
from lavila.doctor.machine import check_cache, check_cores, check_java, check_memory, check_slurm, check_vocabularies
from lavila.doctor.rate import PROBES, _cache_state, drop_cache, medians, rate
from lavila.doctor.storage import check_storage, file_system
from lavila.shards.reader import ShardSet
from tests import forks
from tests.doctor.fakes import Fake, hanging

TOOL = Path(__file__).parents[2] / "tools" / "doctor.py"
GIB = 1 << 30


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    made = Fake(tmp_path)
    made.file("proc/cpuinfo", "".join(f"processor\t: {n}\nmodel name\t: x\n\n" for n in range(64)))
    made.file("proc/meminfo", "MemTotal:       263841852 kB\nMemFree:  1 kB\nMemAvailable:   200000000 kB\n")
    made.cpus = 64
    return made


# --- the command line


def test_this_machine_from_the_shell(vp9_shards: ShardSet) -> None:
    result = forks.run(TOOL, "--json", "--quick", "--shards", vp9_shards.path)
    report = json.loads(result.stdout)
    assert result.returncode == report["exit_status"] == int(bool(report["broken"]))
    names = [one["name"] for one in report["findings"]]
    machine = ["cores", "memory", "storage", "java", "slurm", "vocabularies", "cache"]
    assert names == ["driver", "gpu", "versions", "container", "nvdec", "auto", *machine]
    assert report["findings"][names.index("storage")]["found"].endswith("not measured")


def test_without_a_gpu_nothing_is_broken(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--quick"], machine=fake.machine()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("works, on the CPU only") and "driver, gpu, nvdec, java, slurm" in lines[0]
    assert "What to type or change, most effect first:" in lines


def test_something_broken_is_the_first_line_and_the_status(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.commands["nvidia-smi"] = hanging("nvidia-smi")
    assert doctor.main(["--quick"], machine=fake.machine()) == 1
    assert capsys.readouterr().out.startswith("BROKEN: driver (nvidia-smi did not answer within 30 s); missing")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shards", "/no/such/folder"], "no such folder"),
        (["data.batch_size=8"], "settings need a config"),
        (["--config", "quickstrat"], "Did you mean 'quickstart'"),
        (["--config", "quickstart", "data.batch=8"], "no such key"),
        (["--config", "quickstart", "data.train=/no/such"], "give --shards DIR"),
        (["--config", "quickstart", "--config", "toy", "data.train=/no/such"], "--config quickstart toy: "),
        (["--what"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments_are_status_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        doctor.main(arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_damaged_shard_set_is_broken(tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "shard-000000.tar").touch()
    assert doctor.main(["--quick", "--shards", str(tmp_path / "set")], machine=fake.machine()) == 1
    assert capsys.readouterr().out.startswith("BROKEN: shards")


def test_a_python_without_the_project_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("tqdm", "no_such_package"))
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert out.startswith("BROKEN: this Python") and "no_such_package; use the project's own" in out


# --- findings


def finding(name: str, status: str, *fix: str) -> Finding:
    return Finding(name=name, status=status, found=f"{name} is {status}", fix=fix)  # type: ignore[arg-type]


def test_cures_come_in_order_of_effect_and_once() -> None:
    found = [finding("a", "note", "slow"), finding("b", "missing", "get"), finding("c", "broken", "mend", "get")]
    others = [finding("slurm", "missing", "join"), finding("step", "note", "run")]
    assert fixes([*others, *found]) == ["1. c: mend", "2. c: get", "3. step: run", "4. a: slow", "5. slurm: join"]
    assert exit_status(found) == 1 and exit_status(found[:2]) == 0
    broken, missing, slow = verdict(found).split("; ")
    assert broken == "BROKEN: c (c is broken)" and missing.endswith(": b") and slow.endswith(": a")
    text = report([*found, Finding(name="long", status="ok", found="word " * 60)])
    assert all(len(line) <= 118 for line in text.splitlines())
    assert as_json(found)["broken"] == ["c"]


def test_a_check_that_fails_is_a_finding() -> None:
    def fails() -> Finding:
        raise ZeroDivisionError("by\nzero")

    found = checked("it", fails)
    assert (found.status, found.found) == ("broken", "the check failed: ZeroDivisionError: by zero")


def test_commands_have_a_time_limit() -> None:
    assert run_command("no-such-command-anywhere").status is None
    assert run_command(sys.executable, "-c", "print(1); exit(3)").status == 3

    def hangs() -> Finding:
        run_command(sys.executable, "-c", "import time; time.sleep(60)", timeout=0.3)
        raise AssertionError

    assert "did not answer within 0.3 s" in checked("it", hangs).found


# --- cores, memory


def test_all_cores(fake: Fake) -> None:
    assert check_cores(fake.machine()).found == "64 CPU(s)"


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/\n", {"cpu.max": "200000 100000"}),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000", "a/cpu.max": "800000 100000", "cpu.max": "max 1"}),
        (
            "4:cpu,cpuacct:/x\n1:name=systemd:/\n",
            {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "50000"},
        ),
        ("4:cpu:/not/here\n", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}),
    ],
)
def test_a_container_limited_to_2_of_64_cpus(fake: Fake, cgroup: str, files: dict[str, str]) -> None:
    fake.file("proc/self/cgroup", cgroup)
    for path, text in files.items():
        fake.file(f"sys/fs/cgroup/{path}", text + "\n")
    found = check_cores(fake.machine())
    assert found.status == "note" and "limited to 2 of 64 CPUs" in found.found and "64 are visible" in found.found
    assert "data.threads=2" in found.fix[0]
    assert examine.Doctor(fake.machine(), quick=True).threads == 2


def test_no_limit_and_few_cores(fake: Fake) -> None:
    fake.file("proc/self/cgroup", "3:cpu:/\n")
    fake.file("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    fake.file("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert check_cores(fake.machine()).status == "ok"
    fake.cpus, fake.environ["SLURM_JOB_ID"] = 2, "17"
    found = check_cores(fake.machine())
    assert (
        found.status == "note" and "2 CPU(s) of the machine's 64" in found.found and "--cpus-per-task" in found.fix[0]
    )


def test_a_busy_machine_is_said(fake: Fake) -> None:
    fake.file("proc/loadavg", "110.5 90.0 80.0 3/100 12345\n")
    found = check_cores(fake.machine())
    assert found.status == "note" and "a load of 110.5 on 64" in found.found


def test_memory_and_its_limit(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake.root / "dev/shm").mkdir(parents=True)
    monkeypatch.setattr("lavila.doctor.machine.shutil.disk_usage", lambda folder: Usage)
    fake.file("proc/self/cgroup", "0::/job\n")
    fake.file("sys/fs/cgroup/job/memory.max", f"{4 * GIB}\n")
    found = check_memory(fake.machine())
    assert found.status == "note" and "252 GiB" in found.found and "limited to 4.0 GiB" in found.found
    assert "/dev/shm 64 MiB" in found.found and len(found.fix) == 2 and "--shm-size" in found.fix[1]
    Usage.total = 32 * GIB
    fake.file("sys/fs/cgroup/job/memory.max", "max\n")
    found = check_memory(fake.machine())
    assert found.status == "ok" and "/dev/shm 32.0 GiB" in found.found and not found.fix


class Usage:
    total = 64 << 20


# --- what else the house is built on


def test_java(fake: Fake) -> None:
    assert check_java(fake.machine()).status == "missing"
    fake.commands["java"] = Ran(status=0, err='openjdk version "21.0.4" 2024-07-16\nOpenJDK Runtime\n')
    found = check_java(fake.machine())
    assert found.status == "ok" and found.facts == {"version": 'openjdk version "21.0.4" 2024-07-16'}
    fake.commands["java"] = Ran(status=1, err="Error: could not find libjvm.so\n")
    assert "libjvm.so" in check_java(fake.machine()).found


def test_slurm_partitions(fake: Fake) -> None:
    assert check_slurm(fake.machine()).status == "missing"
    fake.commands["sinfo"] = Ran(status=0, out="gpu*|up|12|gpu:h100:8(S:0-1)\ncpu|down|4|(null)\n")
    assert "no sbatch" in check_slurm(fake.machine()).found
    fake.commands["sbatch"] = Ran(status=0, out="slurm 24.05.1")
    fake.environ["SLURM_JOB_ID"] = "4711"
    found = check_slurm(fake.machine())
    assert found.status == "ok"
    assert found.found == "gpu* 12 node(s) gpu:h100:8(S:0-1); cpu 4 node(s) without GPUs (down); inside job 4711"
    fake.packages.pop("submitit")
    assert "pip install -e '.[slurm]'" in check_slurm(fake.machine()).fix
    fake.commands["sinfo"] = Ran(status=1, err="sinfo: error: no controller\nsinfo: fatal\n")
    assert "reaches no cluster (sinfo: error: no controller)" in check_slurm(fake.machine()).found


def test_vocabularies(fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    there = {("gpt2", "tokenizer.json")}
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda repo, file: str(tmp_path) if (repo, file) in there else None
    )
    found = check_vocabularies(fake.machine())
    assert found.status == "missing" and found.facts == {"clip": True, "distilbert-base-uncased": False, "gpt2": True}
    assert len(found.fix) == 1 and found.fix[0].startswith("hf download distilbert-base-uncased vocab.txt")
    there.add(("distilbert-base-uncased", "vocab.txt"))
    assert check_vocabularies(fake.machine()).status == "ok"


def test_cache_folder(fake: Fake, tmp_path: Path) -> None:
    fake.environ["LAVILA_HOME"] = str(tmp_path / "store")
    fake.file("store/checkpoints/a.pth")
    found = check_cache(fake.machine())
    assert f"{tmp_path / 'store'} (LAVILA_HOME): 1 checkpoint(s)" in found.found
    del fake.environ["LAVILA_HOME"]
    assert found.facts["checkpoints"] == 1 and check_cache(fake.machine()).facts["checkpoints"] == 0


# --- rates and storage


def test_rates() -> None:
    calls = []

    def work() -> int:
        calls.append(1)
        return 5

    assert rate(work, seconds=0.0, warm=3) > 0 and len(calls) == 4
    order: list[str] = []

    def one(name: str, values: list[float]) -> float:
        order.append(name)
        return values[order.count(name) - 1]

    slices = {"a": lambda s: one("a", [1.0, 9.0, 2.0]), "b": lambda s: one("b", [s, s, s])}
    assert medians(slices, seconds=6.0) == {"a": 2.0, "b": 2.0}
    assert order == ["a", "b"] * 3  # in turn, so that a busy moment hits both


def test_the_page_cache_is_emptied_and_asked() -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("no /dev/shm here")
    with tempfile.NamedTemporaryFile(dir=memory) as file:
        file.write(bytes(1 << 20))
        file.flush()
        assert drop_cache([Path(file.name)]) in ("still in memory", "unknown")  # there is no disk behind it


def test_the_page_cache_of_a_disk_is_emptied(tmp_path: Path) -> None:
    if file_system(Machine(), tmp_path) not in ("ext4", "xfs"):
        pytest.skip("no file system here of which it is known that it shows this")
    path = tmp_path / "file"
    step = 1 << 20  # between two looks: far more than a kernel reads ahead, or holds in one folio
    with path.open("wb") as file:
        file.write(bytes(step * PROBES))
        file.flush()
        os.fsync(file.fileno())
        assert _cache_state(file.fileno()) == "unknown"  # not open for reading
    with path.open("rb") as file:
        file.read()
        assert _cache_state(file.fileno()) == "still in memory"
        assert drop_cache([path]) == "empty"
    time.sleep(0.2)
    with path.open("rb") as file:  # looking has not read the file back in, but for what lies around each look
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for place in range(step // 2, step * PROBES, step):
            with pytest.raises(BlockingIOError):
                os.preadv(file.fileno(), [bytearray(1)], place, os.RWF_NOWAIT)


def test_storage(vp9_shards: ShardSet, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_storage(fake.machine(), vp9_shards, threads=2, seconds=0.2)
    size = sum(shard.bytes for shard in vp9_shards.shards)
    assert found.facts["bytes"] == size and found.facts["clips"] == len(vp9_shards)
    assert found.facts["sequential_bytes_per_second"] > 0 and found.facts["random_clips_per_second"] > 0
    monkeypatch.setattr("lavila.doctor.storage._random", lambda *arguments, **more: (20.0, 1e6))
    slow = check_storage(fake.machine(), vp9_shards, threads=2, seconds=0.05)
    assert slow.status == "note" and "cp -r" in slow.fix[0]
    assert check_storage(fake.machine(), None, threads=2, seconds=1.0).status == "ok"


def test_the_kind_of_file_system(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "data" / "set").mkdir(parents=True)
    mounts = [("/", "overlay"), (f"{tmp_path}/data", "lustre"), (f"{tmp_path}/dat", "nfs4")]
    fake.file("proc/mounts", "".join(f"server {place} {kind} rw,relatime 0 0\n" for place, kind in mounts))
    assert file_system(fake.machine(), tmp_path / "data" / "set") == "lustre"
    assert file_system(fake.machine(), Path("/usr")) == "overlay"


# --- decoders


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> decode.Samples:
    """Made without the footage."""
    return decode.make_samples(tmp_path_factory.mktemp("samples"), footage=Path("/not/there.mp4"))


def test_samples_of_a_synthetic_picture(samples: decode.Samples) -> None:
    assert samples.text == "16 frames of 2 s of a synthetic picture at 512x288"
    assert list(samples.payloads) == ["vp9", "h264", "hevc", "av1"]
    pictures = decode.decode_frames(samples.payloads["h264"].data, samples.payloads["h264"].frames)
    assert pictures.shape == (16, 288, 512, 3) and pictures.std() > 20  # something to see
    assert np.abs(pictures[0].astype(int) - pictures[8]).mean() > 5  # and it moves


def test_cpu_decoders_and_their_pictures(samples: decode.Samples) -> None:
    two = replace(samples, payloads={codec: samples.payloads[codec] for codec in ("vp9", "h264")})
    found = decode.check_cpu_decoders(two, threads=2, seconds=0.05)
    rates = found.facts["clips_per_second"]
    assert set(rates) == {"vp9 dali_cpu", "vp9 host", "h264 host"} and min(rates.values()) > 0
    same = decode.check_pictures(samples, nvdec=[])
    assert same.status == "ok" and same.facts == {"vp9 dali_cpu": {"mean": 0.0, "most": 0.0}}


def test_pictures_that_differ_are_broken(samples: decode.Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    right = decode.decode_frames
    monkeypatch.setattr(decode, "decode_frames", lambda data, frames: right(data, frames) ^ 1)
    found = decode.check_pictures(samples, nvdec=[])
    assert found.status == "broken" and "decoders disagree: vp9 dali_cpu" in found.found


def test_a_slow_gpu_decoder_is_said(samples: decode.Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "decode_rate", lambda *arguments, **more: 100.0)
    cpu = {"vp9 dali_cpu": 90.0, "vp9 host": 150.0, "h264 host": 80.0}
    found = decode.check_nvdec_rate(samples, ["vp9", "h264"], cpu=cpu, seconds=1.0)
    assert (
        found.status == "note" and len(found.fix) == 1 and "data.decoder=host   (with vp9 shards: 1.5x" in found.fix[0]
    )
    quick = {name: value / 2 for name, value in cpu.items()}
    assert decode.check_nvdec_rate(samples, ["vp9"], cpu=quick, seconds=1.0).status == "ok"


def test_interrupted(fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(self: object, shards: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(examine.Doctor, "gpu_checks", interrupted)
    assert doctor.main(["--quick"], machine=fake.machine()) == 130
    assert capsys.readouterr().out == ""
