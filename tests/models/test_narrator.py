"""Narrators against figures of the reference (tests/golden/models), and what they promise beyond them.

Tolerances: largest difference over largest value. The golden float32 outputs are themselves 1e-6 away from float64.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from lavila.engine.optim import freeze
from lavila.models.gated_gpt2 import GatedGpt2Config
from lavila.models.generation import Narrations
from lavila.models.narrator import CONSTANT_BUFFERS, Narrator
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from tests.golden_files import GOLDEN, golden_json
from tests.models.golden_towers import difference, tower_config

CASES = ("vclm_freq1", "vclm_freq1_ungated", "vclm_freq2", "vclm_freq3")
TSF_L = TimeSformerConfig(patch_size=14, width=1024, depth=24, heads=16, num_frames=4)
GPT2_XL = {"width": 1600, "depth": 48, "heads": 25}


def narrator_of(case: str) -> Narrator:
    golden = golden_json(f"models/{case}")
    vision, text, head = golden["vision"], golden["gpt2_config"], golden["head"]
    tower = TimeSformer(tower_config(vision))
    decoder = GatedGpt2Config(
        vocab_size=text["vocab_size"],
        positions=text["n_positions"],
        width=text["n_embd"],
        depth=text["n_layer"],
        heads=text["n_head"],
        cross_attention_every=text["cross_attn_freq"],
        gated=text["gated_xattn"],
        end_token=golden["eos_token_id"],
        pad_token=golden["pad_token_id"],
        dropout=0.0,
    )
    sizes = {"pooler_heads": head["heads"], "pooler_head_width": head["dim_head"]}
    return Narrator(tower, decoder, queries=head["num_img_queries"], **sizes)


def golden_narrator(case: str) -> Narrator:
    narrator = narrator_of(case)
    state = load_file(GOLDEN / f"models/{case}.params.safetensors")
    narrator.load_state_dict({name: tensor for name, tensor in state.items() if not CONSTANT_BUFFERS.search(name)})
    return narrator.eval()


def golden_case(case: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"models/{case}.cases.safetensors")


def assert_scored(found: Narrations, golden: dict[str, Tensor], name: str) -> None:
    """The likeliest tokens exactly; perplexities and each step's nll to 1e-5."""
    assert torch.equal(found.tokens[:, 0], golden[f"out.{name}.{'ids_top1' if name == 'teacher' else 'ids'}"])
    assert difference(found.nll[:, 0].exp(), golden[f"out.{name}.ppl"]) < 1e-5
    assert found.step_nll is not None
    assert difference(found.step_nll[:, 0], golden[f"out.{name}.nll"]) < 1e-5


