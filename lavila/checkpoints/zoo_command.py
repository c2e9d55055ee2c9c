"""The zoo as text, and the download of its checkpoints.

python -m lavila.checkpoints.zoo_command                    print the table
python -m lavila.checkpoints.zoo_command NAME [NAME ...]    download them to $LAVILA_HOME/checkpoints (~/.cache/lavila)
python -m lavila.checkpoints.zoo_command --markdown         print the table of docs/MODEL_ZOO.md
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.zoo import ZOO, Score, ZooModel, fetch

ZERO_SHOT = {"egovlp": "egovlp", "lavila_tsf_b": "tsf_b", "lavila_tsf_l": "tsf_l"}  # name begins so -> recipe ends so
FRAMES = {"ek100_mir": 4, "egomcq": 4, "egtea": 16, "charades_ego": 16}  # frames of a zero-shot recipe


def markdown() -> str:
    """One line for each published result, and for each checkpoint without one."""
    lines = [
        "| checkpoint | frames, pixels | published result | here |",
        "| --- | --- | --- | --- |",
    ]
    for model in ZOO.values():
        facts = f"{model.frames}, {model.image_size}"
        lines += [
            f"| `{model.name}` | {facts} | {_result(score)} | {_command(model, score)} |" for score in model.scores
        ]
        if not model.scores:
            use = f'`load_model("{model.name}")`'
            lines.append(f"| `{model.name}` | {facts} | none; {model.note} | {use} |")
    return "\n".join(lines)


def _result(score: Score) -> str:
    values = ", ".join(f"{metric} {value}" for metric, value in score.values.items())
    return f"{score.task}, {score.how}, {score.frames} frames: {values}"


def commands() -> dict[tuple[str, str, int], tuple[str, ...]]:
    """(checkpoint, task, frames) of each published score -> recipe that repeats it, and settings.

    A fine-tuned checkpoint and a narrator have a recipe with their name.
    """
    found: dict[tuple[str, str, int], tuple[str, ...]] = {}
    for model in ZOO.values():
        for score in model.scores:
            if score.how == "zero-shot":
                ending = next(ending for start, ending in ZERO_SHOT.items() if model.name.startswith(start))
                frames = (f"data.frames={score.frames}",) if score.frames != FRAMES[score.task] else ()
                found[model.name, score.task, score.frames] = (f"{score.task}_zeroshot_{ending}", *frames)
            else:
                found[model.name, score.task, score.frames] = (model.name, f"checkpoint={model.name}")
    return found


def _command(model: ZooModel, score: Score) -> str:
    parts = commands()[model.name, score.task, score.frames]
    return f"`torchrun --nproc-per-node 8 evaluate.py --config {' '.join(parts)}`"


def table() -> str:
    """The zoo as text, one line for each checkpoint."""
    rows = [("name", "frames", "pixels", "MD5", "here", "model", "published scores")]
    for model in ZOO.values():
        scores = "; ".join(f"{s.task} {s.how} {s.frames}f {_values(s)}" for s in model.scores)
        here = "yes" if model.file.is_file() else "no"
        kind = f"{model.model} {'+'.join(map(str, model.num_classes))}".strip()
        rows.append((model.name, str(model.frames), str(model.image_size), model.md5 or "-", here, kind, scores))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[6]]) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _values(score: Score) -> str:
    return ", ".join(f"{metric} {value}" for metric, value in score.values.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table or download checkpoints. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m lavila.checkpoints.zoo_command",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="checkpoints to download")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/MODEL_ZOO.md")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in ZOO]:
        parser.error(f"not in the zoo: {', '.join(unknown)}; known: {', '.join(ZOO)}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        for name in given.names:
            sys.stdout.write(f"{_fetch_showing(ZOO[name])}\n")
    except CheckpointError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if not given.names:
        sys.stdout.write((markdown() if given.markdown else table()) + "\n")
    return 0


def _fetch_showing(model: ZooModel) -> Path:
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, unit_divisor=1024, desc=model.name, dynamic_ncols=True) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return fetch(model, on_progress=show)


if __name__ == "__main__":
    sys.exit(main())
