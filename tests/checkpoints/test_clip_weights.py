"""A start from CLIP: names against the reference (remap_keys.json, published layouts), numbers against open_clip."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lavila.checkpoints.clip_weights import (
    ClipWeightsError,
    init_dual_encoder,
    init_tower,
    read_clip_weights,
    visual_name,
)
from lavila.models.dual_encoder import ClipDualEncoder
from lavila.models.text_tower import ClipTextConfig
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from tests.checkpoints.published_files import layouts
from tests.golden_files import golden_json

TOWER = TimeSformerConfig(image_size=32, patch_size=8, width=64, depth=2, heads=1, num_frames=3)
TEXT = ClipTextConfig(vocab_size=60, context_length=10, width=32, depth=2, heads=4)


def tiny_clip() -> nn.Module:
    """open_clip's own model, whose vision heads have 64 channels."""
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=2, width=64, patch_size=8, image_size=32)
    text = open_clip.CLIPTextCfg(context_length=10, vocab_size=60, width=32, heads=4, layers=2)
    model: nn.Module = open_clip.CLIP(20, vision, text, quick_gelu=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:  # biases and norms away from their 0 and 1
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def ours(embed_dim: int = 20, *, tower: TimeSformerConfig = TOWER) -> ClipDualEncoder:
    return ClipDualEncoder(TimeSformer(tower), text=TEXT, embed_dim=embed_dim).eval()


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    return tiny_clip()


@pytest.fixture
def saved(clip: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "clip.pt"
    torch.save(clip.state_dict(), path)
    return path


def test_names_equal_the_references_mapping() -> None:
    golden = golden_json("models/remap_keys")
    assert len(golden["mapping"]) == 151
    for theirs, wanted in golden["mapping"].items():
        assert visual_name(theirs) == wanted
    for theirs in golden["dropped"]:
        assert visual_name(theirs) is None


@pytest.mark.parametrize(
    ("layout", "tower", "text"),
    [
        ("OPENAI_CLIP_ViT-B16", TimeSformerConfig(), ClipTextConfig()),
        (
            "OPENAI_CLIP_ViT-L14_336px",
            TimeSformerConfig(image_size=336, patch_size=14, width=1024, depth=24, heads=16),
            ClipTextConfig(width=768, heads=12),
        ),
    ],
)
def test_published_clips_fit_strictly(layout: str, tower: TimeSformerConfig, text: ClipTextConfig) -> None:
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in layouts()[layout]["tensors"].items()}
        model = ClipDualEncoder(TimeSformer(tower), text=text, embed_dim=256)
    init_dual_encoder(model, weights)
    del weights["visual.ln_pre.bias"]
    with pytest.raises(ClipWeightsError, match=r"visual\.ln_pre\.bias"):
        init_dual_encoder(model, weights)


def test_text_and_pictures_equal_open_clips(clip: Any, saved: Path) -> None:
    model = ours()
    init_dual_encoder(model, read_clip_weights(saved))
    tokens, pictures = torch.randint(1, 60, (5, 10)), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(tokens), clip.encode_text(tokens), rtol=1e-5, atol=1e-5)
        # A clip of one frame is a picture. The blocks' norms have another epsilon than CLIP's: 1e-6 for 1e-5.
        embed = model.encode_video(pictures[:, :, None])
        torch.testing.assert_close(embed, clip.encode_image(pictures), rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(model.logit_scale, clip.logit_scale)


def test_time_keeps_its_zero_start(saved: Path) -> None:
    model = ours()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    init_dual_encoder(model, read_clip_weights(saved))
    kept = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    wanted = {f"visual.{name}" for name in model.visual.state_dict() if "time" in name or ".norm3." in name}
    wanted |= {"visual.temporal_embed"}
    assert kept == wanted
    video = torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_video(video.flip(2)), model.encode_video(video), rtol=1e-4, atol=1e-4)
        assert not model.visual.temporal_embed.any()


@pytest.mark.parametrize("gated", [False, True])
def test_a_tower_alone_is_filled(saved: Path, gated: bool) -> None:
    tower, model = TimeSformer(dataclasses.replace(TOWER, gated_time_attention=gated)).eval(), ours()
    weights = read_clip_weights(saved)
    init_tower(tower, weights)
    init_dual_encoder(model, weights)
    video = torch.randn(1, 3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tower(video), model.visual(video))


