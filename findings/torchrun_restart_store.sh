#!/usr/bin/env bash
# Workers that torchrun --max-restarts starts again often fail: they find the addresses of dead ones in the store.
#
# Versions: torch 2.14.1 (a plain pip install: several GB), torchrun --standalone, gloo, CPU.
# A good guess: after a worker was killed, torchrun starts all workers anew, init_process_group() brings them together,
#   and the job goes on from its checkpoint.
# What happens: in most restarts a worker hangs in init_process_group(), or ends with "Gloo connectFullMesh failed". All
#   restarts share one TCPStore of the agent, and the keys in it are the same for each start. A worker that is quicker
#   than its neighbour reads the address that the neighbour's dead predecessor left there.
# Source: torch/distributed/elastic/rendezvous/dynamic_rendezvous.py, next_rendezvous: it keeps _bootstrap_store_info,
#   so MASTER_PORT stays the same; torch/distributed/rendezvous.py, _create_c10d_store: "We create a new TCPStore for
#   every retry so no need to add prefix for each attempt".
# Remedy: a prefix for each start, as below.
#
# Output seen:
#   as it is          2 of 6 restarts ended well
#   with a prefix     2 of 2 restarts ended well
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cat >"$work/worker.py" <<'END'
import os
import signal
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

start, limit = os.environ["TORCHELASTIC_RESTART_COUNT"], timedelta(seconds=15)
print("start", start, flush=True)
if sys.argv[1] == "prefix":
    store, rank, world = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"start-{start}", store)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
else:
    dist.init_process_group("gloo", timeout=limit)
dist.all_reduce(torch.ones(1))
if start == "0" and dist.get_rank() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
dist.all_reduce(torch.ones(1))
print("done", start, flush=True)
END
"$work/venv/bin/python" - "$work" <<'END'
import subprocess
import sys

work = sys.argv[1]
command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
seen = {}
for name, argument, times in (("as it is", "plain", 6), ("with a prefix", "prefix", 2)):
    well = 0
    for _ in range(times):
        done = subprocess.run([*command, f"{work}/worker.py", argument], capture_output=True, text=True, timeout=300)
        well += done.returncode == 0 and done.stdout.count("done 1") == 2
    seen[name] = (well, times)
    print(f"{name:<17} {well} of {times} restarts ended well", flush=True)
as_described = seen["as it is"][0] < 6 and seen["with a prefix"] == (2, 2)
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
END
