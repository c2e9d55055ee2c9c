"""A contact sheet: clips spread over a shard set, each as a strip of frames with its words underneath."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from lavila.data.host.decode import DecodeError, decode_frames
from lavila.files import whole_path
from lavila.inspection.videos import readable_frames
from lavila.shards.format import ShardSetError
from lavila.shards.reader import ShardSet

FrameArray = npt.NDArray[np.uint8]
"""A decoded frame, [H, W, 3] RGB."""

FRAMES = 4  # number of frames of a strip
BOX = (208, 117)  # width and height of the place of a frame, pixels
GAP, PADDING, MARGIN = 4, 12, 24  # pixels between frames, inside a card, around cards
TITLE, TEXT, HEADER = 19, 18, 26  # pixels from one line of text to the next
TEXT_LINES = 3  # one line of labels, two lines of the narration
CARD = (
    FRAMES * BOX[0] + (FRAMES - 1) * GAP + 2 * PADDING,
    2 * PADDING + TITLE + 6 + BOX[1] + 8 + TEXT_LINES * TEXT,
)
HEAD = 2 * HEADER + MARGIN  # height of the sheet's head, pixels
PAPER, CARD_COLOUR, BOX_COLOUR = (236, 238, 241), (255, 255, 255), (24, 26, 30)
INK, FAINT, LABEL, ALARM = (28, 31, 36), (110, 116, 125), (20, 92, 158), (178, 34, 34)


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A clip as the sheet shows it."""

    title: str
    length: str
    labels: str
    narration: str
    pictures: list[FrameArray]  # FRAMES of them, or none
    problem: str  # the reason why there are none


