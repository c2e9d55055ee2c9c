"""A small library of videos with its index, shared by the tests of the server and of the page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lavila.demo.encoders import open_encoder
from lavila.demo.index import open_index
from lavila.demo.index_plan import IndexOptions
from lavila.demo.indexing import update_index
from lavila.demo.library import Library, make_library
from lavila.demo.search import Searcher
from lavila.demo.transcripts import Transcripts
from tests.colours import save_encoder, write_library
from tests.shared import made_once

SUGGESTIONS = ("everything is red", "everything is white")


def _make(folder: Path) -> None:
    encoder = open_encoder(str(save_encoder(folder / "encoder.safetensors")), vocabulary="", device=torch.device("cpu"))
    update_index(folder / "index", [write_library(folder / "videos")], encoder, IndexOptions())


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `videos`, their `index`, and `encoder.safetensors`."""
    return made_once(tmp_path_factory, "colours", _make)


def open_library(colours: Path, cache: Path, transcripts: Transcripts | None = None) -> Library:
    """The library of these videos; what is made of them lies in `cache`."""
    encoder = open_encoder(str(colours / "encoder.safetensors"), vocabulary="", device=torch.device("cpu"))
    searcher = Searcher(open_index(colours / "index"), encoder.text, threads=1)
    transcripts = transcripts or Transcripts(cache / "narrations", None)
    return make_library(searcher, transcripts, cache=cache, suggestions=SUGGESTIONS)
