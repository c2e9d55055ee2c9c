"""Whether a shard set is sound, and what is in it."""
