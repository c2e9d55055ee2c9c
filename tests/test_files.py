"""Paths as users write them: `~` is the home folder in every command and every config, with or without a shell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lavila.checkpoints.store import find_model
from lavila.checkpoints.zoo import home
from lavila.config.load import load_config
from lavila.files import explained, fitting_name, user_path, whole_file
from lavila.shards.format import ShardSetError
from lavila.shards.reader import open_shard_set

ROOT = Path(__file__).parents[1]


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_path_at_home(at_home: Path) -> None:
    assert user_path("~/x") == at_home / "x"
    assert user_path("~") == at_home
    assert user_path("a/~/x") == Path("a/~/x")
    assert user_path("x~") == Path("x~")
    assert user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


def test_every_path_on_a_command_line_may_begin_at_home() -> None:
    """A shell leaves the `~` of `--out=~/x` alone, so each option that takes a path must read it."""
    for folder in ("tools", "benchmarks", "lavila"):
        for script in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"type=(pathlib\.)?Path\b", script.read_text(encoding="utf-8")), script


@pytest.mark.parametrize("value", ["~/sets/train", '"~/sets/train"'])
def test_a_path_in_an_argument_and_in_a_file(at_home: Path, value: str) -> None:
    assert load_config("quickstart", [f"data.train={value}"]).data.train == f"{at_home}/sets/train"
    file = at_home / "mine.yaml"
    file.write_text(
        f"base: [quickstart]\nrun_dir: {value}\nmodel: {{init: {value}}}\ncheckpoint: {value}\nresume: {value}\n"
        f"data: {{captions: [own, {value}]}}\nevals: {{often: {{data: {{val: {value}}}}}}}\n"
    )
    config = load_config("~/mine.yaml")
    wanted = f"{at_home}/sets/train"
    assert {config.run_dir, config.model.init, config.checkpoint, config.resume} == {wanted}
    assert config.data.captions == ("own", wanted)
    assert config.evals["often"].data == {"val": wanted}
    (at_home / "other.yaml").write_text("base: ~/mine.yaml\n")
    assert load_config(at_home / "other.yaml").run_dir == wanted


def test_a_text_that_is_no_path_stays(at_home: Path) -> None:
    assert load_config("quickstart", ["name=~mine"]).name == "~mine"
    assert load_config("quickstart", ["run_dir=runs/~x/y"]).run_dir == "runs/~x/y"


def test_functions_for_python_users_know_it_too(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (at_home / "model.safetensors").touch()
    assert find_model("~/model.safetensors") == at_home / "model.safetensors"
    with pytest.raises(ShardSetError, match=re.escape(f"{at_home}/sets")):
        open_shard_set("~/sets")
    monkeypatch.setenv("LAVILA_HOME", "~/cache")
    assert home() == at_home / "cache"


def test_an_error_of_the_system_names_the_file_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    for folder in (tmp_path / "taken", tmp_path / "taken/below"):
        with pytest.raises(OSError) as caught:
            folder.mkdir(parents=True)
        assert "taken" in explained(caught.value) and "another name" in explained(caught.value)
    assert "make room" in explained(OSError(28, "No space left on device"))
    assert explained(OSError("something else")) == "something else"


@pytest.mark.parametrize("letter", ["x", "ü", "🎬"])
def test_a_name_that_is_too_long_is_cut(tmp_path: Path, letter: str) -> None:
    name = letter * (255 // len(letter.encode()))
    short = fitting_name(name, room=10)
    assert len(short.encode()) <= 245 and short != name
    assert short != fitting_name(name[:-1] + "y", room=10)  # and stays its own
    assert fitting_name(letter, room=10) == letter
    (tmp_path / f"{short}.narration").mkdir()
    with whole_file(tmp_path / name) as file:  # the temporary name would be longer than the name
        file.write(b"1")
    assert (tmp_path / name).read_bytes() == b"1"
