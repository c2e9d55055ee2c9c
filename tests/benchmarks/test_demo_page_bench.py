from __future__ import annotations

import shutil

import pytest

from benchmarks.demo.page import measure


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here: apt-get install chromium")
def test_a_small_library_is_measured() -> None:
    pytest.importorskip("playwright")
    found = measure(videos=12, times=2)
    assert len(found["visits"]["first_paint_ms"]) == 2
    assert found["first_paint_ms"] > 0 and found["all_videos_listed_ms"] > 0