def assert_sampled(found: Narrations, golden: dict[str, Tensor], name: str) -> None:
    """Token ids exactly, as far as the reference gives them; the perplexities that it computes from entropy to 1e-5."""
    theirs = golden[f"out.{name}.ids"]
    assert torch.equal(found.tokens.flatten(0, 1)[:, : theirs.shape[1]], theirs)
    assert found.entropy is not None
    assert difference(found.entropy.flatten().exp(), golden[f"out.{name}.ppl"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_the_reference(case: str) -> None:
    narrator, golden = golden_narrator(case), golden_case(case)
    video, text = golden["in.video"], golden["in.text"]
    with torch.no_grad():
        assert difference(narrator.visual.forward_features(video), golden["out.visual_tokens"]) < 1e-5
        assert difference(narrator.encode_video(video), golden["out.image_tokens"]) < 1e-5
        logits_BVL = narrator(video, text[:, :-1]).transpose(1, 2)
        assert difference(logits_BVL, golden["out.text_tokens_logits"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_float64_equals_the_reference_in_float64(case: str) -> None:
    narrator, golden = golden_narrator(case).double(), golden_case(case)
    video, text = golden["in.video"].double(), golden["in.text"]
    with torch.no_grad():
        assert difference(narrator.encode_video(video), golden["out64.image_tokens"]) < 1e-12
        logits_BVL = narrator(video, text[:, :-1]).transpose(1, 2)
        assert difference(logits_BVL, golden["out64.text_tokens_logits"]) < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_caption_loss_and_its_gradients_equal_the_reference(case: str) -> None:
    narrator, golden, figures = golden_narrator(case), golden_case(case), golden_json(f"models/{case}")
    text = golden["in.text"]
    logits_BVL = narrator(golden["in.video"], text[:, :-1]).transpose(1, 2)
    # The reference averages over all places of the text, the padded ones too, which count as zeros.
    loss = cross_entropy(logits_BVL, text[:, 1:], ignore_index=figures["pad_token_id"], reduction="none").mean()
    assert loss.item() == pytest.approx(figures["caption_loss"]["loss"], rel=1e-6)
    torch.autograd.backward(loss)
    norms = figures["caption_loss_grad_norms"]
    ours = {name: parameter.grad.norm().item() for name, parameter in narrator.named_parameters()}  # type: ignore[union-attr]
    assert ours.keys() == norms.keys()
    for name, norm in norms.items():
        assert ours[name] == pytest.approx(norm, rel=1e-4), name


@pytest.mark.parametrize("case", CASES)
def test_greedy_texts_equal_the_reference(case: str) -> None:
    narrator, golden, figures = golden_narrator(case), golden_case(case), golden_json(f"models/{case}")
    video, lengths = golden["in.video"], figures["max_text_length"]
    visual = narrator.encode_video(video).detach()
    found = narrator.generate(video, top_k=1, max_length=lengths["greedy"], early_stopping=False)
    assert_sampled(found, golden, "greedy")
    texts, ends = found.ids(), figures["greedy_first_eos_position"]
    assert [texts[clip][0] for clip in range(3)] == figures["decoded_token_ids"]["greedy"]
    assert found.step_entropy is not None
    assert (found.step_entropy[:, 0] > 0).sum(1).tolist() == ends  # place 0 is no step: the end token is counted

    found = narrator.generate(visual, top_k=1, max_length=lengths["greedy"])
    assert found.entropy is not None
    assert difference(found.entropy[:, 0].exp(), golden["out.greedy_early_stop.ppl"]) < 1e-5
    # The reference loses the tokens of the last step, and then its text decoder drops one more. Ours keeps them.
    theirs = golden["out.greedy_early_stop.ids"]
    assert found.tokens.shape[2] == theirs.shape[1] + 1 == max(ends) + 1
    assert found.ids() == texts
    for clip, end in enumerate(ends):
        assert torch.equal(found.tokens[clip, 0, : end + 1][: theirs.shape[1]], theirs[clip, : end + 1])
        assert found.tokens[clip, 0, end] == figures["eos_token_id"]

    found = narrator.generate(
        visual,
        top_k=1,
        temperature=0.7,
        num_return_sequences=2,
        max_length=lengths["greedy_2seq"],
        early_stopping=False,
    )
    assert found.tokens.shape[:2] == (3, 2)
    assert_sampled(found, golden, "greedy_2seq_t07")


@pytest.mark.parametrize("case", CASES)
def test_scores_of_given_texts_equal_the_reference(case: str) -> None:
    narrator, golden = golden_narrator(case), golden_case(case)
    video, text = golden["in.video"], golden["in.text"]
    assert_scored(narrator.score(video, text), golden, "teacher")
    assert_scored(narrator.score(video, text, teacher_forcing=False), golden, "free_with_target")


@pytest.mark.parametrize("case", CASES)
def test_group_beam_search_equals_the_reference(case: str) -> None:
    narrator, golden, figures = golden_narrator(case), golden_case(case), golden_json(f"models/{case}")
    options = {name: figures["group_beam"][name] for name in ("num_beams", "num_beam_groups", "num_return_sequences")}
    found = narrator.generate(golden["in.video"], max_length=figures["max_text_length"]["group_beam"], **options)
    assert torch.equal(found.tokens.flatten(0, 1), golden["out.group_beam.sequences"])
    assert found.beam_score is not None
    assert difference(found.beam_score.flatten(), golden["out.group_beam.scores"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_freezing_leaves_what_the_recipe_trains(case: str) -> None:
    narrator = narrator_of(case)
    freeze(narrator, ["video", "language_model"])
    trained = {name for name, parameter in narrator.named_parameters() if parameter.requires_grad}
    assert trained == set(golden_json(f"models/{case}")["trainable_after_narrator_freeze"])


@pytest.mark.parametrize(("space", "time"), [(True, False), (False, True)])
def test_the_parts_of_the_tower_freeze_apart(space: bool, time: bool) -> None:
    narrator = narrator_of("vclm_freq2")
    freeze(narrator, ["video_space"] * space + ["video_time"] * time)
    frozen = {name for name, parameter in narrator.named_parameters() if not parameter.requires_grad}
    temporal = {
        name for name, _ in narrator.named_parameters() if "time" in name or "temporal" in name or ".norm3." in name
    }
    assert len(temporal) == 1 + 3 * 6
    tower = {name for name, _ in narrator.named_parameters() if name.startswith("visual.")}
    assert frozen == (temporal if time else tower - temporal)


@pytest.mark.parametrize("case", CASES)
def test_buffers_left_out_are_the_constants_that_the_reference_stores(case: str) -> None:
    state = load_file(GOLDEN / f"models/{case}.params.safetensors")
    stored = {name: tensor for name, tensor in state.items() if CONSTANT_BUFFERS.search(name)}
    ours = narrator_of(case).constant_buffers()
    assert ours.keys() == stored.keys()
    for name, tensor in stored.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


def test_architecture_is_json_and_builds_the_same_narrator() -> None:
    narrator = golden_narrator("vclm_freq3")
    described = json.loads(json.dumps(narrator.architecture()))
    again = Narrator.from_architecture(described)
    assert again.architecture() == narrator.architecture()
    again.load_state_dict(narrator.state_dict())
    video, tokens = torch.randn(1, 3, 2, 32, 32), torch.tensor([[3, 1, 4]])
    with torch.no_grad():
        assert torch.equal(again.eval()(video, tokens), narrator(video, tokens))


@pytest.mark.parametrize(
    "change", [{"extra": 1}, {"decoder": {"width": 3}}, {"decoder": {**vars(GatedGpt2Config()), "wings": 2}}]
)
def test_an_architecture_of_another_version_is_refused(change: dict[str, Any]) -> None:
    described = {**narrator_of("vclm_freq1").architecture(), **change}
    with pytest.raises(ValueError, match="architecture"):
        Narrator.from_architecture(described)


def test_gates_start_closed_so_that_the_clip_is_not_seen_yet_but_learnt() -> None:
    torch.manual_seed(0)
    narrator = narrator_of("vclm_freq1")
    videos, tokens = torch.randn(2, 3, 4, 32, 32), torch.tensor([[3, 1, 4, 1], [3, 1, 4, 1]])
    logits = narrator(videos, tokens)
    torch.testing.assert_close(logits[0], logits[1])
    freeze(narrator, ["video", "language_model"])
    optimizer = torch.optim.AdamW((p for p in narrator.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(30):  # the same words, then another one for each clip
        optimizer.zero_grad()
        loss = cross_entropy(narrator(videos, tokens)[:, -1], torch.tensor([10, 20]))
        torch.autograd.backward(loss)
        optimizer.step()
    assert narrator(videos, tokens)[:, -1].argmax(-1).tolist() == [10, 20]


@pytest.mark.parametrize(
    ("video", "options", "message"),
    [
        (torch.zeros(1, 3, 4, 32, 32), {"max_length": 97}, "max_length=97.*96"),
        (torch.zeros(1, 7, 32), {}, r"\[B, 8, 32\].*encode_video"),
        (torch.zeros(3, 4, 32, 32), {}, r"\[B, 3, T, 32, 32\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(video: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        narrator_of("vclm_freq1").eval().generate(video, **options)


def test_texts_are_not_made_in_training_mode() -> None:
    with pytest.raises(ValueError, match=r"eval\(\)"):
        narrator_of("vclm_freq1").generate(torch.zeros(1, 8, 32))
