"""What a job asks for: flags above a file of defaults; what is not named is left to SLURM. Needs no SLURM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lavila.cluster.arrays import ClusterError
from lavila.cluster.launch import PREEMPTED, master_port
from lavila.cluster.submission import SlurmSettings, script, settings_of

ROOT = Path(__file__).parents[2]


def options(text: str) -> dict[str, str]:
    """The options of a script for sbatch."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_jobs_side_by_side_meet_at_different_ports_that_linux_gives_to_no_connection() -> None:
    ports = [master_port(job) for job in range(4_000_000, 4_010_000)]
    assert len(set(ports)) == len(ports) and all(20000 <= port < 32768 for port in ports)


def test_what_nobody_names_is_left_to_slurm() -> None:
    found = options(script(SlurmSettings(minutes=5), name="test"))
    asked = {"time": "5", "nodes": "1", "ntasks-per-node": "1", "job-name": "test", "signal": "USR2@120"}
    assert {name: found.pop(name) for name in asked} == asked
    assert set(found) == {"open-mode", "output", "requeue", "wckey"}


def test_flags_stand_above_the_file_of_defaults(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        textwrap.dedent("""
        minutes: 1440
        partition: gpu
        account: vision
        gpus_per_node: 8
        cpus_per_task: 12
        memory_gb: 900
        constraint: h100|h200
        setup: [module load cuda, ulimit -n 65536]
        extra: {mail-type: END, nice: 10}
        """)
    )
    settings = settings_of(file, {"nodes": 4, "partition": "long", "account": None, "extra": {"nice": "20"}})
    text = script(settings, name="test")
    found = options(text)
    wanted = {
        "time": "1440", "nodes": "4", "partition": "long", "account": "vision", "gpus-per-node": "8", "mem": "900GB",
        "ntasks-per-node": "8", "cpus-per-task": "12", "constraint": "'h100|h200'", "mail-type": "END", "nice": "20",
    }  # fmt: skip
    assert {name: found.get(name) for name in wanted} == wanted
    assert "module load cuda\nulimit -n 65536\n" in text
    assert "--kill-on-bad-exit=1" in text and text.count("--cpus-per-task=12") == 2  # sbatch's and srun's


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu_per_node: 8", "gpu_per_node: no such setting. Did you mean 'gpus_per_node'"),
        ("nodes: many", "nodes: 'many' is not of the right kind; expected int"),
        ("nodes: 0", "nodes=0: must be more than 0"),
        ("nodes: true", "nodes: True"),
        ("signal_seconds: -1", "signal_seconds=-1"),
        ("partition: 'a b'", "partition='a b'"),
        ("setup: module load", "setup: 'module load'.*a list of lines"),
        ("extra: [1]", r"extra: \[1\].*option: value"),
        ("- minutes", "holds a list"),
        ("minutes: [", "not YAML"),
    ],
)
def test_a_wrong_file_of_defaults_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(ClusterError, match=message) as refused:
        settings_of(tmp_path / "cluster.yaml", {})
    assert "\n" not in str(refused.value)


def test_a_job_without_a_time_limit_is_refused() -> None:
    with pytest.raises(ClusterError, match="--minutes"):
        script(SlurmSettings(), name="test")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"none\.yaml: cannot be read"):
        settings_of(tmp_path / "none.yaml", {})


def test_an_array_has_its_size_and_its_limit() -> None:
    settings = SlurmSettings(minutes=5, array=64, array_parallelism=16)
    assert options(script(settings, name="test"))["array"] == "0-63%16"
    assert options(script(SlurmSettings(minutes=5, array=64), name="test"))["array"] == "0-63%64"


def test_slurm_says_whether_another_job_takes_the_place() -> None:
    assert PREEMPTED.search("   PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=2026-01-01T00:00:09\n")
    assert not PREEMPTED.search("   PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None\n")


LAUNCHER = """
import sys
from pathlib import Path
from lavila.cluster.launch import _run
print(_run([sys.executable, "-c", sys.argv[1]], Path.cwd()), flush=True)
"""
COMMAND = """
import signal, subprocess, sys, time
def stop(number, frame):
    print("helper", helper.poll(), flush=True)
    helper.kill()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
helper = subprocess.Popen(["sleep", "60"])
print("ready", flush=True)
time.sleep(60)
"""


def test_usr2_to_all_processes_stops_the_command_alone() -> None:
    """As SLURM sends it: to the launcher, to the command and to what that has started."""
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, COMMAND], stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGUSR2)
        said = process.stdout.read()
    heard = {int(signal.SIGUSR2), int(signal.SIGTERM)}
    assert said == f"helper None\n{(75, heard)}\n"


def test_a_command_that_dies_of_the_stop_counts_as_stopped_by_it() -> None:
    quick = "import time; print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, quick], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        begun = time.monotonic()
        process.send_signal(signal.SIGUSR2)
        said = process.stdout.read()
    assert said.startswith(f"({-signal.SIGTERM}, ") and time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py"], "--minutes"),
        (["--minutes", "5", "--array", "4", "train.py"], "--array 4: train.py"),
        (["--minutes", "5", "--array", "4", "shard_videos.py"], "--cluster slurm --jobs"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], message: str) -> None:
    command = [sys.executable, "tools/submit.py", "--print", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_an_option_without_a_value_is_named() -> None:
    command = [sys.executable, "tools/submit.py", "--print", "--minutes", "5", "--option", "nice", "train.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "'nice'" in done.stderr.splitlines()[-1]  # below argparse's usage
