"""Rephrasing a table: which paraphrases are kept, and that a run continues after a kill at any moment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lavila.ingest.rephrasing import Rephrasing, about_run, chosen, rephrase, write_rephrased
from lavila.journal import Journal, JournalError
from lavila.models.generation import GenerationConfig, Generators
from lavila.models.paraphraser import load_paraphraser
from lavila.shards.captions import read_captions
from tests.models.tiny_paraphraser import save_paraphraser

CLIPS = {
    "a": ["#C C picks a cup", "C lifts a cup"],
    "b": ["#C C opens the door."],
    "c": ["", " "],
    "d": ["same"],
    "e": ["#O A man sits down", "x", "y"],
}
TABLE = pa.table({"clip_id": list(CLIPS), "narrations": list(CLIPS.values())})


def answers(
    captions: Sequence[str], config: GenerationConfig, *, generator: Generators = None
) -> list[list[tuple[str, float]]]:
    """Stands in for a paraphraser; knows no other words for "same"."""
    assert isinstance(generator, Sequence) and len(generator) == len(captions)
    return [
        [(text, 1.0)] if text == "same" else [(f"{text}, or so!", 0.5), (f"maybe {text}", 1.5)] for text in captions
    ]


def run(folder: Path, *, batch_size: int = 2, stop_after: int | None = None) -> Journal:
    journal = Journal(folder / "journal", settings={"settings": 1})
    for batches, _ in enumerate(rephrase(TABLE, answers, journal, Rephrasing(), batch_size=batch_size), start=1):
        if batches == stop_after:
            break
    return journal


def rows(path: Path) -> dict[str, tuple[list[str], list[float]]]:
    return {row["clip_id"]: (row["narrations"], row["scores"]) for row in read_captions(path).to_pylist()}


def test_a_table_of_captions_becomes_a_table_of_paraphrases(tmp_path: Path) -> None:
    journal = run(tmp_path)
    assert journal.done == 5
    assert write_rephrased(tmp_path / "out.parquet", journal) == (3, 2)
    found = rows(tmp_path / "out.parquet")
    assert list(found) == ["a", "b", "e"]
    assert found["b"] == (["#C C opens the door or so", "#C maybe C opens the door"], [math.exp(0.5), math.exp(1.5)])
    assert len(found["a"][0]) == 4 and len(found["e"][0]) == 6
    assert set(read_captions(tmp_path / "out.parquet").column("source").to_pylist()) == {"rephrased"}


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_batch_size_changes_nothing(tmp_path: Path, batch_size: int) -> None:
    (tmp_path / "other").mkdir()
    wanted, found = run(tmp_path), run(tmp_path / "other", batch_size=batch_size)
    assert list(found.entries()) == list(wanted.entries())


def test_a_run_continues_after_a_kill_at_any_byte(tmp_path: Path) -> None:
    whole = run(tmp_path).path.read_bytes()
    for size in (*range(0, len(whole), 7), len(whole) - 1, len(whole)):
        (tmp_path / "journal").write_bytes(whole[:size])
        assert run(tmp_path).done == 5
        assert (tmp_path / "journal").read_bytes() == whole


def test_finished_clips_are_not_done_again(tmp_path: Path) -> None:
    assert run(tmp_path, stop_after=1).done == 1
    seen: list[str] = []

    def listening(captions: Sequence[str], *args: Any, **options: Any) -> list[list[tuple[str, float]]]:
        seen.extend(captions)
        return answers(captions, *args, **options)

    journal = Journal(tmp_path / "journal", settings={"settings": 1})
    assert sum(rephrase(TABLE, listening, journal, Rephrasing(), batch_size=2)) == 4
    assert seen == ["C opens the door.", "same", "A man sits down", "x", "y"]


def test_a_journal_of_other_settings_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "captions").write_text("x")
    about = about_run(tmp_path / "captions", "model", Rephrasing())
    Journal(tmp_path / "journal", settings=about).add([{"clip_id": "a", "narrations": ["b"], "scores": [1.0]}])
    assert Journal(tmp_path / "journal", settings=about).done == 1
    (tmp_path / "captions").write_text("y")
    for other, named in (
        (about_run(tmp_path / "captions", "model", Rephrasing()), "captions"),
        ({**about, "model": "another"}, "model"),
        ({**about, "settings": about_run(tmp_path / "captions", "model", Rephrasing(seed=1))["settings"]}, "settings"),
    ):
        with pytest.raises(JournalError, match=f"{named} was"):
            Journal(tmp_path / "journal", settings=other)
    assert Journal(tmp_path / "journal", settings=about).done == 1
    (tmp_path / "strange").write_text("no journal\n")
    with pytest.raises(JournalError, match="strange"):
        Journal(tmp_path / "strange", settings=about)
    assert (tmp_path / "strange").read_text() == "no journal\n"


def test_paraphrases_that_say_the_same_are_left_out() -> None:
    given = [
        ("C picks a cup.", 0.1),  # the caption
        ("C, takes the cup!", 0.2),
        ("c takes the cup", 0.3),  # again
        ("...", 0.4),
        ("the cup isn't left", 0.5),
        ("a half-full cup", 0.6),
        ("one too many", 0.7),
    ]
    kept = chosen("#c  C picks a cup", given, Rephrasing())
    assert kept == [("#c C takes the cup", 0.2), ("#c the cup isn't left", 0.5), ("#c a half-full cup", 0.6)]
    (first, *_) = chosen("C picks a cup", given, Rephrasing(punctuation=True, keep=1))
    assert first == ("C, takes the cup!", 0.2)


def test_a_caption_draws_the_same_words_whatever_the_batch_and_its_place(tmp_path: Path) -> None:
    paraphraser = load_paraphraser(save_paraphraser(tmp_path / "t5"))
    choice = GenerationConfig(num_return_sequences=4, top_p=0.9, max_length=8)
    found = []
    for number, (table, seed, batch_size) in enumerate([(TABLE, 0, 2), (TABLE.slice(1), 0, 100), (TABLE, 1, 2)]):
        journal = Journal(tmp_path / str(number), settings={})
        settings = Rephrasing(choice=choice, seed=seed)
        list(rephrase(table, paraphraser, journal, settings, batch_size=batch_size))
        found.append({entry["clip_id"]: entry["narrations"] for entry in journal.entries()})
    assert found[1] == {clip_id: texts for clip_id, texts in found[0].items() if clip_id != "a"}
    assert found[2]["e"] != found[0]["e"]


def test_the_defaults_are_the_published_settings() -> None:
    choice = Rephrasing().choice
    assert (choice.num_beams, choice.num_beam_groups, choice.diversity_penalty) == (20, 20, 0.7)
    assert (Rephrasing().keep, Rephrasing().punctuation) == (3, False)
    assert not replace(choice).samples
