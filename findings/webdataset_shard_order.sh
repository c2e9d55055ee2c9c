#!/usr/bin/env bash
# webdataset reads the shards in the same order in every epoch, with shuffling on and no seed given.
#
# Versions: webdataset 1.0.2, torch 2.14.1 (a plain pip install: several GB).
# A good guess: shardshuffle=N shuffles the shards anew in each pass, as a DataLoader's shuffle=True does. A seed would
#   fix the first order and what follows from it, not make all orders one.
# What happens: one order is drawn when the object is made, and each pass repeats it. .shuffle(1000) behind it mixes
#   only neighbours, so a clip meets the same few shards in its batches in all epochs. detshuffle=True has an order for
#   each epoch, but counts epochs inside the process that reads. DataLoader workers start anew for each epoch, so with
#   workers it repeats itself too. Without workers, where one tries it out, it does not.
# Source: webdataset/compat.py, WebDataset.__init__ draws self.seed and hands it to filters.shuffle;
#   webdataset/filters.py, _shuffle makes random.Random(seed) in each pass, and detshuffle.run counts in its process.
# Remedy: detshuffle=True with persistent_workers=True; or a list of shards that you shuffle for each epoch, with
#   shardshuffle=False; or resampled=True, which draws shards anew. Pull request 502 of webdataset, open in 2026,
#   would mend the default.
#
# Output seen (the first five of 16 shards in three epochs; without a seed they change from run to run):
#   shardshuffle=16                        [8, 6, 3, 7, 11]  [8, 6, 3, 7, 11]  [8, 6, 3, 7, 11]
#   shardshuffle=16, 2 workers             [14, 15, 12, 13, 6]  [14, 15, 12, 13, 6]  [14, 15, 12, 13, 6]
#   detshuffle=True                        [4, 9, 13, 12, 1]  [1, 15, 14, 5, 2]  [7, 9, 8, 2, 5]
#   detshuffle=True, 2 workers             [4, 5, 8, 9, 0]  [4, 5, 8, 9, 0]  [4, 5, 8, 9, 0]
#   detshuffle=True, 2 persistent workers  [4, 5, 8, 9, 0]  [0, 1, 14, 15, 12]  [6, 7, 8, 9, 12]
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check webdataset==1.0.2 torch==2.14.1 numpy==2.4.6
"$work/venv/bin/python" -W ignore - "$work" <<'EOF'
import io
import sys
import tarfile
from typing import Any

import webdataset
from torch.utils.data import DataLoader

SHARDS, EPOCHS, SHOWN = 16, 3, 5
for shard in range(SHARDS):
    with tarfile.open(f"{sys.argv[1]}/{shard:02}.tar", "w") as tar:
        for sample in range(4):
            entry = tarfile.TarInfo(f"{shard:02}_{sample}.txt")
            entry.size = 1
            tar.addfile(entry, io.BytesIO(b"a"))
shards = f"{sys.argv[1]}/{{00..{SHARDS - 1}}}.tar"


def key(sample: dict[str, Any]) -> str:
    return sample["__key__"]


def orders(workers: int, persistent: bool = False, **options: Any) -> list[list[int]]:
    """For each epoch, the shards in the order in which they come."""
    dataset = webdataset.WebDataset(shards, shardshuffle=SHARDS, **options).map(key)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=persistent)
    return [list(dict.fromkeys(int(name.split("_")[0]) for name in loader)) for _ in range(EPOCHS)]


found = {
    "shardshuffle=16": orders(0),
    "shardshuffle=16, 2 workers": orders(2),
    "detshuffle=True": orders(0, detshuffle=True, seed=1),
    "detshuffle=True, 2 workers": orders(2, detshuffle=True, seed=1),
    "detshuffle=True, 2 persistent workers": orders(2, True, detshuffle=True, seed=1),
}
for name, epochs in found.items():
    assert all(sorted(epoch) == list(range(SHARDS)) for epoch in epochs)
    print(f"{name:<38} {'  '.join(str(epoch[:SHOWN]) for epoch in epochs)}")
repeated = [epochs[0] == epochs[1] == epochs[2] for epochs in found.values()]
as_described = repeated == [True, True, False, True, False]
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
