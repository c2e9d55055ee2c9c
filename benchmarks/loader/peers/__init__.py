"""The other ways to load video that the loader benchmark measures, one a file.

A peer is a module with

    NAME: str                              the name in the tables
    def needs(job) -> str | None           why it cannot run this row here, in words; None = it can
    def make(job) -> Epochs                epoch number -> the batches of that epoch
"""

from __future__ import annotations
