"""LaViLa as a data-loading-centric system on NVIDIA DALI.

    from lavila import load_config, load_model, open_shard_set, ClipLoader

The names are looked up on first use, so that `import lavila` is quick and touches neither torch nor DALI.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lavila.checkpoints.store import load_model
    from lavila.config.load import load_config
    from lavila.data.loader import ClipLoader
    from lavila.shards.reader import open_shard_set

__all__ = ["ClipLoader", "load_config", "load_model", "open_shard_set"]

_HOME = {
    "load_config": "lavila.config.load",
    "load_model": "lavila.checkpoints.store",
    "open_shard_set": "lavila.shards.reader",
    "ClipLoader": "lavila.data.loader",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'lavila' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)
