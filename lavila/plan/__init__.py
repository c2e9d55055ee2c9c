"""The plan of every step: clips, frames and crops, in plain numpy."""
