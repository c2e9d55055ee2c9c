"""Scores of captions against reference captions: CIDEr, METEOR, ROUGE-L and BLEU, as pycocoevalcap computes them.

Papers: Vedantam et al. 2015 (CIDEr), Banerjee and Lavie 2005 (METEOR), Lin 2004 (ROUGE), Papineni et al. 2002 (BLEU).
These are the scores of LaViLa's narrators (Zhao et al., CVPR 2023). Captions are first split by the tokenizer of the
Penn Treebank (PTB), which comes with pycocoevalcap. That tokenizer and METEOR are Java programs; see `missing`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lavila.errors import UserError, listed, one_line, shown

# Ego4D's marks for the camera wearer ("#C C picks up a cup") and for others ("#O A man sits down").
PERSON_MARK = re.compile(r"#\s*(?:C\s+C|C|O)\b", re.IGNORECASE)
# A word of the plain tokenizer: letters and digits, which a hyphen, point or comma may join (open-toed, 2.5).
WORD = re.compile(r"\w+(?:[-.,]\w+)*")
# PTB makes two words of such forms: do n't, man 's. This is the second one.
CLITIC = re.compile(r"(?<=\w)(?:n't|'(?:s|m|d|ll|re|ve))\b")
CLITICS = ("n't", "'s", "'m", "'d", "'ll", "'re", "'ve")


class CaptionScoreError(UserError):
    """Captions that cannot be scored, or a Java program that failed."""


def caption_scores(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Score one caption of each clip against the clip's reference captions.

    Both are keyed by clip id and have the same clips. The result has CIDEr, ROUGE_L, BLEU_1 .. BLEU_4 and, where there
    is Java, METEOR. All are fractions, though CIDEr goes up to 10. Scores belong to the whole set: they are not means
    over clips, and CIDEr is 0 for a single clip. Marks of persons, such as "#C C", do not count as words. Without Java
    the captions are split by a plain tokenizer, and scores differ a little; say what `missing` says beside them.

    METEOR takes seconds to start and about 1 GiB of memory: call this once, in one process. CaptionScoreError for clips
    that are only on one side, a clip without words in its references, and a Java program that fails.
    """
    return scores_of_sets({"": candidates}, references)[""]


