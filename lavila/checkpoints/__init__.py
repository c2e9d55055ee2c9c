"""Files that hold models: ours, the published ones, and their download."""
