"""A small video dataset, made out of any footage."""
