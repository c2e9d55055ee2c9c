"""Videos without a shard set: their windows as the input of models, and what a narrator says of them."""
