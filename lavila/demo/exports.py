"""Hits as files: for a spreadsheet, for a program, and for tools/shard_videos.py."""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict

from lavila.demo.search import Hit

COLUMNS = ("video", "start", "stop", "score")


def to_csv(hits: Sequence[Hit]) -> str:
    """A line of names, and a line for each hit: video, start and stop in seconds, score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((hit.video, f"{hit.start:.3f}", f"{hit.stop:.3f}", f"{hit.score:.6f}") for hit in hits)
    return text.getvalue()


def to_json(hits: Sequence[Hit]) -> str:
    """A list of objects with the fields of `Hit`."""
    return json.dumps([asdict(hit) for hit in hits], ensure_ascii=False, indent=1)


def to_annotations(hits: Sequence[Hit], text: str) -> bytes:
    """A pickle in the form of Ego4D's, in which `text` is the narration of each hit.

    `tools/shard_videos.py --dataset ego4d --annotations FILE --videos DIR` makes clips of it; DIR is `Index.root`.
    """
    entries = [(hit.video.removesuffix(".mp4"), hit.start, hit.stop, text) for hit in hits]
    return pickle.dumps(entries, protocol=4)
