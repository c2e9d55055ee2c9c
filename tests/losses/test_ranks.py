"""Losses of a batch that two processes share: the loss and the gradients that one process with all clips has."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from lavila.losses import contrastive_loss
from tests import forks
from tests.losses import two_ranks
from tests.losses.golden_losses import FIGURES, TENSORS, assert_close, learned

LOSSES = ("clip_vissl", "ssl_vissl", "max_margin", "adaptive_max_margin")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found."""
    folder = tmp_path_factory.mktemp("two_ranks")
    here = {**os.environ, "PYTHONPATH": str(forks.ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    both = [forks.start("-m", "tests.losses.two_ranks", rank, folder, environment=here) for rank in (0, 1)]
    done = [one.communicate(timeout=200) for one in both]
    assert [one.returncode for one in done] == [0, 0], done
    return [torch.load(folder / f"rank-{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rank", [0, 1])
def test_halves_of_a_batch_equal_the_reference(ranks: list[dict[str, Any]], rank: int, name: str) -> None:
    loss, image_grad, text_grad, scale_grad = ranks[rank][f"halves: {name}"]
    figures = FIGURES["two_process"][name][f"rank{rank}"]
    assert_close(loss, figures["loss"])
    assert_close(image_grad, TENSORS[f"dist.{name}.rank{rank}.grad_image"])
    assert_close(text_grad, TENSORS[f"dist.{name}.rank{rank}.grad_text"])
    if figures["grad_log_scale"] is not None:
        assert_close(scale_grad, figures["grad_log_scale"])
    accuracy = ranks[rank]["accuracies: halves"]
    if name == "clip_vissl":
        assert_close(accuracy["plain_image_to_text"], figures["clip_acc"])
    if name == "ssl_vissl":
        for key, ours in (("clip_acc", ""), ("clip_acc_gt", "_human"), ("clip_acc_pseudo", "_pseudo")):
            assert_close(accuracy[f"image_to_text{ours}"], figures[key])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("share", ["5 and 7", "none and 12", "12 and none"])
def test_uneven_shares_give_what_one_process_gives(ranks: list[dict[str, Any]], share: str, name: str) -> None:
    image, text, scale = learned("in.dist.image"), learned("in.dist.text"), learned("in.log_logit_scale")
    whole = two_ranks.losses(slice(None))[name](image, text, scale)
    whole.backward()
    found = [rank[f"{share}: {name}"] for rank in ranks]
    for loss, _, _, scale_grad in found:
        assert_close(loss, whole.detach())
        if scale.grad is not None:
            assert_close(scale_grad, scale.grad)
    # Two ranks call backward on the same loss; the average over ranks is taken from the gradients of parameters.
    for place, one_process in ((1, image.grad), (2, text.grad)):
        assert one_process is not None
        assert_close(torch.cat([rank[place] for rank in found]), 2 * one_process)


def test_a_batch_that_lost_all_clips_is_0_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert [float(rank[f"nothing: {name}"][0]) for name in LOSSES] == [0.0] * len(LOSSES)
        assert all(value.isnan() for value in rank["accuracies: nothing"].values())


def test_accuracies_are_those_of_all_clips(ranks: list[dict[str, Any]]) -> None:
    whole = two_ranks.accuracies(0, (12, 0))
    for rank in ranks:
        for share in ("halves", "none and 12"):
            assert {name: float(value) for name, value in rank[f"accuracies: {share}"].items()} == pytest.approx(
                {name: float(value) for name, value in whole.items()}
            )


def test_a_rank_whose_features_are_constants_takes_part(ranks: list[dict[str, Any]]) -> None:
    image, text = learned("in.dist.image"), learned("in.dist.text")
    contrastive_loss(image, text, logit_scale=10.0).backward()
    assert image.grad is not None and ranks[1]["constants"] is None
    assert_close(ranks[0]["constants"], 2 * image.grad)


@pytest.mark.parametrize("equal_words", [False, True])
def test_parameters_under_ddp_get_the_gradient_of_the_whole_batch(
    ranks: list[dict[str, Any]], equal_words: bool
) -> None:
    whole = two_ranks.parameters_under_ddp(0, equal_words=equal_words)
    for rank in ranks:
        for found, wanted in zip(rank["ddp"][equal_words], whole, strict=True):
            assert wanted.abs().sum() > 0
            assert_close(found, wanted)


@pytest.mark.parametrize("name", ["contrastive", "max_margin"])
def test_no_rank_makes_the_whole_square_of_similarities(ranks: list[dict[str, Any]], name: str) -> None:
    own, everyone = two_ranks.LARGE, 2 * two_ranks.LARGE
    for rank in ranks:
        assert rank["largest"][name] == own * everyone


def test_the_reference_s_other_ways_to_gather_all_features_are_covered(ranks: list[dict[str, Any]]) -> None:
    """Its second way with gradient gives ours. Without gradient it gives ours over the number of ranks."""
    for rank, found in enumerate(ranks):
        for side, place in (("image", 1), ("text", 2)):
            ours = found["halves: clip_vissl"][place]
            assert_close(ours, TENSORS[f"dist.clip_gather_grad.rank{rank}.grad_{side}"])
            assert_close(ours / 2, TENSORS[f"dist.clip_gather.rank{rank}.grad_{side}"])
