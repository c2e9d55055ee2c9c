"""Scores of captions: against pycocoevalcap's own way, with captions that break it, and with and without Java."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lavila.metrics.captioning import CaptionScoreError, caption_scores, clean_caption, missing, scores_of_sets

CANDIDATES = {"a": "picks a cup", "b": "puts the knife down.", "c": "opens a door", "d": "the man's dog runs, fast!"}
REFERENCES = {
    "a": ["picks up the cup", "takes a cup"],
    "b": ["puts down a knife"],
    "c": ["opens the door"],
    "d": ["a man's dog runs", "the dog is running"],
}
# As pycocoevalcap's PTBTokenizer and scorers give them for these captions (version 1.2, OpenJDK 17).
METEOR, CIDER, ROUGE = 0.40752402521396364, 2.6531862818253007, 0.6431818181818181
BLEU = (0.8124999999492188, 0.5204164998285863, 0.40758110383893364, 0.36069949394579437)
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")


@pytest.fixture
def without_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@needs_java
def test_all_scores_are_those_of_pycocoevalcap() -> None:
    """Takes some 13 seconds, in which METEOR reads its paraphrases."""
    assert missing() is None
    # Marks do not count: pycocoevalcap was given the captions without them.
    marked = {clip: f"#C C {text}" for clip, text in CANDIDATES.items()}
    # The other set comes first: METEOR must not mix the two.
    sets = scores_of_sets({"same": dict.fromkeys(marked, "opens a door"), "marked": marked}, REFERENCES)
    found = sets["marked"]
    assert 0 < sets["same"]["METEOR"] < METEOR
    wanted = {"METEOR": METEOR, "CIDEr": CIDER, "ROUGE_L": ROUGE, "BLEU_1": BLEU[0], "BLEU_2": BLEU[1]}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)
    assert list(found) == ["CIDEr", "METEOR", "ROUGE_L", "BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4"]


@pytest.mark.usefixtures("without_java")
def test_several_sets_are_scored_as_each_alone() -> None:
    references = {"a": ["opens the door", "a door opens"], "b": ["washes a cup"], "c": ["#C C cuts the bread"]}
    sets = {
        "good": {"a": "opens a door", "b": "washes the cup", "c": "cuts bread"},
        "same": dict.fromkeys(references, "washes a cup"),
    }
    found = scores_of_sets(sets, references)
    assert found == {name: caption_scores(captions, references) for name, captions in sets.items()}
    assert found["good"]["CIDEr"] > found["same"]["CIDEr"] > 0


@pytest.mark.usefixtures("without_java")
def test_without_java_the_other_scores_stay_and_the_report_says_so() -> None:
    found = caption_scores(CANDIDATES, REFERENCES)
    # For these captions the plain tokenizer finds the words of the PTB tokenizer.
    assert found == pytest.approx(
        {"CIDEr": CIDER, "ROUGE_L": ROUGE, **{f"BLEU_{n}": value for n, value in enumerate(BLEU, start=1)}}, rel=1e-6
    )
    said = missing()
    assert said is not None
    for word in ("Java", "METEOR", "PTB", "default-jre"):
        assert word in said


@pytest.mark.usefixtures("without_java")
@pytest.mark.parametrize("character", ["\r", "\v", "\f", "\n", "\x1c", "\x85", "\u2028", " ||| ", "|||"])
def test_no_character_in_a_caption_moves_the_others(character: str) -> None:
    references = REFERENCES | {"a": [f"picks up{character}the cup", "takes a cup"]}
    candidates = CANDIDATES | {"b": f"puts the{character}knife down."}
    assert caption_scores(candidates, references) == caption_scores(CANDIDATES, REFERENCES)


@needs_java
def test_the_ptb_tokenizer_keeps_its_lines_and_its_package_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    from pycocoevalcap.tokenizer import ptbtokenizer

    from lavila.metrics.captioning import _ptb_tokens

    monkeypatch.setenv("LC_ALL", "C")
    before = sorted(Path(ptbtokenizer.__file__).parent.iterdir())
    found = _ptb_tokens(["Picks (up) a café, don't!", "", " ", "...", "the man's"])
    assert found == ["picks -lrb- up -rrb- a café do n't", "", "", "", "the man 's"]
    assert sorted(Path(ptbtokenizer.__file__).parent.iterdir()) == before


def test_marks_of_persons_are_no_words() -> None:
    assert clean_caption("#C C picks a cup") == clean_caption("#c  c picks\ta cup") == "picks a cup"
    assert clean_caption("#O A man sits") == "A man sits"
    assert clean_caption("#C looks at #O") == "looks at"
    assert clean_caption("C picks #unsure, #Cup") == "C picks #unsure, #Cup"


@pytest.mark.parametrize(
    ("candidates", "references", "named"),
    [
        ({}, {}, "no captions"),
        ({"a": "x", "b": "y"}, {"a": ["x"]}, "'b'"),
        ({"a": "x"}, {"a": ["x"], "b": ["y"]}, "'b'"),
        ({"a": "x", "b": "y"}, {"a": ["x"], "b": []}, "'b'"),
        ({"a": "x", "b": "y"}, {"a": ["x"], "b": ["#C C", "..."]}, "'b'"),
    ],
)
@pytest.mark.usefixtures("without_java")
def test_clips_that_cannot_be_scored_are_named(
    candidates: dict[str, str], references: dict[str, list[str]], named: str
) -> None:
    with pytest.raises(CaptionScoreError, match=named):
        caption_scores(candidates, references)


@pytest.mark.usefixtures("without_java")
def test_a_caption_without_words_scores_nothing_and_keeps_its_clip() -> None:
    one, none = ({**CANDIDATES, "c": text} for text in ("opens a door", "..."))
    assert caption_scores(none, REFERENCES)["ROUGE_L"] < caption_scores(one, REFERENCES)["ROUGE_L"]
    # A reference without words is left out, since it would equal a caption without words.
    references = REFERENCES | {"c": ["opens the door", "!"]}
    assert caption_scores(none, references) == caption_scores(none, REFERENCES)


@pytest.mark.parametrize(
    "program",
    [
        "exit 3",
        "echo one line",
        'case "$*" in *PTB*) for file; do :; done; cat "$file";; *) echo no heap >&2; exit 1;; esac',
    ],
)
def test_a_java_that_fails_is_an_error_and_not_a_wrong_score(
    program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{program}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(CaptionScoreError, match="java -version"):
        caption_scores(CANDIDATES, REFERENCES)