def scores_of_sets(
    sets: Mapping[str, Mapping[str, str]], references: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """`caption_scores` of several sets of captions for the same clips, by the sets' names. Java starts once for all."""
    for candidates in sets.values():
        _check(candidates, references)
    ids = list(references)
    texts = [candidates[clip] for candidates in sets.values() for clip in ids]
    texts += [text for clip in ids for text in references[clip]]
    tokenize = _ptb_tokens if _java() else _plain_tokens
    words = iter(tokenize([clean_caption(text) for text in texts]))
    ours = {name: {clip: [next(words)] for clip in ids} for name in sets}
    split = {clip: [next(words) for _ in references[clip]] for clip in ids}
    wanted = {clip: [text for text in texts if text] for clip, texts in split.items()}
    if bare := [clip for clip, texts in wanted.items() if not texts]:
        raise CaptionScoreError(
            f"clip {shown(bare[0])}: no reference caption has a word, which is so for {len(bare)} of {len(ids)} clips; "
            "leave such clips out of the scores"
        )
    found = {name: _scores(captions, wanted) for name, captions in ours.items()}
    if not _java():
        return found
    meteors = _meteor_scores(list(ours.values()), wanted)
    return {
        name: {"CIDEr": scores.pop("CIDEr"), "METEOR": meteor, **scores}
        for (name, scores), meteor in zip(found.items(), meteors, strict=True)
    }


def missing() -> str | None:
    """What this machine lacks for the full scores, in one sentence for a report; None if it lacks nothing."""
    if _java():
        return None
    return (
        "Java is missing: METEOR is left out, and the other scores use a plain tokenizer instead of the PTB tokenizer, "
        "so they differ a little from published ones; install a Java runtime, 8 or newer, so that the command java "
        "works (Debian: apt install default-jre-headless; conda: conda install openjdk)"
    )


def known_scores() -> list[str]:
    """The keys of what `caption_scores` gives on this machine."""
    return ["CIDEr", *(["METEOR"] if _java() else []), "ROUGE_L", *(f"BLEU_{n}" for n in range(1, 5))]


def clean_caption(text: str) -> str:
    """The caption on one line, without marks of persons such as "#C C"."""
    # METEOR separates its fields with |||, and both Java programs read a caption a line.
    return " ".join(PERSON_MARK.sub(" ", text).replace("|||", " ").split())


def _check(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not candidates:
        raise CaptionScoreError("no captions to score; give at least one clip")
    for ours, theirs, what in (
        (candidates, references, "a caption but no reference"),
        (references, candidates, "references but no caption"),
    ):
        if lone := [clip for clip in ours if clip not in theirs]:
            raise CaptionScoreError(
                f"{len(lone)} clips have {what}: {listed([shown(clip) for clip in lone], most=3)}; give both sides the "
                "same clips"
            )


def _scores(ours: dict[str, list[str]], wanted: dict[str, list[str]]) -> dict[str, float]:
    """The scores without METEOR of captions whose words are separated by single blanks."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    scores = {"CIDEr": float(Cider().compute_score(wanted, ours)[0])}
    scores["ROUGE_L"] = float(Rouge().compute_score(wanted, ours)[0])
    bleu, _ = Bleu(4).compute_score(wanted, ours, verbose=0)
    return scores | {f"BLEU_{n}": float(value) for n, value in enumerate(bleu, start=1)}


def _java() -> str | None:
    return shutil.which("java")


def _ptb_tokens(captions: list[str]) -> list[str]:
    """The words of each caption, without punctuation, by pycocoevalcap's PTB tokenizer.

    pycocoevalcap's own call writes into its package folder, which may be read-only, and ignores failures.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "captions.txt"
        file.write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")
        command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        done = subprocess.run([*command, "-encoding", "UTF-8", str(file)], capture_output=True, check=False)
    lines = done.stdout.decode("utf-8", errors="replace").split("\n")[:-1]
    if done.returncode or len(lines) != len(captions):
        said = one_line(done.stderr.decode("utf-8", errors="replace"))
        raise CaptionScoreError(
            f"the PTB tokenizer ended with status {done.returncode} and gave {len(lines)} lines for {len(captions)} "
            f"captions ({said}); check that 'java -version' works, or remove java from PATH to do without it"
        )
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.split() if word not in dropped) for line in lines]


def _plain_tokens(captions: list[str]) -> list[str]:
    """The words of each caption, lower-cased and without punctuation, much like those of the PTB tokenizer."""
    found = []
    for caption in captions:
        pieces = CLITIC.sub(r" \g<0> ", caption.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")).split()
        words = [[piece] if piece in CLITICS else WORD.findall(piece) for piece in pieces]
        found.append(" ".join(word for piece in words for word in piece))
    return found


def _meteor_scores(sets: Sequence[dict[str, list[str]]], wanted: dict[str, list[str]]) -> list[float]:
    with _meteor() as meteor:
        try:
            return [float(meteor.compute_score(wanted, ours)[0]) for ours in sets]
        except (OSError, ValueError) as error:
            meteor.meteor_p.kill()
            said = one_line(meteor.meteor_p.stderr.read().decode("utf-8", errors="replace")) or one_line(error)
            raise CaptionScoreError(
                f"METEOR failed ({said}); it needs Java and 2 GB of memory; check that 'java -version' works, or "
                "remove java from PATH to do without METEOR"
            ) from None


@contextmanager
def _meteor() -> Iterator[Any]:
    """A METEOR whose Java process ends with the block."""
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    # Its destructor takes the lock, which a failed call keeps: with a plain lock the program would hang there.
    meteor.lock = threading.RLock()
    try:
        yield meteor
    finally:
        process = meteor.meteor_p
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):  # what was not sent yet
                pipe.close()
