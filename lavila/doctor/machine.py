"""Checks cores, memory, Java, SLURM, vocabularies and the cache folder."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from lavila.doctor.findings import Finding, Machine
from lavila.files import user_path

GIB = 1 << 30
BUSY = 1.5  # runnable processes for each CPU of a machine that counts as busy
LITTLE_MEMORY = 8 * GIB  # bytes; a rank with PyTorch, DALI and a few batches in flight needs about 4 GiB
LITTLE_SHM = 1 * GIB  # bytes; Docker gives 64 MiB, but NCCL needs more for each rank
ENOUGH_DISK = 5 * GIB  # bytes; the largest published checkpoint has about 5 GB
MEMORY_LIMITS = ("memory.max", "memory.limit_in_bytes")
VOCABULARIES = (  # the model, the repository on the hub, the files
    ("BERT (dual encoders of EgoVLP)", "distilbert-base-uncased", ("vocab.txt", "tokenizer.json")),
    ("GPT-2 (narrator)", "gpt2", ("vocab.json", "tokenizer.json")),
)


def cgroup_folders(machine: Machine, controller: str) -> list[Path]:
    """The control groups of this process for a controller: its group first, then the groups around it."""
    folders = []
    for line in (machine.read("proc/self/cgroup") or "").splitlines():
        _, kinds, place = line.split(":", 2)
        if kinds == "":
            base = machine.root / "sys/fs/cgroup"
        elif controller in kinds.split(","):
            base = machine.root / "sys/fs/cgroup" / controller
        else:
            continue
        # Within a container the path may be the host's. Then the base folder is the group of the container.
        inner = base / place.lstrip("/")
        folders += [inner, *(up for up in inner.parents if up.is_relative_to(base))]
    return folders


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def cpu_quota(machine: Machine) -> float | None:
    """The number of CPUs that control groups allow this process; None = no limit."""
    quotas = []
    for folder in cgroup_folders(machine, "cpu"):
        text = _first_line(folder / "cpu.max")
        if text is None:
            one = (_first_line(folder / "cpu.cfs_quota_us"), _first_line(folder / "cpu.cfs_period_us"))
            text = " ".join(part or "max" for part in one)
        quota, _, period = text.partition(" ")
        if quota.isdecimal() and period.isdecimal():  # "max" and -1 mean no limit
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit(machine: Machine) -> int | None:
    """The bytes that control groups allow this process; None = no limit."""
    limits = []
    for folder in cgroup_folders(machine, "memory"):
        for name in MEMORY_LIMITS:
            text = _first_line(folder / name)
            if text and text.isdecimal() and int(text) < 1 << 60:  # version 1 writes a huge number if there is no limit
                limits.append(int(text))
    return min(limits, default=None)


def check_cores(machine: Machine) -> Finding:
    """Compare the CPUs of the machine, of this process's affinity, and of its container's quota."""
    whole = (machine.read("proc/cpuinfo") or "").count("processor\t:") or os.cpu_count() or 1
    allowed, quota = machine.affinity(), cpu_quota(machine)
    load = float((machine.read("proc/loadavg") or "0").split()[0])
    facts = {"machine": whole, "affinity": allowed, "quota": quota, "load": load}
    summary = f"{allowed} CPU(s)"
    if allowed < whole:
        summary += f" of the machine's {whole}, by affinity (SLURM, taskset or a cpuset)"
    if quota is not None and quota < allowed:
        threads = max(1, int(quota))
        found = f"limited to {quota:g} of {whole} CPUs by a container's quota, but {allowed} are visible"
        fix = (
            f"train.py ... data.threads={threads}   (else the loader starts {allowed} threads, which the quota stops "
            "again and again); or a larger quota: docker run --cpus=N",
        )
        return Finding(name="cores", status="note", found=found, fix=fix, facts=facts)
    if allowed < whole and allowed <= 2:
        cure = ("ask for more: srun --cpus-per-task=N",) if "SLURM_JOB_ID" in machine.environ else ()
        return Finding(name="cores", status="note", found=summary, fix=cure, facts=facts)
    if load > BUSY * whole:
        summary += f", busy: a load of {load:.1f} on {whole}, so the rates below are too low"
        return Finding(name="cores", status="note", found=summary, fix=("see what else runs: top",), facts=facts)
    return Finding(name="cores", status="ok", found=summary, facts=facts)


def check_memory(machine: Machine) -> Finding:
    """Check the memory of machine and container, and /dev/shm."""
    kib = dict(re.findall(r"^(\w+):\s+(\d+) kB", machine.read("proc/meminfo") or "", re.MULTILINE))
    total, free = (int(kib.get(name, 0)) * 1024 for name in ("MemTotal", "MemAvailable"))
    limit = memory_limit(machine)
    shm_folder = machine.root / "dev/shm"
    shm = shutil.disk_usage(shm_folder).total if shm_folder.is_dir() else 0
    facts = {"total": total, "available": free, "limit": limit, "shm": shm}
    summary = f"{total / GIB:.0f} GiB, {free / GIB:.0f} GiB of it available"
    summary += f", limited to {limit / GIB:.1f} GiB by a container or SLURM" if limit and limit < total else ""
    summary += f"; /dev/shm {shm / GIB:.1f} GiB" if shm >= GIB else f"; /dev/shm {shm >> 20} MiB"
    fix = []
    if min(free, limit or free) < LITTLE_MEMORY:
        summary += f": less than {LITTLE_MEMORY // GIB} GiB is little for a rank"
        fix.append("ask for more memory (srun --mem=32G), or smaller data.batch_size and data.prefetch=1")
    if shm < LITTLE_SHM:
        summary += ": /dev/shm is little for NCCL, when several ranks train"
        fix.append("docker run --shm-size=8g, or --ipc=host")
    return Finding(name="memory", status="note" if fix else "ok", found=summary, fix=tuple(fix), facts=facts)


def check_java(machine: Machine) -> Finding:
    """Check for Java, which METEOR and the PTB tokenizer of the captioning scores start."""
    ran = machine.run("java", "-version", timeout=20.0)
    if ran.status == 0:
        version = (ran.err or ran.out).splitlines()[0]
        return Finding(name="java", status="ok", found=f"{version}: METEOR can be scored", facts={"version": version})
    found = "no java: captions cannot be scored with METEOR or cut into PTB tokens; nothing else needs it"
    if ran.status is not None:
        found = f"java does not start ({ran.said()}): no METEOR and no PTB tokenizer"
    fix = ("apt install default-jre-headless   (or module load java; conda install openjdk)",)
    return Finding(name="java", status="missing", found=found, fix=fix)


def check_slurm(machine: Machine) -> Finding:
    """Check that jobs can be submitted from here, and list the partitions."""
    name = "slurm"
    ran = machine.run("sinfo", "--noheader", "--format=%P|%a|%D|%G", timeout=20.0)
    if ran.status is None:
        return Finding(name=name, status="missing", found="no SLURM here: torchrun starts jobs on this machine only")
    if ran.status != 0:
        found = f"sinfo is installed, but reaches no cluster ({ran.said()})"
        fix = ("on a cluster's login node this works; elsewhere it is not needed",)
        return Finding(name=name, status="missing", found=found, fix=fix)
    rows = [line.strip().split("|") for line in ran.out.splitlines() if line.count("|") == 3]
    partitions = [
        {"name": row[0], "up": row[1] == "up", "nodes": int(row[2]) if row[2].isdecimal() else 0, "gres": row[3]}
        for row in rows
    ]
    summary = "; ".join(
        f"{one['name']} {one['nodes']} node(s) {one['gres'] if one['gres'] != '(null)' else 'without GPUs'}"
        + ("" if one["up"] else " (down)")
        for one in partitions
    )
    facts = {"partitions": partitions, "job": machine.environ.get("SLURM_JOB_ID")}
    inside = f"; inside job {facts['job']}" if facts["job"] else ""
    if machine.run("sbatch", "--version").status != 0:
        return Finding(
            name=name, status="missing", found=f"{summary}{inside}; no sbatch: not a submit host", facts=facts
        )
    if "submitit" not in machine.versions():
        fix = ("pip install -e '.[slurm]'",)
        return Finding(
            name=name, status="missing", found=f"{summary}{inside}; submitit is missing", fix=fix, facts=facts
        )
    return Finding(name=name, status="ok", found=f"{summary or 'no partition'}{inside}", facts=facts)


def check_vocabularies(machine: Machine) -> Finding:
    """Look for the vocabularies.

    CLIP's comes with open_clip_torch; BERT's and GPT-2's are fetched from the hub once.
    """
    from huggingface_hub import try_to_load_from_cache

    parts, fix, facts = (
        [],
        [],
        {"clip": "open_clip_torch" in machine.versions() or "open-clip-torch" in machine.versions()},
    )
    parts.append("CLIP's is installed" if facts["clip"] else "CLIP's is missing")
    if not facts["clip"]:
        fix.append("pip install open_clip_torch")
    for what, repository, files in VOCABULARIES:
        found = any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)
        facts[repository] = found
        parts.append(f"{what} is {'cached' if found else 'not cached'}")
        if not found:
            fix.append(
                f"hf download {repository} {' '.join(files)}   (where there is a network; needed by that model only)"
            )
    return Finding(
        name="vocabularies", status="missing" if fix else "ok", found="; ".join(parts), fix=tuple(fix), facts=facts
    )


def check_cache(machine: Machine) -> Finding:
    """Check the folder of downloaded checkpoints."""
    given = machine.environ.get("LAVILA_HOME")
    home = user_path(given or f"{machine.environ.get('HOME', '~')}/.cache/lavila")
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    free, held = shutil.disk_usage(there).free, list((home / "checkpoints").glob("*")) if home.is_dir() else []
    summary = f"{home}{' (LAVILA_HOME)' if given else ''}: {len(held)} checkpoint(s), {free / GIB:.0f} GiB free"
    facts = {"folder": str(home), "checkpoints": len(held), "free": free}
    if not os.access(there, os.W_OK):
        fix = ("export LAVILA_HOME=/a/folder/you/can/write",)
        return Finding(name="cache", status="missing", found=f"{summary}; not writable", fix=fix, facts=facts)
    if free < ENOUGH_DISK:
        fix = ("export LAVILA_HOME=/a/folder/with/room",)
        return Finding(name="cache", status="note", found=f"{summary}: little", fix=fix, facts=facts)
    return Finding(name="cache", status="ok", found=summary, facts=facts)
