#!/usr/bin/env bash
# submitit lets rank 0 of a job listen at a port that Linux may have given to any connection of the node.
#
# Versions: submitit 1.5.4, CPython 3.11, Linux with its default net.ipv4.ip_local_port_range (32768 to 60999).
# A good guess: TorchDistributedEnvironment().export() sets a MASTER_PORT at which rank 0 can listen. At worst, another
#   job of the same node has it.
# What happens: the port is drawn from 20000 to 60000, with the job's number as the seed. Seven in ten lie where Linux
#   takes the ports of outgoing connections from. While one such connection is open (to a database, a file server, another
#   rank), init_process_group ends with EADDRINUSE. A job that is requeued draws the same port again.
# Source: submitit/helpers.py, TorchDistributedEnvironment._get_master_port.
# Remedy: set MASTER_PORT before export(), below 32768; a number that follows from the job's, such as
#   20000 + job % 12768, differs between jobs that run side by side. submitit keeps a MASTER_PORT that is set.
#
# Output seen (the numbers of the second line differ from run to run):
#   ports of 10,000 jobs: 20000 to 59997; 0.68 lie in 32768 to 60999
#   job 1005322 has port 52194, where this machine has a connection: Address already in use
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check submitit==1.5.4
"$work/venv/bin/python" - <<'EOF'
import errno
import os
import socket
import sys
from pathlib import Path

from submitit.helpers import TorchDistributedEnvironment

FIRST_JOB, JOBS, CONNECTIONS = 1_000_000, 10_000, 400
low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
if (low, high) != (32768, 60999):
    print(f"not applicable: this machine gives ports {low} to {high} to connections")
    sys.exit(0)
# What SLURM sets in each process of a job of two nodes.
os.environ |= {
    "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "2",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
}


def port_of(job: int) -> int:
    os.environ["SLURM_JOB_ID"] = str(job)
    return TorchDistributedEnvironment().master_port


ports = {port_of(job): job for job in range(FIRST_JOB, FIRST_JOB + JOBS)}
inside = sum(low <= port_of(job) <= high for job in range(FIRST_JOB, FIRST_JOB + JOBS)) / JOBS
print(f"ports of {JOBS:,} jobs: {min(ports)} to {max(ports)}; {inside:.2f} lie in {low} to {high}")

refused = None
with socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS) as server:
    connections = [socket.create_connection(server.getsockname()) for _ in range(CONNECTIONS)]
    for port in (one.getsockname()[1] for one in connections):  # chosen by the kernel
        if port in ports:
            try:
                socket.create_server(("127.0.0.1", port)).close()
            except OSError as error:
                refused = error
                print(f"job {ports[port]} has port {port}, where this machine has a connection: {os.strerror(error.errno or 0)}")
                break
    for one in connections:
        one.close()
as_described = 0.6 < inside < 0.8 and refused is not None and refused.errno == errno.EADDRINUSE
again = port_of(FIRST_JOB) == port_of(FIRST_JOB)
print("as described" if as_described and again else "CHANGED")
sys.exit(not (as_described and again))
EOF
