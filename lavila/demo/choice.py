"""The best of several texts of one clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lavila.models.captioner import Said
from lavila.models.tokenizers import Tokenizer

ChoiceName = Literal["agreement", "likelihood", "dual"]


def likeliest(said: Said) -> int:
    """The place of the text with the smallest negative log-likelihood per token; -1 where all texts are empty."""
    return min(_places(said), key=lambda place: said.nll[place], default=-1)


def most_agreed(said: Said) -> int:
    """The place of the text that shares the most words with the others; -1 where all texts are empty.

    Likeness is the F1 of their words, each as often as it comes. Of equals the likelier text wins.
    """
    words = [Counter(text.lower().split()) for text in said.texts]

    def agreement(place: int) -> float:
        return sum(_likeness(words[place], other) for other in words)

    return max(_places(said), key=lambda place: (agreement(place), -said.nll[place]), default=-1)


def _places(said: Said) -> list[int]:
    return [place for place, text in enumerate(said.texts) if text]


def _likeness(one: Counter[str], other: Counter[str]) -> float:
    return 2 * (one & other).total() / max(one.total() + other.total(), 1)


class Encoders(Protocol):
    """What this asks of a dual encoder."""

    def encode_video(self, video: Tensor) -> Tensor:
        """[B,3,T,Y,X] -> [B,D]"""
        ...

    def encode_text(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """[R,L] -> [R,D]"""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""
        ...


class DualEncoderChoice:
    """The text that a dual encoder finds most like the video."""

    def __init__(self, model: Encoders, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer

    @torch.inference_mode()
    def best(self, video_BCTYX: Tensor, said: Sequence[Said]) -> list[int]:
        """The place of the best text of each clip [B,3,T,Y,X]; -1 where all its texts are empty."""
        device = next(self._model.parameters()).device
        video_BD = normalize(self._model.encode_video(video_BCTYX.to(device)), dim=-1)
        return [self._best(video_D, one) for video_D, one in zip(video_BD, said, strict=True)]

    def _best(self, video_D: Tensor, said: Said) -> int:
        places = _places(said)
        if not places:
            return -1
        tokens = self._tokenizer([said.texts[place] for place in places])
        ids, mask = tokens.ids.to(video_D.device), tokens.mask.to(video_D.device)
        text_RD = normalize(self._model.encode_text(ids, mask), dim=-1)
        return places[int((text_RD @ video_D).argmax())]


CHOICES: dict[ChoiceName, Callable[[Said], int]] = {"agreement": most_agreed, "likelihood": likeliest}
