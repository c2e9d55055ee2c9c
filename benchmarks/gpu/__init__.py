"""Everything that is to be learnt on a GPU, in one command with a time limit: see `run`."""
