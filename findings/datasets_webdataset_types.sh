#!/usr/bin/env bash
# Hugging Face datasets cuts the fractions off times in WebDataset shards, if the first five samples have none.
#
# Versions: datasets 5.2.0, webdataset 1.0.2.
# A good guess: load_dataset("webdataset", ...) reads what is in the shard, as the webdataset library does, and as the
#   same package reads JSON lines. What does not fit the types of the first samples raises an error. So does a sample
#   with other parts, since one among the first five raises.
# What happens: five samples of the first shard decide names and types for the whole data set. If their starts are whole
#   numbers ({"start": 5}), every later 6.75 becomes 6, and "70" becomes 70. A part or key that appears later vanishes,
#   and a missing one is None. No error and no warning, streamed or not. A list of clips often begins with round times.
# Source: datasets/packaged_modules/webdataset/webdataset.py: _split_generators infers the features from
#   NUM_EXAMPLES_FOR_FEATURES_INFERENCE = 5 samples, _generate_examples fills what is missing with None;
#   datasets/features/features.py, Value.encode_example: int(value) for an integer column.
# Remedy: pass features= to load_dataset with Value("float64") for times, or read shards with the webdataset library.
#
# Output seen (a shard of seven samples; the starts of its clips):
#   webdataset                       [0, 1, 2, 3, 4, 5.75, 6.75]
#   datasets, streamed               [0, 1, 2, 3, 4, 5, 6]
#   datasets, not streamed           [0, 1, 2, 3, 4, 5, 6]
#   datasets, features= float64      [0.0, 1.0, 2.0, 3.0, 4.0, 5.75, 6.75]
#   datasets, JSON lines             [0.0, 1.0, 2.0, 3.0, 4.0, 5.75, 6.75]
#   parts of the last sample         webdataset: json, note.txt, txt  datasets: json, txt
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 \
    webdataset==1.0.2 numpy==2.4.6
HF_HOME="$work/cache" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - "$work" 2> "$work/log" <<'EOF'
import io
import json
import sys
import tarfile
from typing import Any

import datasets
import webdataset

work = sys.argv[1]
STARTS = [0, 1, 2, 3, 4, 5.75, 6.75]
shard, lines = f"{work}/shard.tar", f"{work}/rows.jsonl"
with tarfile.open(shard, "w") as tar, open(lines, "w") as rows:
    for number, start in enumerate(STARTS):
        text = json.dumps({"start": start})
        rows.write(text + "\n")
        parts = {"json": text, "txt": "a caption"}
        if number == len(STARTS) - 1:
            parts["note.txt"] = "only here"
        for extension, content in parts.items():
            entry = tarfile.TarInfo(f"clip_{number}.{extension}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content.encode()))


def load(form: str, path: str, **options: Any) -> list[dict[str, Any]]:
    return list(datasets.load_dataset(form, data_files={"train": path}, split="train", **options))


def names(sample: dict[str, Any]) -> str:
    return ", ".join(sorted(name for name in sample if not name.startswith("__")))


float64, string = datasets.Value("float64"), datasets.Value("string")
features = datasets.Features({"json": {"start": float64}, "txt": string, "__key__": string, "__url__": string})
by_library = list(webdataset.WebDataset(shard, shardshuffle=False).decode())
samples = {
    "webdataset": by_library,
    "datasets, streamed": load("webdataset", shard, streaming=True),
    "datasets, not streamed": load("webdataset", shard),
    "datasets, features= float64": load("webdataset", shard, features=features),
}
starts = {name: [sample["json"]["start"] for sample in found] for name, found in samples.items()}
starts["datasets, JSON lines"] = [row["start"] for row in load("json", lines)]
for name, values in starts.items():
    print(f"{name:<32} {values}")
parts = [names(found[-1]) for found in (by_library, samples["datasets, streamed"])]
print(f"{'parts of the last sample':<32} webdataset: {parts[0]}  datasets: {parts[1]}")
whole = [int(start) for start in STARTS]
read, streamed, stored, typed, from_lines = starts.values()
cut = read == typed == from_lines == STARTS and streamed == stored == whole
as_described = cut and parts == ["json, note.txt, txt", "json, txt"]
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
