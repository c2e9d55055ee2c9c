"""Dual encoders against figures of the reference (tests/golden/models/clip_*), and what they promise beyond them.

Tolerances: largest difference over largest value. The golden float32 outputs are themselves 4e-7 away from float64.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from lavila.models.dual_encoder import ClipDualEncoder, DistilBertDualEncoder, DualEncoder, Projection
from lavila.models.text_tower import ClipTextConfig, DistilBertTextConfig
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from tests.golden_files import GOLDEN, golden_json
from tests.models.golden_towers import difference, tower_config

CASES = ("clip_dual_encoder", "clip_hf_default", "clip_hf_frozen_in_time")
TINY = TimeSformerConfig(image_size=16, patch_size=8, width=24, depth=1, heads=2, num_frames=3)
TINY_CLIP = ClipTextConfig(vocab_size=50, context_length=12, width=16, depth=2, heads=2)
TINY_BERT = DistilBertTextConfig(
    vocab_size=50, context_length=12, width=16, depth=2, heads=2, hidden_width=32, dropout=0.2
)
BASE = TimeSformerConfig()
LARGE = TimeSformerConfig(patch_size=14, width=1024, depth=24, heads=16)
EGOVLP = TimeSformerConfig(pre_norm=False, activation="gelu")
LARGE_TEXT = ClipTextConfig(width=768, heads=12)
BERT = DistilBertTextConfig()


def golden_model(case: str, **changes: Any) -> DualEncoder:
    about = golden_json(f"models/{case}")
    tower = TimeSformer(tower_config(about["vision"]))
    model: DualEncoder
    if "projection" not in about:
        args = about["constructor_args"]
        text = ClipTextConfig(
            vocab_size=args["vocab_size"],
            width=args["transformer_width"],
            depth=args["transformer_layers"],
            heads=args["transformer_heads"],
            **changes,
        )
        model = ClipDualEncoder(tower, text=text, embed_dim=args["embed_dim"])
    else:
        args = about["distilbert_config"]
        bert = DistilBertTextConfig(
            vocab_size=args["vocab_size"],
            context_length=args["max_position_embeddings"],
            width=args["dim"],
            depth=args["n_layers"],
            heads=args["n_heads"],
            hidden_width=args["hidden_dim"],
            **changes,
        )
        projection: Projection = "matrices" if about["projection"] == "default" else "frozen_in_time"
        model = DistilBertDualEncoder(tower, text=bert, embed_dim=about["embed_dim"], projection=projection)
    model.load_state_dict(load_file(GOLDEN / f"models/{case}.params.safetensors"))
    return model.eval()


def golden_case(case: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"models/{case}.cases.safetensors")


def contrastive(outputs: dict[str, Tensor]) -> Tensor:
    logits = outputs["temperature_scale"] * outputs["video_embed"] @ outputs["text_embed"].T
    targets = torch.arange(len(logits))
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


def tiny(kind: str) -> DualEncoder:
    if kind == "clip":
        return ClipDualEncoder(TimeSformer(TINY), text=TINY_CLIP, embed_dim=8)
    projection: Projection = "matrices" if kind == "matrices" else "frozen_in_time"
    return DistilBertDualEncoder(TimeSformer(TINY), text=TINY_BERT, embed_dim=8, projection=projection)


KINDS = ("clip", "matrices", "frozen_in_time")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("out", "tolerance"), [("out", 1e-5), ("out64", 1e-12)])
def test_embeddings_equal_the_reference(case: str, out: str, tolerance: float) -> None:
    golden = golden_case(case)
    model = golden_model(case).to(golden[f"{out}.raw.text_embed"].dtype)
    video = golden["in.video"].to(model.logit_scale.dtype)
    with torch.no_grad():
        assert difference(model.encode_video(video), golden[f"{out}.raw.image_embed"]) < tolerance
        text = model.encode_text(golden["in.text"], golden.get("in.mask"))
        assert difference(text, golden[f"{out}.raw.text_embed"]) < tolerance


@pytest.mark.parametrize("case", CASES)
def test_forward_gives_the_references_unit_vectors_and_temperature(case: str) -> None:
    golden, model = golden_case(case), golden_model(case)
    with torch.no_grad():
        outputs = model(golden["in.video"], golden["in.text"], golden.get("in.mask"))
        feature = model.visual(golden["in.video"])
    assert outputs.keys() == {"video_embed", "text_embed", "temperature_scale"}
    assert difference(outputs["video_embed"], golden["out.normed.image_embed"]) < 1e-5
    assert difference(outputs["text_embed"], golden["out.normed.text_embed"]) < 1e-5
    assert difference(outputs["temperature_scale"], golden["out.logit_scale"]) < 1e-6
    assert difference(feature, golden["out.image_no_project"]) < 1e-5


@pytest.mark.parametrize("case", CASES[1:])
def test_distilbert_without_a_mask_reads_padding_as_the_reference_does(case: str) -> None:
    golden, model = golden_case(case), golden_model(case)
    assert isinstance(model, DistilBertDualEncoder)
    with torch.no_grad():
        assert difference(model.encode_text(golden["in.text"]), golden["out.text_embed_without_mask"]) < 1e-5
        places = torch.arange(golden["in.text"].shape[1])[None]
        hidden = model.textual(golden["in.text"], attention_mask=golden["in.mask"].bool(), position_ids=places)[0]
    counts = golden["in.mask"] > 0
    assert difference(hidden[counts], golden["out.text_last_hidden_state"][counts]) < 1e-5


def test_loss_and_gradient_norms_equal_the_reference() -> None:
    golden, model = golden_case("clip_dual_encoder"), golden_model("clip_dual_encoder")
    expected = golden_json("models/clip_dual_encoder")["contrastive"]
    loss = contrastive(model(golden["in.video"], golden["in.text"]))
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    ours = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]
    assert ours.keys() == expected["grad_norms"].keys()
    for name, norm in expected["grad_norms"].items():
        assert ours[name] == pytest.approx(norm, rel=2e-5), name


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_slope_of_the_loss(case: str) -> None:
    golden, model = golden_case(case), golden_model(case).double()
    inputs = (golden["in.video"].double(), golden["in.text"], golden.get("in.mask"))
    contrastive(model(*inputs)).backward()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    parameters = [p for name, p in model.named_parameters() if not name.startswith("visual.")]
    steps = [1e-5 * p.detach().abs().mean() * torch.randn_like(p) for p in parameters]
    slope = sum((p.grad * step).sum().item() for p, step in zip(parameters, steps, strict=True))  # type: ignore[operator]
    losses = []
    with torch.no_grad():
        for factor in (1.0, -2.0):  # one step up, then one down from where it began
            for parameter, step in zip(parameters, steps, strict=True):
                parameter += factor * step
            losses.append(contrastive(model(*inputs)).item())
    assert (losses[0] - losses[1]) / 2 == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("frames", [1, 3])
def test_short_clips_are_the_towers_feature_projected(case: str, frames: int) -> None:
    golden, model = golden_case(case), golden_model(case)
    short = golden["in.video"][:, :, :frames]
    with torch.no_grad():
        feature, embed = model.visual(short), model.encode_video(short)
        projection = load_file(GOLDEN / f"models/{case}.params.safetensors")
        if "image_projection" in projection:
            expected = feature @ projection["image_projection"]
        else:
            expected = feature @ projection["image_projection.0.weight"].T + projection["image_projection.0.bias"]
        assert difference(embed, expected) < 1e-6
        assert difference(embed, model.encode_video(golden["in.video"])) > 1e-3


def test_clip_text_is_read_at_the_largest_id_and_sees_nothing_after_it() -> None:
    golden, model = golden_case("clip_dual_encoder"), golden_model("clip_dual_encoder")
    ends = golden_json("models/clip_dual_encoder")["text_eot_positions"]
    tokens = golden["in.text"]
    assert tokens.argmax(-1).tolist() == ends
    noisy = tokens.clone()
    for row, end in enumerate(ends):
        noisy[row, end + 1 :] = 7
        noisy[row, end + 1] = tokens[row].max()  # a second end, as in a text that names the token
    with torch.no_grad():
        embed = model.encode_text(tokens)
        assert difference(model.encode_text(noisy), embed) < 1e-6
        assert difference(model.encode_text(tokens[:, : max(ends) + 1]), embed) < 1e-6
        assert difference(model.encode_text(tokens.roll(1, 0)), embed.roll(1, 0)) < 1e-6
        noisy[:, 0] = 7
        assert difference(model.encode_text(noisy), embed) > 1e-2


@pytest.mark.parametrize("case", CASES[1:])
def test_masked_padding_changes_nothing(case: str) -> None:
    golden, model = golden_case(case), golden_model(case)
    tokens, mask = golden["in.text"], golden["in.mask"]
    noisy = torch.where(mask > 0, tokens, torch.full_like(tokens, 9))
    assert not torch.equal(noisy, tokens)
    with torch.no_grad():
        embed = model.encode_text(tokens, mask)
        for same in (mask.bool(), mask.long()):
            assert torch.equal(model.encode_text(tokens, same), embed)
        assert difference(model.encode_text(noisy, mask), embed) < 1e-6


def test_a_gated_frozen_in_time_tower_has_its_gates() -> None:
    gated = dataclasses.replace(TINY, gated_time_attention=True, pre_norm=False, activation="gelu")
    model = DistilBertDualEncoder(TimeSformer(gated), text=TINY_BERT, embed_dim=8, projection="frozen_in_time")
    assert model.state_dict()["visual.blocks.0.alpha_timeattn"].shape == ()
    assert "visual.patch_embed.proj.bias" in model.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_built_without_memory_and_given_weights_is_the_same_model(kind: str) -> None:
    model = tiny(kind).eval()
    architecture = json.loads(json.dumps(model.architecture()))  # type: ignore[operator]
    with torch.device("meta"):
        again = type(model).from_architecture(architecture)  # type: ignore[attr-defined]
    again.load_state_dict(model.state_dict(), assign=True)
    again = again.eval().to("cpu")  # refuses where anything is left on the meta device
    assert again.architecture() == model.architecture()  # type: ignore[operator]
    inputs = (torch.randn(2, 3, 3, 16, 16), torch.randint(1, 50, (2, 12)), torch.ones(2, 12))
    with torch.no_grad():
        for name, output in model(*inputs).items():
            assert torch.equal(again(*inputs)[name], output), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_has_temperature_and_features_of_sane_size(kind: str) -> None:
    torch.manual_seed(0)
    model = tiny(kind).eval()
    assert model.temperature_scale().item() == pytest.approx(1 / 0.07)
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    with torch.no_grad():
        video = model.encode_video(torch.randn(16, 3, 3, 16, 16))
        text = model.encode_text(torch.randint(1, 50, (16, 12)))
    for embed in (video, text):
        assert 0.1 < embed.std().item() < 10


@pytest.mark.parametrize("case", CASES)
def test_gradient_checkpointing_recomputes_the_text_and_changes_nothing(case: str) -> None:
    golden = golden_case(case)
    results = []
    for checkpointing, calls in ((False, 1), (True, 2)):
        model = golden_model(case, gradient_checkpointing=checkpointing).train()
        if isinstance(model, ClipDualEncoder):
            inner = model.transformer.resblocks[0].get_submodule("ln_1")
        else:
            assert isinstance(model, DistilBertDualEncoder)
            inner = model.textual.get_submodule("transformer.layer.0.attention.q_lin")
        seen: list[int] = []
        inner.register_forward_hook(lambda *_: seen.append(1))  # noqa: B023 - used within this turn
        torch.manual_seed(0)  # the recomputed layers must drop the same channels
        embed = model.encode_text(golden["in.text"], golden.get("in.mask"))
        embed.square().sum().backward()  # type: ignore[no-untyped-call]
        assert len(seen) == calls
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((embed.detach(), grads))
    (embed, grads), (embed_again, grads_again) = results
    assert torch.equal(embed, embed_again)
    assert grads.keys() == grads_again.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grads_again[name], grad, rtol=1e-6, atol=1e-6, msg=name)


def test_dropout_acts_in_training_only() -> None:
    model = tiny("matrices").train()
    tokens = torch.randint(1, 50, (2, 12))
    with torch.no_grad():
        assert not torch.equal(model.encode_text(tokens), model.encode_text(tokens))
        model.eval()
        assert torch.equal(model.encode_text(tokens), model.encode_text(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_unit_vectors_stay_in_the_weights_type(kind: str) -> None:
    model = tiny(kind).eval()
    inputs = (torch.randn(4, 3, 3, 16, 16), torch.randint(1, 50, (4, 12)))
    with torch.no_grad():
        full = model(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(*inputs)
    for name in ("video_embed", "text_embed"):
        assert half[name].dtype == torch.float32
        assert difference(half[name].norm(dim=-1), torch.ones(4)) < 1e-6
        assert 0 < difference(half[name], full[name]) < 0.05


def test_clip_text_compiles_into_one_graph() -> None:
    model = tiny("clip").eval()
    tokens = torch.randint(1, 50, (3, 12))
    with torch.no_grad():
        compiled = torch.compile(model.encode_text, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(tokens), model.encode_text(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_tokens_are_refused(kind: str) -> None:
    model = tiny(kind)
    with pytest.raises(ValueError, match=r"\(2, 13\).*\[B, L\].*1.*12"):
        model.encode_text(torch.zeros(2, 13, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(12,\)"):
        model.encode_text(torch.zeros(12, dtype=torch.int64))
    if kind != "clip":
        with pytest.raises(ValueError, match=r"\(2, 5\).*\(2, 6\)"):
            model.encode_text(torch.zeros(2, 6, dtype=torch.int64), torch.ones(2, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_architectures_of_other_versions_are_refused(kind: str) -> None:
    model = tiny(kind)
    build = type(model).from_architecture  # type: ignore[attr-defined]
    architecture = model.architecture()  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"'colour'.*'embed_dim'"):
        build({**architecture, "colour": 1})
    with pytest.raises(ValueError, match=r"\['depth'\].*\['layers'\]"):
        text = {name: value for name, value in architecture["text"].items() if name != "depth"}
        build({**architecture, "text": {**text, "layers": 2}})


def test_impossible_models_are_refused() -> None:
    tower = TimeSformer(TINY)
    with pytest.raises(ValueError, match="embed_dim=0"):
        ClipDualEncoder(tower, text=TINY_CLIP, embed_dim=0)
    with pytest.raises(ValueError, match=r"temperature=0\.0"):
        ClipDualEncoder(tower, text=TINY_CLIP, embed_dim=8, temperature=0.0)
    with pytest.raises(ValueError, match=r"projection='mlp'.*\['frozen_in_time', 'matrices'\]"):
        DistilBertDualEncoder(tower, text=TINY_BERT, embed_dim=8, projection="mlp")  # type: ignore[arg-type]
