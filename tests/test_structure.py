"""What import-linter cannot say: submodules of libraries, and that imports stay free of side effects."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lavila
from tests.conftest import scope_of

PACKAGE = Path(lavila.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
COMMANDS = sorted(
    [*(PACKAGE.parent / "tools").glob("*.py"), PACKAGE.parent / "train.py", PACKAGE.parent / "evaluate.py"]
)


def imports(path: Path, *, at_start: bool = False) -> set[str]:
    """What a file imports; `at_start`: as soon as the file itself is imported."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if at_start else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_collectives_only_in_engine_and_losses(module: str) -> None:
    if not module.startswith(("engine/", "losses/")):
        assert not {name for name in imports(PACKAGE / module) if name.startswith("torch.distributed")}


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_stay_short(module: str) -> None:
    source = (PACKAGE / module).read_text()
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 70, f"{node.name} is too long to read at once"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_commands_parse_call_and_print(path: Path) -> None:
    """What another file needs lies in the package."""
    assert len(path.read_text().splitlines()) <= (300 if path.name == "shard_videos.py" else 125)
    assert not imports(path) & {command.stem for command in COMMANDS}


@pytest.mark.parametrize("module", MODULES)
def test_no_start_waits_for_libraries_that_take_seconds_to_import(module: str) -> None:
    slow = {"timm", "torchvision", "transformers", "open_clip"}
    assert not slow & {name.split(".")[0] for name in imports(PACKAGE / module, at_start=True)}


def test_importing_the_package_is_light() -> None:
    heavy = "import sys, lavila; print([m for m in ('torch', 'nvidia.dali', 'av', 'omegaconf') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_processes_that_make_and_check_shards_start_without_torch() -> None:
    code = "import sys, lavila.ingest.run, lavila.inspection.verify; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_public_names_are_there() -> None:
    for name in lavila.__all__:
        assert callable(getattr(lavila, name))
    with pytest.raises(AttributeError, match="ClipLoader, load_config, load_model, open_shard_set"):
        lavila.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("nodeid", "scope"),
    [
        ("tests/plan/test_order.py::test_epochs[a-b::c]", "tests/plan/test_order.py"),
        ("tests/slurm/test_arrays.py::test_ctrl_c[slurm]", "tests/slurm/"),
        ("tests/slurm/test_shard_cluster.py::test_a_job_array[local]", "tests/slurm/"),
    ],
)
def test_a_process_gets_whole_files_and_one_gets_all_of_slurm(nodeid: str, scope: str) -> None:
    assert scope_of(nodeid) == scope
