"""The DALI side of the data path: `graph` (the one augment graph), `sources` (its inputs), `runner` (its execution)."""
