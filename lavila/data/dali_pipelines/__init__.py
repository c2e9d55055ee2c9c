"""The DALI side of the data path: `graph` (the one augment graph), `sources` (its inputs), `restarts` (its execution), `runner` (from plans
to pictures)."""
