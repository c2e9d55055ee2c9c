"""The data path with DALI.

`graph` is the augment graph, `sources` makes its inputs, `restarts` runs it, and `runner` goes from plans to pictures.
"""
