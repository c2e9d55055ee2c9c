"""What the docs ask a reader to type, to open and to read exists: options, configs, modules, files and links."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from lavila.config.load import known_names

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "findings/README.md"]
PLACEHOLDERS = {"NAME", "CONFIG", "..."}  # that stand for a name of the reader's
EXAMPLES = {"lavila/losses/x.py", "lavila/metrics/x.py", "lavila/tasks/x.py", "tests/tasks/test_x.py"}  # a new task's
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
PATH = re.compile(r"`((?:lavila|tools|benchmarks|tests|docs|assets)/[\w./-]+)`")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of the fenced blocks; a line that is indented deeper belongs to the one before."""
    for block in BLOCK.findall(text):
        joined = re.sub(r"\s*\\?\n {4,}", " ", block)
        for line in joined.splitlines():
            code = line.partition("   #")[0].strip()
            if re.match(r"(python|torchrun|\.venv/bin/python|make) ", code):
                yield shlex.split(code)


@functools.cache
def help_of(script: str) -> str:
    """What a command prints under --help."""
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [script, "--help"]),
        contextlib.redirect_stdout(printed),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert ended.value.code == 0
    return printed.getvalue()


def given() -> list[tuple[str, list[str]]]:
    return [(path.name, words) for path in DOCUMENTS for words in commands(path.read_text(encoding="utf-8"))]


def test_the_docs_hold_commands_of_every_tool() -> None:
    typed = {word for _, words in given() for word in words if word.endswith(".py")}
    doors = {f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py")} - {"tools/quickstart.py"}
    assert typed >= doors | {"train.py", "evaluate.py"}


def test_tests_that_ci_and_the_docs_name_are_there() -> None:
    sources = [ROOT / ".ci/run", *DOCUMENTS]
    named = {name for file in sources for name in re.findall(r"tests/[\w/]+\.py", file.read_text(encoding="utf-8"))}
    assert "tests/walkthroughs/test_quickstart.py" in named
    assert [name for name in named - EXAMPLES if not (ROOT / name).is_file()] == []


def test_no_file_has_the_words_that_the_rules_replace() -> None:
    rules = (ROOT / "docs/STYLE.md").read_text(encoding="utf-8")
    assert all(f"| {word}" in rules for word in ("told", "laid over", "goes on", "could not be had", "of its own"))
    replaced = re.compile(
        r"(\b|_)(told|laid.over|goes.on|be.had)(\b|_)|\bof (its|their) own\b(?! [a-z])", re.IGNORECASE
    )
    folders = ("lavila", "tools", "benchmarks", "tests", "docs", "findings")
    files = [*ROOT.glob("*.*"), *(file for folder in folders for file in (ROOT / folder).rglob("*.*"))]
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        if file.suffix in {".py", ".md", ".yaml", ".toml", ".sh", ".j2", ".js"}
        and file not in (ROOT / "docs/STYLE.md", Path(__file__))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if replaced.search(line)
    ]
    assert not found


@pytest.mark.parametrize(("document", "words"), given(), ids=[f"{name}: {' '.join(w)[:70]}" for name, w in given()])
def test_a_command_has_the_options_that_the_docs_give_it(document: str, words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[-1] in targets, document
        return
    script = next((word for word in words if word.endswith(".py")), None)
    if script is None:
        module = words[words.index("-m") + 1]
        assert module == "pytest" or importlib.util.find_spec(module), document
        return
    after = words[words.index(script) + 1 :]
    if script == "tools/submit.py":  # it takes another command with its options
        place, submitted = next((n, word) for n, word in enumerate(after) if word.endswith(".py"))
        path = submitted if (ROOT / submitted).exists() else f"tools/{submitted}"
        test_a_command_has_the_options_that_the_docs_give_it(document, ["python", path, *after[place + 1 :]])
        after = after[:place]
    text = help_of(script)
    for option in (word for word in after if word.startswith("--")):
        assert re.search(rf"{option}\b", text), f"{document}: {script} has no {option}"
    if "--config" in after:
        assert after[after.index("--config") + 1] in {*known_names(), *PLACEHOLDERS}, document


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_named_files_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target, anchor in LINK.findall(text):
        found = (path.parent / target) if target else path
        assert found.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(found), f"{path.name}: {target}#{anchor}"
    for name in PATH.findall(text):
        assert (ROOT / name).exists() or name in EXAMPLES, f"{path.name}: {name}"
