"""What the loader benchmark writes: JSON, and the tables of docs/PERFORMANCE_TABLES.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import common

RESULTS = common.RESULTS / "loader.json"
PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda130", "av", "decord", "torchcodec", "webdataset")
SIDES = ("ours", "decord", "torchcodec", "pyav", "webdataset", "dali")
TITLES = {
    "ours": "ours",
    "decord": "decord, 300 s chunks",
    "torchcodec": "torchcodec + torch",
    "pyav": "PyAV + torch",
    "webdataset": "webdataset + DataLoader",
    "dali": "DALI readers.webdataset",
    "decode": "limit: decoding alone",
}
Entry = dict[str, Any]
FORM = 1  # the version of the JSON; rows of another version are not kept


def machine() -> dict[str, Any]:
    """The machine and the versions of the figures."""
    return common.machine(*PACKAGES, gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None)


def row_text(name: str, entries: list[Entry], *, seconds: float) -> str:
    """A row as the terminal shows it."""
    lines = [f"\n{name}   ({seconds:.0f} s)"]
    for entry in entries:
        if "absent" in entry:
            lines.append(f"  {entry['side']:16} {entry['absent']}")
            continue
        rate = entry["clips_per_second"]
        text = f"  {entry['side']:16} {rate['median']:8.2f} clips/s ({rate['lowest']:.1f} to {rate['highest']:.1f})"
        text += f"  {entry['core_ms_per_clip']:6.0f} core ms" if "core_ms_per_clip" in entry else ""
        text += f"  ours is {entry['ours_is_times']:5.2f} x" if "ours_is_times" in entry else ""
        text += f"  {100 * entry['share_of_limit']:4.0f} % of decoding" if "share_of_limit" in entry else ""
        text += f"  {entry['gpu_bytes'] / 2**20:.0f} MiB" if "gpu_bytes" in entry else ""
        text += f"  data-wait {100 * entry['data_wait']:.1f} %" if "data_wait" in entry else ""
        text += f"  overhead {100 * entry['overhead']:4.0f} %" if "overhead" in entry else ""
        text += f"  must {entry['must']:g}, aim {entry['aim']:g}: {entry['reached']}" if "must" in entry else ""
        lines.append(f"{text}  {entry.get('variant', '')}".rstrip())
    return "\n".join(lines)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def by_row(entries: Iterable[Entry]) -> dict[str, dict[str, Entry]]:
    """row -> side -> its entry."""
    found: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        found.setdefault(entry["row"], {})[entry["side"]] = entry
    return found


def rates_table(entries: Iterable[Entry]) -> str:
    """Clips a second of every side, and ours against it: times as many clips, and times less core time."""

    def cell(side: str, sides: dict[str, Entry]) -> str:
        entry = sides.get(side, {"absent": ""})
        if "absent" in entry:
            return "-"
        rate = f"{entry['clips_per_second']['median']:.1f}"
        if side == "ours":
            return f"**{rate}** ({entry['variant']})"
        cores = entry["core_ms_per_clip"] / max(sides["ours"]["core_ms_per_clip"], 1e-9)
        return f"{rate} ({entry['ours_is_times']:.2f}x, {cores:.2f}x)"

    rows = [
        [name, *(cell(side, sides) for side in SIDES), f"{sides['decode']['clips_per_second']['median']:.1f}"]
        for name, sides in by_row(entries).items()
    ]
    return markdown(["clips/s (ours: times, times in core time)", *(TITLES[side] for side in (*SIDES, "decode"))], rows)


def goals_table(entries: Iterable[Entry]) -> str:
    """The goals, and what was reached."""
    rows = []
    for entry in entries:
        if "must" not in entry:
            continue
        if entry["side"] == "ours":
            what, value = "overhead", f"{100 * entry['overhead']:.0f} %"
            marks = [f"< {100 * entry['must']:.0f} %", f"< {100 * entry['aim']:.0f} %"]
        else:
            what, value = f"against {TITLES[entry['side']]}", f"{entry['ours_is_times']:.2f}x"
            marks = [f"{entry['must']:g}x", f"{entry['aim']:g}x"]
        rows.append([entry["row"], what, value, *marks, entry["reached"]])
    return markdown(["row", "what", "is", "must", "aim", "reached"], rows)


def stages_table(entries: Iterable[Entry]) -> str:
    """Ours beside the limits."""
    rows = []
    for name, sides in by_row(entries).items():
        shown = [f"{sides[side]['clips_per_second']['median']:.1f}" for side in ("ours", "work", "decode")]
        share, overhead = sides["ours"]["share_of_limit"], sides["ours"]["overhead"]
        rows.append([name, *shown, f"{100 * share:.0f} %", f"{100 * overhead:.0f} %"])
    header = ["clips/s", "ours", "work alone", "decoding alone", "ours / decoding alone", "overhead of ours"]
    return markdown(header, rows)


def gpu_table(entries: Iterable[Entry]) -> str:
    """Every side of the GPU rows."""
    rows = [
        [
            entry["row"],
            entry["side"],
            f"{entry['clips_per_second']['median']:.1f}",
            f"{entry['gpu_bytes'] / 2**20:.0f} MiB",
            f"{100 * entry['data_wait']:.1f} %" if "data_wait" in entry else "-",
        ]
        for entry in entries
    ]
    return markdown(["row", "loader", "clips/s", "GPU memory", "data-wait in a TimeSformer-B step"], rows)


def absent_list(entries: Iterable[Entry]) -> str:
    """What was not measured, and why: one line for each side and reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if "absent" in entry:
            reasons.setdefault((entry["side"], entry["absent"]), []).append(entry["row"])
    return "\n".join(f"- {side} in {len(rows)} row(s): {reason}" for (side, reason), rows in reasons.items())


