"""Files that hold models: our own, the published ones, and their download."""
