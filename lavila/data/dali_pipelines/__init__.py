"""The DALI side of the data path.

`graph` is the one augment graph, `sources` its inputs, `restarts` its execution; `runner` goes from plans to pictures.
"""
