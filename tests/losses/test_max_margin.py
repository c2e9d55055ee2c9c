"""The max-margin loss in one process, against the reference and against a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from lavila.losses import max_margin_loss
from tests.losses.golden_losses import FIGURES, TENSORS, assert_close, learned

CASES = [name for name in FIGURES["cases"] if "max_margin" in name]


def arguments_of(name: str) -> dict[str, Any]:
    """Of a case such as adaptive_max_margin.m0.4.fix_norm_False."""
    margin, _, fix_norm = name.partition(".m")[2].removesuffix(".normed_inputs").partition(".fix_norm_")
    relevancy = TENSORS["in.relevancy"] if name.startswith("adaptive") else None
    return {"margin": float(margin), "keep_diagonal": fix_norm == "False", "relevancy": relevancy}


@pytest.mark.parametrize("name", CASES)
def test_it_equals_the_reference(name: str) -> None:
    raw = "" if name.endswith("normed_inputs") else "_raw"
    image, text = learned(f"in.image{raw}"), learned(f"in.text{raw}")
    loss = max_margin_loss(image, text, **arguments_of(name))
    loss.backward()
    assert_close(loss.detach(), FIGURES["cases"][name]["loss"])
    assert_close(image.grad, TENSORS[f"grad.{name}.image"])
    assert_close(text.grad, TENSORS[f"grad.{name}.text"])


def in_a_loop(image: Tensor, text: Tensor, margins: list[float], *, keep_diagonal: bool) -> float:
    """Each pair of clips by itself, in float64."""
    image, text = image.double(), text.double()
    terms = []
    for i, margin in enumerate(margins):
        own = float(cosine_similarity(image[i], text[i], dim=0))
        for j in range(len(margins)):
            if i != j or keep_diagonal:
                terms.append(max(0.0, margin - own + float(cosine_similarity(image[i], text[j], dim=0))))
                terms.append(max(0.0, margin - own + float(cosine_similarity(text[i], image[j], dim=0))))
    return sum(terms) / len(terms) if terms else 0.0


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    relevancy=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6),
    keep_diagonal=st.booleans(),
)
def test_it_equals_a_loop_and_does_not_mind_the_order(seed: int, relevancy: list[float], keep_diagonal: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(len(relevancy), 4, generator=random) for _ in range(2))
    scaled = torch.tensor(relevancy)
    loss = max_margin_loss(image, text, margin=0.3, keep_diagonal=keep_diagonal, relevancy=scaled)
    wanted = in_a_loop(image, text, [0.3 * r for r in relevancy], keep_diagonal=keep_diagonal)
    assert float(loss) == pytest.approx(wanted, abs=1e-6)
    order = torch.randperm(len(relevancy), generator=random)
    shuffled = max_margin_loss(
        image[order], text[order], margin=0.3, keep_diagonal=keep_diagonal, relevancy=scaled[order]
    )
    assert float(shuffled) == pytest.approx(float(loss), abs=1e-6)


def test_a_feature_of_no_length_is_like_nothing() -> None:
    image, text = TENSORS["in.image_raw"].clone(), TENSORS["in.text_raw"]
    image[0] = 0
    # Its pair and all pairs with it have similarity 0, so each of its terms is the margin and no more.
    assert_close(max_margin_loss(image[:1], text[:1], margin=0.2, keep_diagonal=True), 0.2)
    assert_close(normalize(image) @ normalize(text).T, TENSORS["out.sim_matrix_zero_row"])


def test_one_clip_has_nothing_to_be_compared_with() -> None:
    image, text = (torch.randn(1, 4, requires_grad=True) for _ in range(2))
    loss = max_margin_loss(image, text, margin=0.2)
    loss.backward()
    assert loss.item() == 0 and image.grad is not None and (image.grad == 0).all()


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"relevancy has shape \(2,\)"):
        max_margin_loss(torch.ones(3, 4), torch.ones(3, 4), margin=0.2, relevancy=torch.ones(2))
