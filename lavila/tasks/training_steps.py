"""How dual encoders are trained: contrastively on pairs of clip and words, or by max-margin with relevancy.

The losses go over the clips of all ranks (`lavila.losses`), so every rank takes each step, also without a clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from lavila.losses import contrastive_accuracy, max_margin_loss, pseudo_label_contrastive_loss
from lavila.metrics.units import Unit
from lavila.records import VideoBatch
from lavila.tasks import TaskOptions
from lavila.tasks.dual_encoders import Encoders
from lavila.tasks.tables import Ints, Tables

LABELS = "labels"  # the kind of label that multi-label datasets have
LOGGED = {"video_to_text": Unit.percent, "text_to_video": Unit.percent}


class ContrastiveStep:
    """Each clip finds its words among those of all clips of the batch, and the other way round.

    A clip is paired with the narration that the plan chose. Where it has none and the dataset describes its classes, a
    class of it is chosen the same way (Charades-Ego's own annotations). A clip without either is left out. Words that
    no person wrote have a separate temperature, as in LaViLa (Zhao et al., CVPR 2023). With
    `task.same_words=positives`, words that are equal to a clip's own are right for it, whichever clip they came with.
    """

    def __init__(self, options: TaskOptions, tables: Tables) -> None:
        self._temperature = options.temperature
        self._same_words_fit = options.same_words == "positives"
        self._class_texts = tables.class_texts.get(LABELS, ())

    @property
    def logged(self) -> Mapping[str, Unit]:
        """Percent of the clips of all ranks whose nearest words are their own, and of the words."""
        return LOGGED

    def __call__(self, encoders: Encoders, batch: VideoBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what `logged` says."""
        texts, human = words_of(batch, self._class_texts)
        kept = [place for place, text in enumerate(texts) if text]
        video = batch.video[:, 0] if len(kept) == len(texts) else batch.video[kept, 0]
        kept_texts = [texts[place] for place in kept]
        found = encoders.pairs(video, kept_texts)
        pair = found["video_embed"], found["text_embed"]
        loss = pseudo_label_contrastive_loss(
            *pair,
            logit_scale=found["temperature_scale"],
            pseudo_logit_scale=found.get("pseudo_temperature_scale", 1 / self._temperature.pseudo_start),
            human=torch.from_numpy(human[kept]).to(batch.video.device),
            words=numbers_of(kept_texts).to(batch.video.device) if self._same_words_fit else None,
        )
        return loss, {"loss": loss.detach(), **_accuracies(*pair)}


class MaxMarginStep:
    """A clip's similarity to a sentence that fits it exceeds that to others by a margin.

    The sentence is any of those whose relevancy to the clip is above a bound, each as likely (LaViLa, EgoVLP); where
    there is none, the clip's own narration. The pair's margin may be times its relevancy.
    """

    def __init__(self, options: TaskOptions, tables: Tables) -> None:
        self._options, self._tables = options.margin, tables

    @property
    def logged(self) -> Mapping[str, Unit]:
        """Percent of the clips of all ranks whose nearest sentence is theirs, and of the sentences."""
        return LOGGED

    def __call__(self, encoders: Encoders, batch: VideoBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what `logged` says. ShardSetError for a set without sentences."""
        texts, relevancy = self.pairs(batch)
        found = encoders.pairs(batch.video[:, 0], texts)
        pair = found["video_embed"], found["text_embed"]
        loss = max_margin_loss(
            *pair,
            margin=self._options.margin,
            keep_diagonal=self._options.keep_diagonal,
            relevancy=torch.from_numpy(relevancy).to(batch.video.device) if self._options.scaled else None,
        )
        return loss, {"loss": loss.detach(), **_accuracies(*pair)}

    def pairs(self, batch: VideoBatch) -> tuple[list[str], np.ndarray]:
        """A text for each clip, and its relevancy to the clip, [B] float32."""
        if not len(batch):
            return [], np.zeros(0, np.float32)
        sentences = self._tables.sentences().texts
        texts, relevancy = batch.captions(), np.ones(len(batch), np.float32)
        for place, row in enumerate(self._tables.relevancy(batch.rows)):
            fitting: Ints = np.flatnonzero(row > self._options.relevancy_above)
            if len(fitting):
                chosen = fitting[int(batch.draws[place] * len(fitting))]
                texts[place], relevancy[place] = sentences[chosen], row[chosen]
        return texts, relevancy


def words_of(batch: VideoBatch, class_texts: object = ()) -> tuple[list[str], np.ndarray]:
    """Words of each clip, "" where it has none, and whether a person wrote them, [B] bool.

    class_texts: texts of each class of `batch.label_sets`, for clips without a narration; the first text of a class.
    """
    texts, human = batch.captions(), batch.human
    for place, classes in enumerate(batch.label_sets):
        if not texts[place] and classes and class_texts:
            chosen = classes[int(batch.draws[place] * len(classes))]
            texts[place], human[place] = class_texts[chosen][0], True  # type: ignore[index]
    return texts, human


def numbers_of(texts: Sequence[str]) -> Tensor:
    """int64 [B]: the same number for the same text, on any rank; another one for another text, but for 1 in 2**64."""
    found = [int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), signed=True) for text in texts]
    return torch.tensor(found, dtype=torch.int64)


def _accuracies(video: Tensor, text: Tensor) -> dict[str, Tensor]:
    found = contrastive_accuracy(video.detach(), text.detach())
    return {"video_to_text": found["image_to_text"], "text_to_video": found["text_to_image"]}
