"""How long the demo's page takes to appear in headless Chromium, for a library of 1,000 videos.

    python -m benchmarks.demo.page

The server, its files and the browser are real. The index has random vectors, since what is measured comes before any
search. A visit has a fresh profile, so nothing is in a cache.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import uvicorn
from safetensors.numpy import save_file

from benchmarks.common import machine
from lavila.demo.index import VECTORS, IndexedVideo, IndexSettings, open_index, write_moments
from lavila.demo.library import make_library
from lavila.demo.search import Searcher
from lavila.demo.server import create_app
from lavila.demo.serving import listen
from lavila.demo.transcripts import Transcripts

VIDEOS, VISITS = 1000, 7
SECONDS, FPS, WIDTH, HEIGHT = 10, 10, 320, 180
MOMENTS, DIMENSIONS = 10, 256


def write_video(path: Path) -> Path:
    """Ten seconds of a pattern that moves."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(SECONDS * FPS):
            waves = [np.sin((x + 4 * number) / 30 + shift) * np.cos(y / 25) for shift in (0, 1, 2)]
            picture: Any = av.VideoFrame.from_ndarray((128 + 90 * np.stack(waves, 2)).astype(np.uint8), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, FPS)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


def write_library(folder: Path, videos: int) -> Path:
    """An index of that many videos, and the videos. Returns the folder of the index."""
    index = folder / "index"
    (index / VECTORS).mkdir(parents=True)
    first = write_video(folder / "first.mp4")
    random = np.random.default_rng(0)
    starts = np.arange(MOMENTS, dtype=np.float64)
    entries = []
    for number in range(videos):
        path = Path(shutil.copyfile(first, folder / f"day {number // 50:02d}, walk {number:04d}.mp4"))
        vectors = random.standard_normal((MOMENTS, DIMENSIONS)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        file = f"{number:04d}.safetensors"
        save_file({"vectors": vectors.astype(np.float16)}, index / VECTORS / file)
        entry = IndexedVideo(
            name=path.name,
            path=str(path.absolute()),
            duration=SECONDS,
            fps=FPS,
            width=WIDTH,
            height=HEIGHT,
            size=path.stat().st_size,
            mtime_ns=path.stat().st_mtime_ns,
            moments=MOMENTS,
            file=file,
        )
        entries.append(entry)
    settings = IndexSettings(window=2.0, every=1.0, model="random", facts={"dimensions": DIMENSIONS})
    write_moments(index, settings, entries, [(starts, starts + 2)] * videos)
    return index


@contextmanager
def served(searcher: Searcher, made: Path) -> Iterator[str]:
    """The address of the page of an index. made: a folder for what is made of its videos."""
    listening = listen("127.0.0.1", 0)
    library = make_library(searcher, Transcripts(made, None), cache=made)
    server = uvicorn.Server(uvicorn.Config(create_app(library, listening.access), log_level="error"))
    listening.socket.listen()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening.socket]})
    thread.start()
    try:
        yield listening.url
    finally:
        server.should_exit = True
        thread.join()


def visits(url: str, *, times: int, videos: int) -> dict[str, list[float]]:
    """Milliseconds from the request to the first paint, and until all videos are listed, of each visit."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    found: dict[str, list[float]] = {"first_paint_ms": [], "all_videos_listed_ms": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(times):
            context = browser.new_context(viewport={"width": 1280, "height": 800})
            page = context.new_page()
            page.goto(url)
            page.wait_for_selector("body.ready")
            assert page.locator("#cards .card").count() == videos
            paint, listed = page.evaluate(
                "() => [performance.getEntriesByName('first-contentful-paint')[0].startTime,"
                " performance.getEntriesByName('listed')[0].startTime]"
            )
            found["first_paint_ms"].append(round(paint, 1))
            found["all_videos_listed_ms"].append(round(listed, 1))
            context.close()
        browser.close()
    return found


def measure(*, videos: int = VIDEOS, times: int = VISITS) -> dict[str, Any]:
    """The figures: medians of the visits, and each of them."""

    def encode(words: str) -> Any:
        raise AssertionError(f"nobody searches for {words}")

    with tempfile.TemporaryDirectory() as folder:
        index = write_library(Path(folder), videos)
        with served(Searcher(open_index(index), encode), index / "made") as url:
            found = visits(url, times=times, videos=videos)
    medians: dict[str, Any] = {name: statistics.median(values) for name, values in found.items()}
    return {"videos": videos, **medians, "visits": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=VIDEOS, metavar="N", help="of the library (%(default)s)")
    parser.add_argument("--visits", type=int, default=VISITS, metavar="N", help="%(default)s")
    args = parser.parse_args()
    found = measure(videos=args.videos, times=args.visits)
    print(json.dumps({"machine": machine("playwright", "starlette", "uvicorn"), **found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
