"""What can be said of the page's looks without a browser."""

from __future__ import annotations

import re

import pytest

from lavila.demo.server import read_assets

READ = (  # (text, ground): names of colours that lie on each other
    ("ink", "paper"),
    ("ink", "plate"),
    ("ink", "raised"),
    ("ink", "wash"),
    ("quiet", "paper"),
    ("quiet", "plate"),
    ("quiet", "raised"),
    ("mark", "paper"),
    ("mark", "wash"),
    ("mark-ink", "mark"),
)
LEAST = 4.5  # of WCAG 2.2, 1.4.3 (AA), for text of this size


def palettes() -> dict[str, dict[str, str]]:
    css = read_assets()["style.css"].decode()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    found = {"light": dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light))}
    return found | {"dark": found["light"] | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", dark))}


def luminance(colour: str) -> float:
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(theme: str) -> None:
    colours = palettes()[theme]
    for text, ground in READ:
        brighter, darker = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        assert (brighter + 0.05) / (darker + 0.05) >= LEAST, (text, ground)
