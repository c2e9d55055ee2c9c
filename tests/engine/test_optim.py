"""Learning rates and parameter groups equal the reference's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lavila.config.load import load_config
from lavila.config.schema import MultiplierScope, OptimConfig, Optimizer, Schedule
from lavila.engine.optim import LearningRate, build_optimizer, cosine_schedule, parameter_groups
from lavila.models.classifier import VideoClassifier
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from tests.golden_files import golden_json

GOLDEN = golden_json("scheduler")


def below_the_heads(name: str) -> bool:
    return not name.startswith("fc_cls.")


def tiny(heads: tuple[int, ...]) -> VideoClassifier:
    tower = TimeSformerConfig(image_size=32, patch_size=8, width=48, depth=2, heads=4, num_frames=4)
    return VideoClassifier(TimeSformer(tower), num_classes=heads, dropout=0.0)


@pytest.mark.parametrize("case", GOLDEN["cosine_scheduler"], ids=lambda c: f"{c['epochs']}x{c['niter_per_ep']}")
def test_schedule_equals_the_reference(case: dict[str, float]) -> None:
    values = cosine_schedule(
        peak=case["base_value"],
        end=case["final_value"],
        start=case["start_warmup_value"],
        epochs=int(case["epochs"]),
        warmup_epochs=case["warmup_epochs"],
        steps=int(case["niter_per_ep"]),
    )
    assert np.allclose(values, case["values"], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "heads"), [("single_head", (7,)), ("multi_head", (5, 7, 11))])
def test_parameter_groups_equal_the_reference(name: str, heads: tuple[int, ...]) -> None:
    model = tiny(heads)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    """As the reference hands them to its optimiser; its schedule then multiplies the head's rate as well."""
    config = OptimConfig(lr=3e-3, weight_decay=0.01, lr_multiplier=0.1, lr_multiplier_for=MultiplierScope.backbone)
    got = [
        {
            "weight_decay": group["weight_decay"],
            "initial_lr": group["lr"],
            "names": [names[id(p)] for p in group["params"]],
        }
        for group in parameter_groups(model, config, in_backbone=below_the_heads)
    ]
    assert got == GOLDEN["param_groups"][f"classification.{name}"]


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize(("scope", "head"), [(MultiplierScope.all, 0.1), (MultiplierScope.backbone, 1.0)])
def test_the_multiplier_is_for_whom_it_says_with_any_schedule(
    scope: MultiplierScope, head: float, schedule: Schedule
) -> None:
    config = OptimConfig(
        lr=1.0, lr_start=0.0, lr_end=0.0, epochs=2, warmup_epochs=1, lr_multiplier=0.1, lr_multiplier_for=scope,
        schedule=schedule,
    )  # fmt: skip
    model = tiny((5,))
    optimizer, rate = (
        build_optimizer(model, config, in_backbone=below_the_heads),
        LearningRate.of(config, model, steps=5, in_backbone=below_the_heads),
    )
    for step in (4, 5) if schedule is Schedule.cosine else range(10):
        rate.set(optimizer.param_groups, step)
        assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, head, head]


@pytest.mark.parametrize("case", GOLDEN["cosine_scheduler"], ids=lambda c: f"{c['epochs']}x{c['niter_per_ep']}")
def test_published_recipes_have_the_rates_of_the_reference(case: dict[str, float]) -> None:
    """All groups at the schedule's value times the multiplier, momentum 0.9."""
    recipe = load_config("ek100_cls_tsf_l").optim
    config = replace(
        recipe, lr=case["base_value"], lr_end=case["final_value"], lr_start=case["start_warmup_value"],
        epochs=int(case["epochs"]), warmup_epochs=case["warmup_epochs"],
    )  # fmt: skip
    model = tiny((5, 7))
    optimizer = build_optimizer(model, config, in_backbone=below_the_heads)
    rate = LearningRate.of(config, model, steps=int(case["niter_per_ep"]), in_backbone=below_the_heads)
    assert len(optimizer.param_groups) == 4 and {group["momentum"] for group in optimizer.param_groups} == {0.9}
    for step, value in enumerate(case["values"]):  # type: ignore[arg-type]
        rate.set(optimizer.param_groups, step)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(value * 0.1, rel=1e-12)


def test_optimisers_and_their_settings() -> None:
    sgd = build_optimizer(
        tiny((5,)), OptimConfig(optimizer=Optimizer.sgd, momentum=0.8, betas=(0.7, 0.99)), in_backbone=below_the_heads
    )
    assert isinstance(sgd, torch.optim.SGD) and sgd.param_groups[0]["momentum"] == 0.8
    adamw = build_optimizer(
        tiny((5,)), OptimConfig(optimizer=Optimizer.adamw, betas=(0.8, 0.99), eps=1e-6), in_backbone=below_the_heads
    )
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["betas"] == (0.8, 0.99) and adamw.param_groups[0]["eps"] == 1e-6


def test_frozen_parameters_stay_out() -> None:
    model = nn.Linear(3, 3)
    model.weight.requires_grad_(False)
    (group,) = parameter_groups(model, OptimConfig(), in_backbone=lambda _: True)
    assert len(group["params"]) == 1
