"""The table on which the choice of a codec rests follows from the results of two benchmarks."""

from __future__ import annotations

import pytest

from benchmarks import codecs


def row(name: str, size: float, ssim: float) -> dict[str, object]:
    codec = name.replace("*", "").split()[0]
    times = {"decode_sixteen_ms": 10.0, "decode_ms_per_second": 5.0}
    return {"name": name, "codec": codec, "bytes_per_second": size, "ssim": ssim, **times}


ENCODING = {
    "rows": [
        row("vp9 crf 28", 400.0, 0.98),
        row("**vp9 crf 36** (default)", 100.0, 0.96),
        row("**h264 crf 23**", 200.0, 0.97),
        row("**hevc crf 25**", 150.0, 0.97),
        row("**av1 crf 35**", 100.0, 0.97),
        row("vp9 gop 4", 9999.0, 0.97),
    ]
}
PICTURES = {"vp9": 87.0, "h264": 26.0, "hevc": 26.0, "av1": 70.0}
STREAMS = {
    "rows": [
        {"codec": codec, "use": use, "reduced": {"pictures": count}}
        for codec, count in PICTURES.items()
        for use in codecs.USES
    ]
}


def test_bytes_are_compared_at_equal_quality() -> None:
    assert codecs.bytes_at(ENCODING["rows"], "vp9", 0.97) == pytest.approx(200.0)  # between 100 and 400 by logarithm
    assert codecs.bytes_at(ENCODING["rows"], "vp9", 0.96) == pytest.approx(100.0)


def test_the_table_reckons_the_time_of_the_chip() -> None:
    lines = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")
        for line in codecs.table(ENCODING, STREAMS).splitlines()
    }
    assert lines["h264"][1] == "1.00" and lines["h264"][4] == "1.00"
    assert lines["hevc"][1] == "0.75" and float(lines["hevc"][4]) == pytest.approx(1002 / 1795, abs=0.01)
    assert float(lines["vp9"][4]) == pytest.approx(87 / 26, abs=0.01)
    assert lines["av1"][4] == "-", "DALI cannot count its frames"