def test_another_embedding_width_keeps_its_own_projections(saved: Path) -> None:
    model = ours(12)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = read_clip_weights(saved)
    init_dual_encoder(model, weights)
    for name in ("image_projection", "text_projection", "logit_scale"):
        assert torch.equal(model.state_dict()[name], before[name])
    for name in ("positional_embedding", "token_embedding.weight", "transformer.resblocks.1.attn.in_proj_weight"):
        assert torch.equal(model.state_dict()[name], weights[name])


def test_every_kind_of_file_gives_the_same_float32_weights(clip: Any, tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in clip.state_dict().items()}
    extras = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save({**state, **extras}, tmp_path / "plain.pt")
    save_file(state, tmp_path / "weights.safetensors")
    half = tiny_clip()
    with torch.no_grad():
        for name, parameter in half.named_parameters():
            parameter.copy_(state[name])
    inputs = (torch.randn(1, 3, 32, 32), torch.randint(1, 60, (1, 10)))
    torch.jit.trace(half, inputs).save(tmp_path / "archive.pt")  # the form of OpenAI's own files
    wanted = {name: tensor.float() for name, tensor in state.items() if name != "attn_mask"}
    for name in ("plain.pt", "weights.safetensors", "archive.pt"):
        weights = read_clip_weights(tmp_path / name)
        assert weights.keys() == wanted.keys(), name
        for key, tensor in weights.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, wanted[key]), (name, key)


def test_open_clips_names_are_asked_for_the_original_weights(clip: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def create_model(name: str, *, pretrained: str, **_: Any) -> nn.Module:
        asked.append((name, pretrained))
        return clip

    monkeypatch.setattr(open_clip, "create_model", create_model)
    weights = read_clip_weights("ViT-B-16")
    assert asked == [("ViT-B-16", "openai")]
    init_dual_encoder(ours(), weights)


def test_weights_that_are_nowhere_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClipWeightsError, match=r"nothing\.pt'.*ViT-B-16"):
        read_clip_weights(tmp_path / "nothing.pt")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no\nnetwork")))
    with pytest.raises(ClipWeightsError, match=r"'ViT-L-14'.*network") as error:
        read_clip_weights("ViT-L-14")
    assert "\n" not in str(error.value)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_files_of_another_kind_are_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"junk")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    torch.save({"weight": Malicious(tmp_path / "ran")}, tmp_path / "pickle.pt")
    reasons = {
        "junk.pt": r"torch\.save",
        "junk.safetensors": "header",
        "pickle.pt": "getattr",
    }
    for name, why in reasons.items():
        with pytest.raises(ClipWeightsError, match=rf"{name}.*{why}") as error:
            read_clip_weights(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "training.pt")
    with pytest.raises(ClipWeightsError, match=r"training\.pt"):
        read_clip_weights(tmp_path / "training.pt")


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        (
            dataclasses.replace(TOWER, depth=3),
            r"visual\.blocks\.2\.norm1\.weight",
        ),
        (dataclasses.replace(TOWER, depth=1), r"visual\.blocks\.1\.attn\.qkv\.weight"),
        (dataclasses.replace(TOWER, image_size=16), r"pos_embed \[1, 17, 64\].*\[1, 5, 64\]"),
        (dataclasses.replace(TOWER, pre_norm=False), "pre_norm=True.*activation='quick_gelu'"),
        (dataclasses.replace(TOWER, activation="gelu"), "pre_norm=True.*activation='quick_gelu'"),
    ],
)
def test_towers_of_another_shape_are_refused_and_left_alone(
    saved: Path, tower: TimeSformerConfig, message: str
) -> None:
    model = ours(tower=tower)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ClipWeightsError, match=message):
        init_dual_encoder(model, read_clip_weights(saved))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_without_a_picture_tower_are_refused(saved: Path) -> None:
    weights: dict[str, Tensor] = read_clip_weights(saved)
    text = {name: tensor for name, tensor in weights.items() if not name.startswith("visual.")}
    with pytest.raises(ClipWeightsError, match=r"visual\.cls_token"):
        init_dual_encoder(ours(), text)