def chosen_rows(shard_set: ShardSet, count: int) -> list[int]:
    """`count` rows spread evenly over the clips that are not in quarantine, or all of those if there are fewer."""
    usable = shard_set.usable_rows()
    count = min(count, len(usable))
    return [int(usable[(2 * i + 1) * len(usable) // (2 * count)]) for i in range(count)]


def read_strip(shard_set: ShardSet, row: int) -> Strip:
    """Decode the frames of a clip and collect its words."""
    clip = shard_set.clips.slice(row, 1).to_pylist()[0]
    frames = readable_frames(clip, shard_set.manifest)
    wanted = frames[[(2 * i + 1) * len(frames) // (2 * FRAMES) for i in range(FRAMES)]]
    distinct, places = np.unique(wanted, return_inverse=True)  # a clip of fewer than FRAMES frames shows some twice
    pictures, problem = [], ""
    try:
        data, numbers = shard_set.read_frames(row, distinct)
        decoded = decode_frames(data, numbers)
        pictures = [decoded[place] for place in places.tolist()]
    except (DecodeError, ShardSetError) as error:
        problem = str(error)
    narrations = clip["narrations"] or [""]
    more = f"  (+ {len(narrations) - 1} more)" if len(narrations) > 1 else ""
    return Strip(
        title=clip["clip_id"],
        length=f"{clip['num_frames'] / clip['fps']:.2f} s, {clip['num_frames']} frames",
        labels=label_text(clip, shard_set.classes),
        narration=printable(narrations[0]) + more,
        pictures=pictures,
        problem=problem,
    )


def label_text(row: dict[str, Any], classes: dict[str, list[str]]) -> str:
    """'verb take · noun plate': labels by the name of their class, or by its number if the manifest has no name."""

    def name(kind: str, index: int) -> str:
        names = classes.get(kind, [])
        return printable(names[index]) if 0 <= index < len(names) else f"#{index}"

    words = [f"{kind} {name(kind, row[kind])}" for kind in ("verb", "noun", "action") if row[kind] is not None]
    if row["labels"]:
        words.append("labels " + ", ".join(name("labels", index) for index in row["labels"]))
    return "  ·  ".join(words)


def printable(text: str) -> str:
    """A text without line breaks, tabs and characters that draw nothing."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))


def sheet_size(clips: int) -> tuple[int, int]:
    """Width and height of a sheet, pixels."""
    columns = _columns(clips)
    rows = -(-clips // columns)
    width = MARGIN + columns * (CARD[0] + MARGIN)
    return width, HEAD + MARGIN + rows * (CARD[1] + MARGIN)


def _columns(clips: int) -> int:
    return 1 if clips <= 3 else 2 if clips <= 40 else 3


def draw_sheet(shard_set: ShardSet, count: int) -> Image.Image:
    """The contact sheet of `count` clips."""
    rows = chosen_rows(shard_set, count)
    if not rows:
        raise ShardSetError(f"{shard_set.path}: every clip is in quarantine; there is nothing to show")
    sheet = Image.new("RGB", sheet_size(len(rows)), PAPER)
    draw, fonts = ImageDraw.Draw(sheet), _Fonts()
    manifest = shard_set.manifest
    facts = (
        f"{manifest['dataset']}, split {manifest['split']}, {shard_set.codec}: {len(rows)} of {len(shard_set):,} clips"
    )
    draw.text((MARGIN, MARGIN), _fitting(str(shard_set.path), fonts.head, sheet.width - 2 * MARGIN), INK, fonts.head)
    draw.text((MARGIN, MARGIN + HEADER), facts, FAINT, fonts.text)
    for place, row in enumerate(rows):
        down, right = divmod(place, _columns(len(rows)))
        corner = MARGIN + right * (CARD[0] + MARGIN), HEAD + MARGIN + down * (CARD[1] + MARGIN)
        _draw_strip(sheet, draw, fonts, corner, read_strip(shard_set, row))
    return sheet


class _Fonts:
    """DejaVu Sans from matplotlib. It has Latin, Greek, Cyrillic and more letters; others become boxes."""

    def __init__(self) -> None:
        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self.head = ImageFont.truetype(str(folder / "DejaVuSans-Bold.ttf"), 19)
        self.title = ImageFont.truetype(str(folder / "DejaVuSans-Bold.ttf"), 14)
        self.text = ImageFont.truetype(str(folder / "DejaVuSans.ttf"), 14)


def _draw_strip(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, fonts: _Fonts, corner: tuple[int, int], strip: Strip
) -> None:
    left, top = corner
    draw.rounded_rectangle((left, top, left + CARD[0] - 1, top + CARD[1] - 1), 6, CARD_COLOUR)
    left, top, width = left + PADDING, top + PADDING, CARD[0] - 2 * PADDING
    length = round(draw.textlength(strip.length, fonts.text))
    draw.text((left, top), _fitting(strip.title, fonts.title, width - length - 16), INK, fonts.title)
    draw.text((left + width - length, top), strip.length, FAINT, fonts.text)
    top += TITLE + 6
    for place in range(FRAMES):
        x = left + place * (BOX[0] + GAP)
        draw.rectangle((x, top, x + BOX[0] - 1, top + BOX[1] - 1), BOX_COLOUR)
        if strip.pictures:
            picture = letterboxed(strip.pictures[place])
            sheet.paste(picture, (x + (BOX[0] - picture.width) // 2, top + (BOX[1] - picture.height) // 2))
    top += BOX[1] + 8
    if strip.problem:
        lines = [
            ("cannot be decoded", ALARM),
            *((line, ALARM) for line in _wrapped(strip.problem, fonts.text, width, 2)),
        ]
    else:
        lines = [(_fitting(strip.labels, fonts.text, width), LABEL)] if strip.labels else []
        lines += [(line, INK) for line in _wrapped(strip.narration, fonts.text, width, 2)]
    for line, colour in lines:
        draw.text((left, top), line, colour, fonts.text)
        top += TEXT


def letterboxed(picture: FrameArray) -> Image.Image:
    """A frame of the same shape, as large as its place allows."""
    height, width = picture.shape[:2]
    scale = min(BOX[0] / width, BOX[1] / height)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or its beginning and an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """At most `lines` lines, broken between words. An ellipsis ends the last one if there is more text."""
    found: list[str] = []
    words = text.split(" ")
    while words and len(found) < lines - 1:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        found.append(_fitting(" ".join(words[:count]), font, width))
        words = words[count:]
    return [*found, _fitting(" ".join(words), font, width)] if words else found


def write_preview(shard_set: ShardSet, count: int, path: Path) -> tuple[int, int]:
    """Draw the sheet and write it as a PNG, whole or not at all. Returns its width and height in pixels."""
    sheet = draw_sheet(shard_set, count)
    with whole_path(path) as temporary:
        sheet.save(temporary, format="PNG")
    return sheet.size
