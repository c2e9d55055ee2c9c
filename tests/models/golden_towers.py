"""What the golden model cases have in common: their video towers, and how far two outputs lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lavila.models.timesformer import TimeSformerConfig

OPTIONAL = {"mlp_ratio": "mlp_ratio", "pre_norm": "ln_pre", "gated_time_attention": "is_tanh_gating"}


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest, as a share of the largest value."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def tower_config(args: Mapping[str, Any], **changes: Any) -> TimeSformerConfig:
    """args: of the reference's constructor; what it leaves out is as in CLIP's towers."""
    given: dict[str, Any] = {ours: args[theirs] for ours, theirs in OPTIONAL.items() if theirs in args}
    if "act_layer" in args:
        given["activation"] = {"QuickGELU": "quick_gelu", "GELU": "gelu"}[args["act_layer"]]
    return TimeSformerConfig(
        image_size=args["img_size"],
        patch_size=args["patch_size"],
        width=args["embed_dim"],
        depth=args["depth"],
        heads=args["num_heads"],
        num_frames=args["num_frames"],
        **given,
        **changes,
    )
