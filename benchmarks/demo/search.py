"""How long a sentence takes among very many moments, from the request to the JSON, and what memory the index takes.

    python -m benchmarks.demo.search [--moments 1000000] [--dimensions 256]

The server, the text tower and the index are real; the vectors are random, and neighbours alike, as windows that overlap
are. Each request has another sentence, so none is answered from the cache of sentences.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import torch
from safetensors.numpy import save_file

from benchmarks import common
from benchmarks.common import fill_docs, machine
from benchmarks.demo.page import served
from lavila.demo.index import VECTORS, IndexedVideo, IndexSettings, open_index, write_moments
from lavila.demo.search import Searcher
from lavila.engine.command_line import compute_the_same_bits, leave_cores_to_others
from lavila.models.dual_encoder import ClipDualEncoder
from lavila.models.text_tower import ClipTextConfig
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from lavila.tasks import TaskOptions, TextOptions
from lavila.tasks.dual_encoders import Encoders

MOMENTS, DIMENSIONS, QUERIES, LIMIT = 1_000_000, 256, 40, 48
VIDEO_MOMENTS = 1800  # half an hour, one moment a second
MUST_MS, MUST_MEMORY = 60.0, 1.2


def write_index(folder: Path, *, moments: int, dimensions: int) -> None:
    """An index of videos of half an hour."""
    (folder / VECTORS).mkdir(parents=True)
    random = np.random.default_rng(0)
    videos, times = [], []
    for first in range(0, moments, VIDEO_MOMENTS):
        count = min(VIDEO_MOMENTS, moments - first)
        scenes = np.repeat(random.standard_normal((count // 20 + 1, dimensions), np.float32), 20, axis=0)[:count]
        vectors = scenes + 0.5 * random.standard_normal((count, dimensions), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        name = f"{first // VIDEO_MOMENTS:04d}.mp4"
        save_file({"vectors": vectors.astype(np.float16)}, folder / VECTORS / f"{name}.safetensors")
        starts = np.arange(count, dtype=np.float64)
        times.append((starts, starts + 2))
        entry = IndexedVideo(
            name=name, path=f"/videos/{name}", duration=count + 1, fps=30, width=640, height=360, size=1, mtime_ns=1,
            moments=count, file=f"{name}.safetensors",
        )  # fmt: skip
        videos.append(entry)
    settings = IndexSettings(window=2.0, every=1.0, model="random", facts={"dimensions": dimensions})
    write_moments(folder, settings, videos, times)


def text_encoder(dimensions: int) -> Any:
    """A CLIP text tower of the published size, with random weights: a sentence -> float32 [D]."""
    torch.manual_seed(0)
    tower = TimeSformerConfig(image_size=32, patch_size=16, width=32, depth=1, heads=2, num_frames=2)
    model = ClipDualEncoder(TimeSformer(tower), text=ClipTextConfig(), embed_dim=dimensions).eval()
    encoders = Encoders(model, TaskOptions(text=TextOptions(kind="clip", context=77)))

    def encode(sentence: str) -> Any:
        with torch.inference_mode():
            return encoders.texts([sentence])[0].numpy()

    return encode


def resident_bytes() -> int:
    """The memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def asked(url: str, sentence: str) -> float:
    """Milliseconds from the request of a search until its JSON is there."""
    address = f"{url}api/search?{urlencode({'q': sentence, 'limit': LIMIT})}"
    began = time.perf_counter()
    with urlopen(address, timeout=60) as answer:
        data = answer.read()
    spent = 1000 * (time.perf_counter() - began)
    assert json.loads(data)["hits"]
    return spent


def measure(*, moments: int = MOMENTS, dimensions: int = DIMENSIONS, queries: int = QUERIES) -> dict[str, Any]:
    """The figures."""
    encode = text_encoder(dimensions)
    encode("warm up")
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder), moments=moments, dimensions=dimensions)
        before = resident_bytes()
        began = time.perf_counter()
        searcher = Searcher(open_index(folder), encode)
        opened = time.perf_counter() - began
        with served(searcher, Path(folder) / "made") as url:
            asked(url, "warm up the server")  # imports, and starts threads
            cpu = time.process_time()
            whole = [asked(url, f"somebody does thing number {number} in a kitchen") for number in range(queries)]
            cpu = time.process_time() - cpu
        memory = resident_bytes() - before
    alone = []
    for number in range(queries):
        began = time.perf_counter()
        encode(f"moment number {number} of somebody who does something")
        alone.append(1000 * (time.perf_counter() - began))
    return {
        "moments": moments,
        "dimensions": dimensions,
        "hits": LIMIT,
        "open_seconds": opened,
        "milliseconds": statistics.median(whole),
        "slowest_milliseconds": max(whole),
        "cpu_milliseconds": 1000 * cpu / queries,
        "text_tower_milliseconds": statistics.median(alone),
        "memory_bytes": memory,
        "memory_of_vectors": memory / (moments * dimensions * 2),
        "goals": {"milliseconds": MUST_MS, "memory_of_vectors": MUST_MEMORY},
    }


def table(found: dict[str, Any]) -> str:
    """The Markdown of docs/SEARCH.md."""
    about = found["machine"]
    return "\n".join(
        [
            f"`python -m benchmarks.demo.search`, {found['moments']:,} moments of {found['dimensions']} dimensions, "
            f"{found['hits']} hits; {about['cores']} cores of {about['processor']}; medians.",
            "",
            "| | measured | must |",
            "| --- | --- | --- |",
            f"| from the request to the JSON | {found['milliseconds']:.0f} ms (of which the text tower "
            f"{found['text_tower_milliseconds']:.0f}; CPU time {found['cpu_milliseconds']:.0f}) | {MUST_MS:.0f} ms |",
            f"| memory of the index | {found['memory_of_vectors']:.2f} times its vectors | {MUST_MEMORY} times |",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=MOMENTS, metavar="N", help="of the index (%(default)s)")
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS, metavar="D", help="of a vector (%(default)s)")
    args = parser.parse_args()
    if "OMP_WAIT_POLICY" not in os.environ:  # as tools/demo.py: settings that PyTorch reads when it is imported
        leave_cores_to_others()
        compute_the_same_bits()
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.demo.search", *sys.argv[1:]])
    found = {"machine": machine("torch", "numba"), **measure(moments=args.moments, dimensions=args.dimensions)}
    print(json.dumps(found, indent=1))
    if (args.moments, args.dimensions) == (MOMENTS, DIMENSIONS):
        (common.RESULTS / "demo_search.json").write_text(json.dumps(found, indent=1) + "\n")
        fill_docs("demo-search", table(found), common.ROOT / "docs/SEARCH.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
