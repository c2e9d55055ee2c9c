"""The best of several texts: by likelihood, by agreement, by a dual encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lavila.demo.choice import DualEncoderChoice, likeliest, most_agreed
from lavila.models.captioner import Said
from lavila.models.tokenizers import Tokens


def said(*texts: str, nll: tuple[float, ...] = ()) -> Said:
    return Said(texts=texts, nll=nll or tuple(float(place) for place in range(len(texts))))


def test_the_likeliest_text_that_says_something() -> None:
    assert likeliest(said("a", "b", "c", nll=(2.0, 1.0, 3.0))) == 1
    assert likeliest(said("", "b", nll=(0.1, 9.0))) == 1
    assert likeliest(said("", "")) == most_agreed(said("", "")) == -1


def test_the_text_that_the_others_agree_with() -> None:
    texts = ("#C C looks around", "#C C opens the fridge", "#C C opens a fridge", "#C C opens the door")
    assert most_agreed(said(*texts)) == 1
    assert most_agreed(said("x y", "x y", "z", nll=(2.0, 1.0, 0.0))) == 1  # of equals the likelier
    assert most_agreed(said("only")) == 0


class FakeDualEncoder(nn.Module):
    """Features that a test chooses; encode_text looks a text's up by its first id."""

    def __init__(self) -> None:
        super().__init__()
        self.texts = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 3.1]]))

    def encode_video(self, video: Tensor) -> Tensor:
        return video.mean((1, 2, 3, 4))[:, None] * torch.tensor([0.1, 1.0])

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.texts[ids[:, 0]]


class FakeTokenizer:
    context, vocab_size = 1, 3

    def __call__(self, texts: Any) -> Tokens:
        ids = torch.tensor([["abc".index(text)] for text in texts])
        return Tokens(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))


def test_a_dual_encoder_chooses_the_text_nearest_to_the_video() -> None:
    choice = DualEncoderChoice(FakeDualEncoder(), FakeTokenizer())
    video = torch.ones(3, 3, 2, 4, 4)
    assert choice.best(video, [said("a", "b", "c"), said("", "c", "a"), said("")]) == [1, 1, -1]
