"""TimeSformer against figures of the reference (tests/golden/models), and what it promises beyond them.

Tolerances: largest difference over largest value. The golden float32 outputs are themselves 1e-6 away from float64.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lavila.models import timesformer
from lavila.models.timesformer import Block, DropPath, TimeSformer, TimeSformerConfig
from tests.golden_files import GOLDEN, golden_json
from tests.models.golden_towers import difference, tower_config

CASES = ("stt_clip_style", "stt_frozen_in_time", "stt_frozen_in_time_gated")
TINY = TimeSformerConfig(image_size=16, patch_size=8, width=24, depth=2, heads=2, num_frames=3)


@pytest.fixture(autouse=True)
def as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """These models recompute what large ones do, though theirs is small."""
    monkeypatch.setattr(timesformer, "SMALL_BYTES", 0)


def config_of(case: str, **changes: Any) -> TimeSformerConfig:
    return tower_config(golden_json(f"models/{case}")["constructor_args"], **changes)


def golden_model(case: str, **changes: Any) -> TimeSformer:
    model = TimeSformer(config_of(case, **changes))
    model.load_state_dict(load_file(GOLDEN / f"models/{case}.params.safetensors"))
    return model.eval()


def blocks_of(model: TimeSformer) -> list[Block]:
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    assert len(blocks) == model.config.depth
    return blocks


def golden_case(case: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"models/{case}.cases.safetensors")


def as_video(x_BTCYX: Tensor) -> Tensor:
    return x_BTCYX.transpose(1, 2)


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_the_reference(case: str) -> None:
    model, golden = golden_model(case), golden_case(case)
    video = as_video(golden["in.x"])
    with torch.no_grad():
        embedded = model._embed(video)
        assert difference(embedded, golden["stage.tokens_after_embedding"]) < 1e-5
        assert difference(model.blocks[0](embedded, 4), golden["stage.tokens_after_block_0"]) < 1e-5
        assert difference(model(video), golden["out.cls"]) < 1e-5
        assert difference(model(video), golden["out.forward"]) < 1e-5
        assert difference(model.forward_features(video), golden["out.tokens"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("frames", [1, 3])
def test_short_clips_equal_the_reference(case: str, frames: int) -> None:
    model, golden = golden_model(case), golden_case(case)
    video = as_video(golden[f"in.x_short{frames}"])
    with torch.no_grad():
        assert difference(model(video), golden[f"out.short{frames}.cls"]) < 1e-5
        assert difference(model.forward_features(video), golden[f"out.short{frames}.tokens"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_float64_equals_the_reference_in_float64(case: str) -> None:
    model, golden = golden_model(case).double(), golden_case(case)
    video = as_video(golden["in.x"]).double()
    with torch.no_grad():
        assert difference(model(video), golden["out64.cls"]) < 1e-12
        assert difference(model.forward_features(video), golden["out64.tokens"]) < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_reference(case: str) -> None:
    model, golden = golden_model(case), golden_case(case)
    (model(as_video(golden["in.x"])) * golden["in.R_cls"]).sum().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    stored = [name for name in golden if name.startswith("grad.")]
    assert len(stored) > 15
    for name in stored:
        grad = grads[name.removeprefix("grad.")]
        assert grad is not None
        assert difference(grad, golden[name]) < 2e-5, name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("output", ["cls", "tokens"])
def test_gradient_norms_of_all_parameters_equal_the_reference(case: str, output: str) -> None:
    model, golden = golden_model(case).double(), golden_case(case)
    video = as_video(golden["in.x"]).double()
    out = model(video) if output == "cls" else model.forward_features(video)
    (out * golden[f"in.R_{output}"]).sum().backward()
    norms = golden_json(f"models/{case}")["grad_norms_fp64"][output]
    ours = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]
    assert ours.keys() == norms.keys()
    for name, norm in norms.items():
        assert ours[name] == pytest.approx(norm, rel=1e-9), name


@pytest.mark.parametrize("case", ["stt_clip_style", "stt_frozen_in_time_gated"])
def test_gradient_checkpointing_changes_nothing(case: str) -> None:
    video = as_video(golden_case(case)["in.x"])
    results = []
    for checkpointing in (False, True):
        model = golden_model(case, gradient_checkpointing=checkpointing, drop_path=0.5).train()
        torch.manual_seed(0)  # the recomputed blocks must drop the same branches
        out = model(video)
        out.square().sum().backward()
        results.append((out.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (out, grads), (out_again, grads_again) = results
    assert torch.equal(out, out_again)
    for name, grad in grads.items():
        assert grad is not None
        torch.testing.assert_close(grads_again[name], grad, rtol=1e-6, atol=1e-6, msg=name)


def test_gradient_checkpointing_recomputes_blocks() -> None:
    video = torch.randn(1, 3, 3, 16, 16)
    for checkpointing, calls in ((False, 2), (True, 4)):
        model = TimeSformer(dataclasses.replace(TINY, gradient_checkpointing=checkpointing))
        seen: list[int] = []
        for block in blocks_of(model):
            block.norm1.register_forward_hook(lambda *_: seen.append(1))  # noqa: B023 - used within this turn
        model(video).sum().backward()
        assert len(seen) == calls


def test_small_models_keep_more_and_get_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, video = TimeSformer(dataclasses.replace(TINY, zero_time_attention=False)), torch.randn(2, 3, 3, 16, 16)
    grads, kept = [], []
    for small in (0, 1 << 20):
        monkeypatch.setattr(timesformer, "SMALL_BYTES", small)
        kept.append(0)

        def count(tensor: Tensor) -> Tensor:
            kept[-1] += 1
            return tensor

        model.zero_grad(set_to_none=True)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            out = model(video).square().sum()
        out.backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert kept[0] < kept[1]
    for name, grad in grads[0].items():
        assert grad is not None and torch.equal(grad, grads[1][name]), name


def test_drop_path_drops_in_training_only_and_most_in_the_last_block() -> None:
    model = TimeSformer(dataclasses.replace(TINY, depth=3, drop_path=0.4))
    assert [block.drop_path.drop_prob for block in blocks_of(model)] == pytest.approx([0.0, 0.2, 0.4])
    video = torch.randn(4, 3, 3, 16, 16)
    with torch.no_grad():
        assert not torch.equal(model(video), model(video))
        model.eval()
        assert torch.equal(model(video), model(video))


def test_drop_path_drops_whole_clips_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropped = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    clips = dropped.flatten(1)
    assert bool((clips == clips[:, :1]).all())
    assert clips[:, 0].unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert clips.mean().item() == pytest.approx(1.0, abs=0.05)  # five standard deviations


@pytest.mark.parametrize("gated", [False, True])
def test_zero_time_attention_starts_blind_to_frame_order_yet_learns_it(gated: bool) -> None:
    torch.manual_seed(0)
    model = TimeSformer(dataclasses.replace(TINY, gated_time_attention=gated, zero_time_attention=True))
    video = torch.randn(2, 3, 3, 16, 16)
    both_ways = torch.cat([video, video.flip(2)])
    forward = torch.tensor([1.0, 1.0, 0.0, 0.0])

    def scores() -> Tensor:
        out: Tensor = model(both_ways)
        return out[:, 0]

    with torch.no_grad():
        torch.testing.assert_close(scores()[:2], scores()[2:])
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        torch.autograd.backward(torch.nn.functional.binary_cross_entropy_with_logits(scores(), forward))
        optimizer.step()
    assert ((scores() > 0) == (forward > 0)).all()
    for name, parameter in model.named_parameters():
        if "timeattn" in name:
            assert not torch.equal(parameter, start[name]), f"{name} never moved"


@pytest.mark.parametrize("gated", [False, True])
def test_without_zero_time_attention_order_matters_from_the_start(gated: bool) -> None:
    torch.manual_seed(0)
    model = TimeSformer(dataclasses.replace(TINY, gated_time_attention=gated, zero_time_attention=False))
    video = torch.randn(2, 3, 3, 16, 16)
    with torch.no_grad():
        assert difference(model(video.flip(2)), model(video)) > 1e-3
    assert blocks_of(model)[0].timeattn.proj.weight.std().item() == pytest.approx(24**-0.5, rel=0.2)


def test_compiles_into_one_graph() -> None:
    model = TimeSformer(TINY).eval()
    video = torch.randn(2, 3, 2, 16, 16)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(video), model(video))


def test_autocast_keeps_the_residual_stream_in_float32() -> None:
    model = TimeSformer(TINY).eval()
    video = torch.randn(2, 3, 3, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.forward_features(video).dtype == torch.float32
        assert model._embed(video).dtype == torch.float32
        assert blocks_of(model)[0].attn.qkv(model._embed(video)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 16, 16), r"4 frames.*1 to 3.*num_frames=4"),
        ((1, 3, 0, 16, 16), "0 frames"),
        ((1, 3, 3, 16, 24), r"16x24.*16x16"),
        ((1, 1, 3, 16, 16), r"\[B, 3, T, 16, 16\]"),
        ((3, 3, 16, 16), r"\[B, 3, T, 16, 16\]"),
    ],
)
def test_wrong_video_shapes_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeSformer(TINY)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 20}, "image_size=20.*patch_size=8.*image_size=16"),
        ({"heads": 5}, "width=24.*heads=5"),
        ({"activation": "relu"}, r"activation='relu'.*\['gelu', 'quick_gelu'\]"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"depth": 0}, "depth=0"),
    ],
)
def test_impossible_configs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize("case", CASES)
def test_the_class_token_alone_is_that_of_all_tokens(case: str) -> None:
    # forward() leaves out what nothing looks at in the last block; outcome, gradients and drops are the same.
    video = as_video(golden_case(case)["in.x"]).double()
    results = []
    for only in (True, False):
        model = golden_model(case, drop_path=0.5).double().train()
        torch.manual_seed(0)
        cls = model(video) if only else model.forward_features(video)[:, 0]
        cls.square().sum().backward()
        results.append((cls.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (cls, grads), (cls_of_all, grads_of_all) = results
    assert difference(cls, cls_of_all) < 1e-12
    for name, grad in grads.items():
        assert grad is not None
        torch.testing.assert_close(grad, grads_of_all[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize(("output", "tokens"), [("forward", 1), ("forward_features", 13)])
def test_the_last_block_works_on_the_tokens_asked_for(output: str, tokens: int) -> None:
    model = TimeSformer(TINY)
    seen: list[int] = []
    for block in blocks_of(model):
        block.mlp.register_forward_hook(lambda _module, _args, out: seen.append(out.shape[1]))
    getattr(model, output)(torch.randn(1, 3, 3, 16, 16))
    assert seen == [13, tokens]


def test_what_a_block_keeps_for_the_backward_pass() -> None:
    # In token sequences [B,S,D]: its input, both attentions' normed input and qkv (1 + 3 each), both sums, the MLP's
    # normed input, and what its first map gives (4). Not: keys and values with class tokens, softmaxes, activations.
    config = dataclasses.replace(TINY, image_size=64, width=32)
    block, x = Block(config, drop_path=0.0), torch.randn(2, 1 + 3 * 64, 32, requires_grad=True)
    parameters = {parameter.data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = block(x, 3)
    sequences = sum(kept.values()) / (x.numel() * 4)
    assert 16 <= sequences < 16.5  # beside them the norms' means and deviations
    out.sum().backward()


def test_compiles_into_one_graph_with_its_gradients() -> None:
    torch.manual_seed(0)
    model = TimeSformer(dataclasses.replace(TINY, zero_time_attention=False))
    video = torch.randn(2, 3, 3, 16, 16)
    model(video).square().sum().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    torch.compile(model, backend="aot_eager", fullgraph=True)(video).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-4, atol=1e-5, msg=name)
