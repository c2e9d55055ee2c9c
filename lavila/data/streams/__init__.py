"""Only what a step needs reaches a decoder: which packets its frames need, and an mp4 of these packets alone.

`mp4` reads files and `writing` writes them, `headers` and `av1` read what pictures refer to, `reduction` decides. Bytes
in, bytes out: nothing here decodes, and no decoder is known here, so that all of them are given the same packets.
"""
