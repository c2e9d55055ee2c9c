"""A real SLURM for as long as the tests run: two nodes, all state in a temporary folder, nothing in /etc.

Needs Debian's slurmctld, slurmd, slurm-client and munge (or the same from elsewhere). Without them the tests are
skipped; LAVILA_REQUIRE_SLURM=1 makes that a failure.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from benchmarks.ports import free_ports

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scancel", "scontrol")
MAX_ARRAY = 6  # small, so that eight jobs need two arrays
CONFIG = """
ClusterName=throwaway
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
# Daemons for this machine only, that do without cgroups, MPI, accounts and mail.
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
# Nobody waits: for the scheduler's next round, nor for a job that heeds no signal.
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
KillWait=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
ReturnToService=2
# Jobs of `urgent` take the places of others, which get SIGTERM and some time before they are requeued.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MaxArraySize={max_array}
# The nodes may claim more than the machine has. An address as a name needs no entry in /etc/hosts.
SlurmdParameters=config_overrides
NodeName=127.0.0.1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[0]} CPUs=64 RealMemory=1000000 State=UNKNOWN
NodeName=127.0.0.2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=64 RealMemory=1000000 State=UNKNOWN
PartitionName=main Nodes=127.0.0.[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=127.0.0.[1-2] MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
NODES = ("127.0.0.1", "127.0.0.2")


@contextmanager
def daemon(*command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_idle(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        idle = subprocess.run(
            ["sinfo", "--noheader", "--partition=main", "--states=idle", "--format=%D"], capture_output=True, text=True
        )
        if idle.stdout.strip() == str(len(NODES)):
            return
        if time.monotonic() > deadline:
            logs = "\n".join(f"{log}:\n{log.read_text()[-2000:]}" for log in sorted(folder.glob("*.log")))
            pytest.fail(f"SLURM did not start within 30 s\n{logs}")
        time.sleep(0.1)


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            reason = f"no SLURM on this machine ({', '.join(missing)} not found)"
            if os.environ.get("LAVILA_REQUIRE_SLURM") == "1":
                pytest.fail(f"LAVILA_REQUIRE_SLURM=1, but {reason}")
            pytest.skip(reason)
        # A short path: the name of a socket has at most 107 characters.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        folder.chmod(0o755)  # munge wants others to reach its socket
        for name, mode in (("state", 0o755), ("spool", 0o755), ("munge", 0o711)):
            (folder / name).mkdir()
            (folder / name).chmod(mode)
        key = folder / "munge/key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        controller, *ports = free_ports(1 + len(NODES))
        config = folder / "slurm.conf"
        config.write_text(
            CONFIG.format(
                folder=folder, user=getpass.getuser(), controller_port=controller, ports=ports, max_array=MAX_ARRAY
            )
        )
        patch.setenv("SLURM_CONF", str(config))
        munge = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "pid", "seed", "log")]
        stack.enter_context(
            daemon("munged", "--foreground", f"--socket={folder}/munge/socket", *munge, log=folder / "munged.log")
        )
        deadline = time.monotonic() + 10
        while not (folder / "munge/socket").exists():
            assert time.monotonic() < deadline, (folder / "munged.log").read_text()
            time.sleep(0.05)
        stack.enter_context(daemon("slurmctld", "-D", "-c", "-f", str(config), log=folder / "slurmctld.out.log"))
        for node in NODES:
            (folder / "spool" / node).mkdir(mode=0o755)
            log = folder / f"slurmd.{node}.out.log"
            stack.enter_context(daemon("slurmd", "-D", "-N", node, "-f", str(config), log=log))
        wait_until_idle(folder)
        yield
        subprocess.run(["scancel", f"--user={getpass.getuser()}"], check=False)
        wait_until_idle(folder)
