"""The code blocks of README and docs, run as they stand, on folders as the official downloads lay them out.

A block is run here, or the line before it says why not: `<!-- not run by ...: reason -->`. Blocks marked `text` are no
commands. It takes 45 s of CPU time to make the eleven shard sets of the documents, and to train on one of them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import inspect_shards
import make_captions
import make_sample_dataset
import pytest
import shard_videos
import yaml

import evaluate
import train
from lavila.annotations import read_annotations
from lavila.checkpoints import zoo_command
from lavila.config.load import load_config
from lavila.shards.captions import read_captions
from lavila.shards.reader import open_shard_set
from tests.commands import run_here
from tests.test_docs import DOCUMENTS, ROOT, commands

BLOCK = re.compile(r"^(?:<!-- (not run by [^\n]*?) -->\n)?```([a-z]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NO_COMMANDS = {"text"}
MAINS: dict[str, Callable[[], int | None]] = {
    "tools/shard_videos.py": shard_videos.main,
    "tools/inspect_shards.py": inspect_shards.main,
    "tools/make_captions.py": make_captions.main,
    "tools/make_sample_dataset.py": make_sample_dataset.main,
    "lavila.checkpoints.zoo_command": zoo_command.main,
    "train.py": train.main,
    "evaluate.py": evaluate.main,
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a document."""

    document: Path
    line: int
    excuse: str  # why it is not run; empty if it is
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.document.name}:{self.line}"


def blocks() -> Iterator[Block]:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for found in BLOCK.finditer(text):
            line = text.count("\n", 0, found.start(3))
            yield Block(document=document, line=line, excuse=found[1] or "", language=found[2], text=found[3])


RUN = [block for block in blocks() if not block.excuse and not block.language]
OTHERS = [block for block in blocks() if not block.excuse and block.language]


def test_every_block_is_run_or_says_why_not() -> None:
    assert len(RUN) > 8
    for block in RUN:
        words = [line for line in block.text.splitlines() if line.strip()]
        starts = [line for line in words if not line.startswith(("#", " "))]
        assert starts and all(line.startswith("python ") for line in starts), f"{block.name}: no command of ours"
        assert len(list(commands(f"```\n{block.text}```"))) == len(starts), block.name
    for block in OTHERS:
        assert block.language in {*NO_COMMANDS, "yaml"}, f"{block.name}: run it here, or say why not"
    excused = [block for block in blocks() if block.excuse]
    assert all(len(block.excuse.partition(": ")[2]) > 10 for block in excused)


def test_code_in_python_names_what_there_is() -> None:
    """Blocks that cannot be run still import from modules that have these names."""
    python = [block for block in blocks() if block.language == "python"]
    assert len(python) >= 3
    for block in python:
        compile(block.text, block.name, "exec")
        for line in block.text.splitlines():
            if line.startswith("from "):
                exec(line, {})


@pytest.mark.parametrize("block", [b for b in OTHERS if b.language == "yaml"], ids=lambda block: block.name)
def test_settings_are_settings(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("base: [ek100_cls_tsf_b]\n" + block.text)
    config = load_config(file)
    for name in yaml.safe_load(block.text):
        assert getattr(config, name)


@pytest.fixture(scope="module")
def home(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a reader of the documents has downloaded every dataset; its footage is the documents' own."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "assets").symlink_to(ROOT / "assets")
    (make_forms,) = [words for block in RUN for words in commands(f"```\n{block.text}```") if "--footage" in words]
    shutil.copytree(toy_data / "source", folder / "data/forms")
    assert "already there" in call(folder, make_forms)  # it asks for the very bytes of the toy dataset
    forms = folder / "data/forms"
    lay_out_epic_kitchens(forms, folder)
    whole = folder / "ego4d/v2/video_540ss"
    whole.parent.mkdir(parents=True)
    shutil.move(forms / "ego4d/videos", whole)
    for file in (forms / "ego4d").iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    shutil.move(forms / "egtea/cropped_clips", folder)
    shutil.copytree(forms / "egtea", folder / "action_annotation")
    for name in ("CharadesEgo", "CharadesEgo_v1_480"):
        shutil.move(forms / "charades_ego" / name, folder)
    return folder


def lay_out_epic_kitchens(forms: Path, folder: Path) -> None:
    """The authors' repository of annotations, what their downloader writes, and the folders of the README."""
    annotations = folder / "epic-kitchens-100-annotations"
    own = annotations / "retrieval_annotations"
    own.mkdir(parents=True)
    for file in (forms / "annotations").iterdir():
        target = own if "retrieval" in file.name or file.is_dir() else annotations
        (shutil.copytree if file.is_dir() else shutil.copy)(file, target / file.name)
    (folder / "labels").symlink_to(annotations)
    (folder / "videos").symlink_to(forms / "videos")
    for video in (forms / "videos").rglob("*.MP4"):
        place = folder / "EPIC-KITCHENS" / video.parent.name / "videos"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, place)


def call(folder: Path, words: list[str]) -> str:
    """Run a command of a document in a folder, with one epoch of training and quick coding. DIR: a shard set."""
    script = words[words.index("-m") + 1] if "-m" in words else next(word for word in words if word.endswith(".py"))
    arguments = [word.replace("DIR", "data/ek100/shards/val") for word in words[words.index(script) + 1 :]]
    arguments += ["optim.epochs=1"] if script == "train.py" else []
    arguments += ["--speed", "8"] if script == "tools/shard_videos.py" and not {"--speed", "--codec"} & {*words} else []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = run_here(MAINS[script], arguments)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


PREPARED = {"--footage"}  # commands of the fixture
ORDER = ["DATASETS.md", "README.md"]  # other documents use the shard sets of these


def in_order(block: Block) -> tuple[int, int]:
    name = block.document.name
    needs_a_set = "DIR" in block.text or "--resume" in block.text
    return (ORDER.index(name) if name in ORDER and not needs_a_set else len(ORDER), 0)


@pytest.mark.parametrize("block", sorted(RUN, key=in_order), ids=lambda block: block.name)
def test_a_block_runs(home: Path, block: Block) -> None:
    for words in commands(f"```\n{block.text}```"):
        if PREPARED & set(words):
            continue
        call(home, words)
        if "--split" in words:
            made = open_shard_set(home / words[words.index("--out") + 1])
            assert len(made) and made.manifest["failures"] == 0
        if "tools/make_captions.py" in words:
            assert len(read_captions(home / words[words.index("--out") + 1]))


def test_the_readmes_labels_are_what_the_reader_takes(tmp_path: Path) -> None:
    """Its listing: a file's name, then its lines below one another."""
    listing = next(block.text for block in OTHERS if "labels/EPIC_100_train.csv" in block.text)
    name, files = "", dict[str, list[str]]()
    for line in listing.splitlines():
        found = re.match(r"(labels/\S+)?\s+(.*)", line)
        assert found is not None
        name = found[1] or name
        files.setdefault(name, []).append(found[2])
    assert "same columns" in files["labels/EPIC_100_validation.csv"][0]
    files["labels/EPIC_100_validation.csv"] = files["labels/EPIC_100_train.csv"]
    (tmp_path / "labels").mkdir()
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    found_clips = read_annotations("ek100_cls", tmp_path / "labels", split="train")
    assert [clip.video_path for clip in found_clips.clips] == ["home/monday.MP4", "home/monday.MP4"]
    assert found_clips.failures == []
    assert [clip.narrations for clip in found_clips.clips] == [("opens the door",), ("takes a cup",)]
