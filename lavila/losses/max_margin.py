"""Max-margin ranking loss of dual encoders, over the clips of all ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, relu

from lavila.losses.ranks import gather_pairs, sum_over_ranks

SHORTEST = 1e-8  # length below which a feature is not stretched to unit length, as in the reference


def max_margin_loss(
    image: Tensor, text: Tensor, *, margin: float, keep_diagonal: bool = False, relevancy: Tensor | None = None
) -> Tensor:
    """Mean of max(0, margin - similarity of a clip's own pair + that of the clip or its text with another), a scalar.

    image, text: [B,D] features of this rank's clips, of any length: cosine similarities count. keep_diagonal: also
    count each pair against itself, which adds the margin. relevancy: [B], multiplies the margin of row i; for pairs
    that belong together only partly. Computed in float32 at least. Every rank must call it and gets the same loss, over
    the clips of all ranks; 0 without two clips. A rank holds [b,B] similarities twice. ValueError for other shapes.

    Source: EPIC-KITCHENS-100 multi-instance retrieval as in EgoVLP (Lin et al., NeurIPS 2022) and LaViLa, where margin
    is 0.2 and the diagonal is left out.
    """
    if relevancy is not None and relevancy.shape != image.shape[:1]:
        raise ValueError(f"relevancy has shape {tuple(relevancy.shape)}: expected [{len(image)}], one for each clip")
    with torch.autocast(image.device.type, enabled=False):
        kind = torch.promote_types(image.dtype, torch.float32)
        image, text = (normalize(features.to(kind), dim=1, eps=SHORTEST) for features in (image, text))
        pairs = gather_pairs(image, text)
        margins = margin if relevancy is None else margin * relevancy.to(image)[:, None]
        places = pairs.places_b[:, None]
        losses = []
        for similarity in (pairs.text_bD @ pairs.image_BD.T, pairs.image_bD @ pairs.text_BD.T):
            excess = relu(margins - (similarity.gather(1, places) - similarity))
            losses.append((excess if keep_diagonal else excess.scatter(1, places, 0.0)).sum())
        terms = pairs.total * (pairs.total if keep_diagonal else pairs.total - 1)
        return sum_over_ranks(torch.stack(losses).sum()) / (2 * max(terms, 1))
