"""Classifiers against the reference's logits (tests/golden/models/video_classifiers.*)."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from lavila.models.classifier import VideoClassifier
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from tests.golden_files import GOLDEN

TINY = TimeSformerConfig(image_size=32, patch_size=8, width=48, depth=3, heads=4, num_frames=4)


@pytest.mark.parametrize(("which", "num_classes"), [("single", (11,)), ("multi", (5, 7, 11))])
def test_logits_equal_the_reference(which: str, num_classes: tuple[int, ...]) -> None:
    params = load_file(GOLDEN / "models/video_classifiers.params.safetensors")
    cases = load_file(GOLDEN / "models/video_classifiers.cases.safetensors")
    state = {name.removeprefix(f"{which}."): p for name, p in params.items() if name.startswith((which, "visual."))}
    model = VideoClassifier(TimeSformer(TINY), num_classes=num_classes, dropout=0.5).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        logits = model(cases["in.video"])
    if which == "single":
        assert isinstance(logits, torch.Tensor)
        torch.testing.assert_close(logits, cases["out.single.logits"], rtol=1e-5, atol=1e-5)
    else:
        assert isinstance(logits, tuple)
        assert len(logits) == 3
        for i, head in enumerate(logits):
            torch.testing.assert_close(head, cases[f"out.multi.logits_{i}"], rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    model = VideoClassifier(TimeSformer(TINY), num_classes=(5,), dropout=0.5)
    video = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model(video), model(video))
        model.eval()
        assert torch.equal(model(video), model(video))


@pytest.mark.parametrize(("num_classes", "dropout"), [((), 0.5), ((3, 0), 0.5), ((3,), 1.0), ((3,), -0.1)])
def test_impossible_heads_are_refused(num_classes: tuple[int, ...], dropout: float) -> None:
    with pytest.raises(ValueError, match=r"num_classes=|dropout="):
        VideoClassifier(TimeSformer(TINY), num_classes=num_classes, dropout=dropout)


def test_the_best_classes_of_half_precision_do_not_tie() -> None:
    """In bf16 many of 3,806 logits are equal, and a tie counts as a wrong answer."""
    torch.manual_seed(0)
    model = VideoClassifier(TimeSformer(TINY), num_classes=(3806, 97), dropout=0.0).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.randn(4, 3, 4, 32, 32))
    assert all(head.dtype == torch.float32 for head in logits)
    assert all(len(clip.unique()) > 3700 for clip in logits[0])
