"""Writes shard sets, once: source videos and clips -> tars and tables."""