def section(result: dict[str, Any]) -> str:
    """The text between the markers."""
    entries = [entry for entry in result["rows"] if not on_gpu(entry)]
    gpu_entries, where = [entry for entry in result["rows"] if on_gpu(entry)], result["machine"]
    versions = ", ".join(f"{name} {where[name]}" for name in PACKAGES if where.get(name))
    gpu = where["gpu"] or "no GPU"
    rounds = min(entry["rounds"] for entry in result["rows"])
    head = (
        f"`python -m benchmarks.loader`: medians of {rounds} rounds on {where['cores']} cores of "
        f"{where['processor']}, {gpu}; {versions}."
    )
    parts = [
        "Clips a second. The brackets compare ours with that side: times as many clips a second, then times less core "
        "time for a clip. Other work on the machine distorts core time least.",
        rates_table(entries),
        "Ours beside the limits. *Decoding alone* is libavcodec, which decodes each clip as far as its last wanted "
        "frame. Ours can exceed it, because it skips frames that no wanted frame needs. *Work alone* decodes and draws "
        "what is needed, with no loader around it. *Overhead* is 1 - time of work alone / time of ours.",
        stages_table(entries),
        "Goals.",
        goals_table(entries),
    ]
    missing = absent_list(entries)
    parts = [head, *(parts if entries else []), *([gpu_table(gpu_entries)] if gpu_entries else [])]
    return "\n\n".join([*parts, f"Not measured:\n\n{missing}"] if missing else parts)


def on_gpu(entry: Entry) -> bool:
    """Whether an entry belongs to a GPU row."""
    return str(entry["row"]).startswith("gpu")


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`new` and the rows that only `old` has, if both come from one machine with the same versions of everything."""
    if old.get("machine") != new["machine"] or old.get("form") != new.get("form"):
        return new
    again = {entry["row"] for entry in new["rows"]}
    return {**new, "rows": [entry for entry in old["rows"] if entry["row"] not in again] + new["rows"]}


def write_results(result: dict[str, Any], *, results: Path, tables: Path) -> None:
    """JSON, and the tables. Rows measured before on the same machine are kept."""
    result = merged(json.loads(results.read_text()) if results.exists() else {}, result)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(result, indent=1) + "\n")
    if not tables.exists():
        tables.write_text("# Performance\n\n<!-- loader: begin -->\n<!-- loader: end -->\n", encoding="utf-8")
    common.fill_docs("loader", section(result), tables)
