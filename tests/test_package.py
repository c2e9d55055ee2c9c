"""What `pip install .` takes along: every module, config and template of the package."""

from __future__ import annotations

import tomllib
from pathlib import Path

import lavila

PACKAGE = Path(lavila.__file__).parent
SETUPTOOLS = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert SETUPTOOLS["packages"]["find"]["include"] == ["lavila*"]
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_other_file_is_package_data() -> None:
    others = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".py"}
    others = {path for path in others if path.parent.name != "__pycache__"}
    taken = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in PACKAGE.parent.joinpath(*package.split(".")).glob(pattern)
    }
    assert {path.name for path in others} >= {"quickstart.yaml", "page.html.j2", "py.typed"}
    assert others - taken == set()
