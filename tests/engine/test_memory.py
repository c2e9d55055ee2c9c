"""The estimate of memory against what a real pass has in use."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lavila.config.schema import OptimConfig
from lavila.engine.memory import PassSize, _InUse, evaluation_memory, training_memory
from lavila.engine.optim import build_optimizer, freeze
from lavila.engine.precision import Arithmetic
from lavila.models.classifier import VideoClassifier
from lavila.models.gated_gpt2 import GatedGpt2Config
from lavila.models.narrator import Narrator
from lavila.models.timesformer import TimeSformer, TimeSformerConfig

SIZE = PassSize(clips=5, video=(3, 4, 32, 32))
FP32, BF16 = (Arithmetic(precision=p, device=torch.device("cpu")) for p in ("fp32", "bf16"))


def model(*, gradient_checkpointing: bool = False) -> VideoClassifier:
    tower = TimeSformerConfig(
        image_size=32, patch_size=8, width=32, depth=3, heads=2, num_frames=4, drop_path=0.1,
        gradient_checkpointing=gradient_checkpointing,
    )  # fmt: skip
    return VideoClassifier(TimeSformer(tower), num_classes=(3,), dropout=0.0)


def adamw_of(of: torch.nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(of, OptimConfig(optimizer="adamw"), in_backbone=lambda _: True)


def optimizer(of: VideoClassifier, **settings: object) -> torch.optim.Optimizer:
    return build_optimizer(of, OptimConfig(**settings), in_backbone=lambda _: True)  # type: ignore[arg-type]


@pytest.mark.parametrize("arithmetic", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_of_a_real_pass(arithmetic: Arithmetic, checkpointing: bool) -> None:
    made = model(gradient_checkpointing=checkpointing)
    estimate = training_memory(made, optimizer(made), SIZE, arithmetic, ranks=1)
    with _InUse() as use, arithmetic.autocast():
        video = torch.zeros(SIZE.clips, *SIZE.video)
        out = made.visual(video)
        torch.autograd.grad(out.sum(), next(made.visual.parameters()))
    assert estimate.activations == pytest.approx(use.most, rel=0.02)
    with _InUse() as use, torch.no_grad(), arithmetic.autocast():
        video = torch.zeros(SIZE.clips, *SIZE.video)
        made.visual(video)
    forward = evaluation_memory(made, SIZE, arithmetic)
    assert forward.activations == pytest.approx(use.most, rel=0.02)
    assert forward.activations < estimate.activations and forward.gradients == forward.optimizer == 0


def test_a_narrators_language_model_is_counted() -> None:
    decoder = GatedGpt2Config(vocab_size=90, positions=32, width=16, depth=2, heads=2, end_token=89, dropout=0.0)
    made = Narrator(model().visual, decoder, queries=3, pooler_heads=2)
    freeze(made, ["video", "language_model"])
    size = replace(SIZE, texts=5, text_tokens=12)
    whole, tower = (training_memory(made, adamw_of(made), one, FP32, ranks=1).activations for one in (size, SIZE))
    with _InUse() as use:
        tokens = torch.zeros(5, 12, dtype=torch.int64)
        visual = made.img_queries.expand(5, -1, -1)
        out = made.text_decoder(tokens, made.text_decoder.look(visual))
        torch.autograd.grad(out.sum(), made.text_decoder.transformer.h[0].alpha_cattn)
    assert whole - tower == pytest.approx(use.most, rel=0.05)


def test_gradient_checkpointing_and_half_precision_save_activations() -> None:
    kept = {
        (checkpointing, arithmetic.precision): training_memory(
            made, optimizer(made), SIZE, arithmetic, ranks=1
        ).activations
        for checkpointing in (False, True)
        for arithmetic in (FP32, BF16)
        for made in [model(gradient_checkpointing=checkpointing)]
    }
    assert kept[True, "fp32"] < 0.8 * kept[False, "fp32"]
    assert kept[False, "bf16"] < kept[False, "fp32"]


def test_weights_gradients_and_state_are_counted() -> None:
    made = model()
    count = sum(p.numel() for p in made.parameters())
    adamw = training_memory(made, optimizer(made, optimizer="adamw"), SIZE, FP32, ranks=1)
    assert (adamw.weights, adamw.gradients, adamw.optimizer) == (4 * count, 4 * count, 8 * count)
    sgd = training_memory(made, optimizer(made, optimizer="sgd"), SIZE, FP32, ranks=8)
    assert (sgd.gradients, sgd.optimizer) == (8 * count, 4 * count)
    plain = training_memory(made, optimizer(made, optimizer="sgd", momentum=0.0), SIZE, FP32, ranks=1)
    assert plain.optimizer == 0
    freeze(made, ["video"])
    frozen = training_memory(made, optimizer(made, optimizer="adamw"), SIZE, FP32, ranks=1)
    heads = sum(p.numel() for p in made.fc_cls.parameters())
    assert (frozen.weights, frozen.gradients, frozen.optimizer) == (4 * count, 4 * heads, 8 * heads)
    assert frozen.activations < 0.7 * adamw.activations
    assert "an estimate" in str(adamw) and f"{adamw.total / 2**30:.2f} GiB" in str(adamw)
