"""The benchmark of searches, small."""

from __future__ import annotations

from benchmarks.demo.search import measure, table


def test_a_small_index_is_measured() -> None:
    found = measure(moments=4000, dimensions=16, queries=3)
    assert found["moments"] == 4000 and found["milliseconds"] > 0 and found["text_tower_milliseconds"] > 0
    assert "4,000 moments" in table(found | {"machine": {"cores": 2, "processor": "any"}})
