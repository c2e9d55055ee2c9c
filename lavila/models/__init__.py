"""Networks. A model describes itself with `architecture()`; `lavila.checkpoints.store.build_model` makes it again."""
