"""The form of a shard set: reading and writing it."""
