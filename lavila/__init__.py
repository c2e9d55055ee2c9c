"""LaViLa as a data-loading-centric system on NVIDIA DALI.

    from lavila import load_config, load_model, open_shard_set, ClipLoader

The names are looked up on first use, so that `import lavila` is quick and touches neither torch nor DALI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lavila.version import __version__ as __version__

if TYPE_CHECKING:
    from lavila.checkpoints.store import load_model
    from lavila.config.load import load_config
    from lavila.data.loader import ClipLoader
    from lavila.shards.reader import open_shard_set

__all__ = ["ClipLoader", "load_config", "load_model", "open_shard_set"]


def __getattr__(name: str) -> object:
    match name:
        case "load_config":
            from lavila.config.load import load_config

            return load_config
        case "load_model":
            from lavila.checkpoints.store import load_model

            return load_model
        case "open_shard_set":
            from lavila.shards.reader import open_shard_set

            return open_shard_set
        case "ClipLoader":
            from lavila.data.loader import ClipLoader

            return ClipLoader
    raise AttributeError(f"module 'lavila' has no attribute '{name}'; it has {', '.join(__all__)}")
