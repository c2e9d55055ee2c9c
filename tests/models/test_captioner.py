"""Texts of clips: each is the same whatever else is in the batch."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lavila.models.captioner import PUBLISHED, Captioner
from lavila.models.generation import GenerationConfig, decoder_type
from lavila.models.tokenizers import Gpt2Tokenizer
from tests.narrators import save_tiny_narrator, tiny_narrator

OPTIONS = GenerationConfig(num_return_sequences=3, max_length=12, top_p=0.95, temperature=0.7)
IDS = ["a", "b", "c", "d"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    _, vocabulary = save_tiny_narrator(tmp_path_factory.mktemp("narrator"))
    return Captioner(tiny_narrator(vocabulary), Gpt2Tokenizer(vocabulary), options=OPTIONS, seed=3)


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return torch.randn(4, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_clip_has_the_same_texts_in_any_batch_and_order(captioner: Captioner, video: torch.Tensor) -> None:
    together = captioner.say(video, IDS)
    assert len({one.texts for one in together}) == 4
    for place in range(4):
        assert captioner.say(video[[place]], [IDS[place]])[0].texts == together[place].texts
    backwards = captioner.say(video.flip(0), IDS[::-1])
    assert [one.texts for one in backwards[::-1]] == [one.texts for one in together]
    torch.testing.assert_close([one.nll for one in backwards[::-1]], [one.nll for one in together])


def test_the_last_bits_are_the_same_in_any_batch_at_full_width() -> None:
    """In another process, since the order of sums is chosen before PyTorch starts. It takes 6 s of a CPU."""
    in_order = {
        "float32": torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        and "GenuineIntel" in Path("/proc/cpuinfo").read_text(),
        "bfloat16": decoder_type("cpu") == torch.bfloat16,
    }
    kinds = [kind for kind, known in in_order.items() if known]
    if not kinds:
        pytest.skip("no order of sums is known for this processor")
    result = subprocess.run(
        [sys.executable, "tests/models/any_batch.py", *kinds],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "MKL_CBWR"} | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.stdout.splitlines() == [f"torch.{kind} same" for kind in kinds], result.stderr


def test_texts_depend_on_seed_and_id(captioner: Captioner, video: torch.Tensor) -> None:
    one = captioner.say(video[:1], ["a"])[0]
    assert captioner.say(video[:1], ["z"])[0].texts != one.texts
    other = Captioner(captioner.narrator, captioner.tokenizer, options=OPTIONS, seed=4)
    assert other.say(video[:1], ["a"])[0].texts != one.texts


def test_each_text_is_one_line_with_its_likelihood(captioner: Captioner, video: torch.Tensor) -> None:
    for one in captioner.say(video, IDS):
        assert len(one.texts) == len(one.nll) == 3 and one.entropy is not None and len(one.entropy) == 3
        assert all(nll > 0 for nll in one.nll)
        for text in one.texts:
            assert text == " ".join(text.split()) and not any(ord(letter) < 32 for letter in text)


def test_beams_and_half_precision(captioner: Captioner, video: torch.Tensor) -> None:
    beams = replace(OPTIONS, num_beams=4, top_p=None, temperature=1.0)
    found = Captioner(captioner.narrator, captioner.tokenizer, options=beams, seed=0).say(video, IDS)
    assert [len(one.texts) for one in found] == [3] * 4 and found[0].entropy is None
    vocabulary = captioner.tokenizer
    half = Captioner(
        Captioner(captioner.narrator, vocabulary, options=OPTIONS, seed=0).narrator.to(torch.bfloat16),
        vocabulary,
        options=OPTIONS,
        seed=3,
    )
    try:
        assert all(nll > 0 for one in half.say(video, IDS) for nll in one.nll)
    finally:
        captioner.narrator.float()


def test_the_published_choice() -> None:
    assert (PUBLISHED.num_return_sequences, PUBLISHED.max_length) == (10, 77)
    assert (PUBLISHED.top_p, PUBLISHED.temperature, PUBLISHED.top_k) == (0.95, 0.7, None)
