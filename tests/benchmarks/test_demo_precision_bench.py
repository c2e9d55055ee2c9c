"""Which hits the benchmark of precision counts as right."""

from __future__ import annotations

from pathlib import Path

from benchmarks.demo.precision import is_right, read_stretches
from lavila.demo.search import Hit


def test_a_hit_is_right_if_its_middle_lies_in_a_stretch_of_its_sentence(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    rows = [f"v{number},00:00:{number:02d}.50,00:01:{number:02d}.50,the camera pans" for number in range(5)]
    rows += ["v0,00:00:00.00,00:00:02.00,too seldom"]
    file.write_text("\n".join(["video_id,start_timestamp,stop_timestamp,narration", *rows]))
    stretches = read_stretches(file)
    assert list(stretches) == ["the camera pans"]
    assert stretches["the camera pans"][3] == ("v3.MP4", 3.5, 63.5)
    for start, video, right in ((2.6, "v3.MP4", True), (2.4, "v3.MP4", False), (3.0, "v9.MP4", False)):
        hit = Hit(video=video, start=start, stop=start + 2, score=0.5)
        assert is_right(hit, stretches["the camera pans"]) == right
