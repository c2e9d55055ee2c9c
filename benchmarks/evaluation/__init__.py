"""How fast models are scored."""
