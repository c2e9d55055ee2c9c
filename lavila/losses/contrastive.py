"""Contrastive losses of dual encoders, over the clips of all ranks.

Sources: the symmetric loss of CLIP (Radford et al., 2021); temperatures for human and machine narrations of LaViLa
(Zhao et al., CVPR 2023); several right answers to a question as in MIL-NCE (Miech et al., CVPR 2020) and EgoNCE (Lin et
al., NeurIPS 2022). A rank computes only the similarities of its clips, [b,B] twice, so its memory does not
grow with the square of the whole batch. The gradient is that of the whole batch, as in all published recipes. Every
rank must call these functions, also one whose clips were all left out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lavila.losses.ranks import Pairs, gather_numbers, gather_pairs, shared, sum_over_ranks


def contrastive_loss(
    image: Tensor, text: Tensor, *, logit_scale: Tensor | float, words: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of finding each clip's text among all texts, and each text's clip, a scalar.

    image, text: [B,D] features of this rank's clips, row i of both belonging together; of unit length, otherwise their
    lengths count. logit_scale: 1 / temperature, a scalar. words: [B] int64, a number for each text, equal for equal
    texts; any text with a clip's number is then a right answer for it, and the loss is minus the log of their summed
    probability. None: only row i is right for row i. Computed in float32 at least, whatever autocast says. Every rank
    gets the same loss; 0 without any clip. ValueError for other shapes.
    """
    with _full_precision(image):
        return _symmetric(gather_pairs(image, text), scale=shared(logit_scale), words=words)


def pseudo_label_contrastive_loss(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: Tensor | float,
    pseudo_logit_scale: Tensor | float,
    human: Tensor,
    words: Tensor | None = None,
) -> Tensor:
    """`contrastive_loss` with a temperature for human narrations and one for those that a machine wrote.

    human: [B] bool, true where a person wrote the narration. The similarity of two human clips is multiplied by
    logit_scale, that of two machine clips by pseudo_logit_scale, that of one of each by the root of their product.
    """
    with _full_precision(image):
        scaled = _scaled(image, text, human, shared(logit_scale), shared(pseudo_logit_scale))
        return _symmetric(gather_pairs(*scaled), words=words)


@torch.no_grad()
def contrastive_accuracy(image: Tensor, text: Tensor) -> dict[str, Tensor]:
    """Percent of the clips of all ranks whose most similar text is their own, and of the texts; scalars for a log.

    image, text: as in `contrastive_loss`. Keys: image_to_text, text_to_image. NaN without any clip.
    """
    with _full_precision(image):
        found = _found(gather_pairs(image, text))
        return {name: _percent(right, among=torch.ones_like(right)) for name, right in found.items()}


@torch.no_grad()
def pseudo_label_contrastive_accuracy(
    image: Tensor, text: Tensor, *, logit_scale: Tensor | float, pseudo_logit_scale: Tensor | float, human: Tensor
) -> dict[str, Tensor]:
    """`contrastive_accuracy` by the similarities of `pseudo_label_contrastive_loss`, also of each kind of clip.

    Further keys: image_to_text_human, image_to_text_pseudo and so on; NaN for a kind that has no clip.
    """
    with _full_precision(image):
        found = _found(gather_pairs(*_scaled(image, text, human, logit_scale, pseudo_logit_scale)))
        kinds = {"": torch.ones_like(human), "_human": human, "_pseudo": ~human}
        return {
            f"{name}{kind}": _percent(right, among=clips)
            for kind, clips in kinds.items()
            for name, right in found.items()
        }


def _full_precision(features: Tensor) -> torch.autocast:
    return torch.autocast(features.device.type, enabled=False)


def _scaled(
    image: Tensor, text: Tensor, human: Tensor, scale: Tensor | float, pseudo_scale: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Features whose products are scaled similarities: each side of a pair carries the root of its scale."""
    if human.shape != image.shape[:1] or human.dtype != torch.bool:
        raise ValueError(f"human is {human.dtype} of shape {tuple(human.shape)}: expected bool of [{len(image)}]")
    kind = torch.promote_types(image.dtype, torch.float32)
    scales = [torch.as_tensor(value, dtype=kind, device=image.device) for value in (scale, pseudo_scale)]
    roots = torch.where(human, scales[0], scales[1]).sqrt()[:, None]
    return image * roots, text * roots


def _logits(pairs: Pairs, scale: Tensor | float = 1.0) -> dict[str, Tensor]:
    """[b,B] of this rank's clips with all texts, and of its texts with all clips."""
    return {
        "image_to_text": (scale * pairs.image_bD) @ pairs.text_BD.T,
        "text_to_image": (scale * pairs.text_bD) @ pairs.image_BD.T,
    }


def _symmetric(pairs: Pairs, *, scale: Tensor | float = 1.0, words: Tensor | None = None) -> Tensor:
    found = _logits(pairs, scale).values()
    if words is None:
        losses = [cross_entropy(logits, pairs.places_b, reduction="sum") for logits in found]
    else:
        if words.shape != pairs.places_b.shape or words.dtype != torch.int64:
            raise ValueError(
                f"words is {words.dtype} of shape {tuple(words.shape)}: expected int64 of [{len(pairs.places_b)}]"
            )
        wrong_bB = words[:, None] != gather_numbers(words)
        losses = [
            (logits.logsumexp(1) - logits.masked_fill(wrong_bB, -torch.inf).logsumexp(1)).sum() for logits in found
        ]
    return sum_over_ranks(torch.stack(losses).sum()) / (2 * max(pairs.total, 1))


def _found(pairs: Pairs) -> dict[str, Tensor]:
    """[b] bool each: whether the most similar of all is a clip's own."""
    if not pairs.total:  # then there is nothing to take the largest of
        return dict.fromkeys(("image_to_text", "text_to_image"), pairs.places_b.bool())
    return {name: logits.argmax(1) == pairs.places_b for name, logits in _logits(pairs).items()}


def _percent(right: Tensor, *, among: Tensor) -> Tensor:
    """Percent that is right among some of all ranks' clips. The GPU does not wait: nothing is selected."""
    counts = sum_over_ranks(torch.stack([(right & among).sum(), among.sum()]))
    return 100 * counts[0] / counts[1]
