#!/usr/bin/env bash
# torch.distributed.checkpoint reports a failed load or save by an exception that `except Exception` does not catch.
#
# Versions: torch 2.14.1 (a plain pip install: several GB), one process, CPU.
# A good guess: a checkpoint that is missing or incomplete raises an ordinary error. A trainer that tries the newest
#   checkpoint, catches Exception and falls back to the one before is safe; so is one that logs a failed save and trains
#   on.
# What happens: errors of planning, reading, writing inside dcp.load and dcp.save arrive as CheckpointException, which
#   derives from BaseException, like KeyboardInterrupt. Fallbacks and "log and continue" handlers that are written with
#   `except Exception` never run; the process ends. The real error is in .failures (rank -> (error, stack)).
# Source: torch/distributed/checkpoint/api.py: class CheckpointException(BaseException); utils.py (_DistWrapper) wraps
#   every error of the local and global steps in it, also where a single process runs without torch.distributed.
# Remedy: except (Exception, CheckpointException), and look into .failures for the cause.
#
# Output seen:
#   the bases of CheckpointException         ['BaseException', 'object']
#   load from an empty folder                not caught by `except Exception`: CheckpointException around AssertionError
#   load with a data file missing            not caught by `except Exception`: CheckpointException around FileNotFoundError
#   load a key that was not saved            not caught by `except Exception`: CheckpointException around RuntimeError
#   load into a tensor of another size       not caught by `except Exception`: CheckpointException around ValueError
#   save where a file has the folder's name  not caught by `except Exception`: CheckpointException around FileExistsError
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
"$work/venv/bin/python" -W ignore - "$work" <<'EOF'
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

logging.disable(logging.CRITICAL)  # the library logs a stack for each failure that is meant here
folder = Path(sys.argv[1])
missed = []


def attempt(name: str, action: Callable[[], object]) -> None:
    try:
        try:
            action()
            found, hidden = "no error", False
        except Exception as error:
            found, hidden = f"caught by `except Exception`: {type(error).__name__}", False
    except BaseException as error:
        inside = type(error.failures[0][0]).__name__ if isinstance(error, CheckpointException) else "?"
        found, hidden = f"not caught by `except Exception`: {type(error).__name__} around {inside}", True
    missed.append(hidden)
    print(f"{name:<40} {found}")


def state(size: int = 3) -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(size)}


(folder / "empty").mkdir()
(folder / "plain_file").write_text("")
dcp.save(state(), checkpoint_id=folder / "whole")
dcp.save(state(), checkpoint_id=folder / "torn")
next((folder / "torn").glob("*.distcp")).unlink()
print(f"{'the bases of CheckpointException':<40} {[base.__name__ for base in CheckpointException.__mro__[1:]]}")
attempt("load from an empty folder", lambda: dcp.load(state(), checkpoint_id=folder / "empty"))
attempt("load with a data file missing", lambda: dcp.load(state(), checkpoint_id=folder / "torn"))
attempt("load a key that was not saved", lambda: dcp.load({"bias": torch.ones(3)}, checkpoint_id=folder / "whole"))
attempt("load into a tensor of another size", lambda: dcp.load(state(4), checkpoint_id=folder / "whole"))
attempt("save where a file has the folder's name", lambda: dcp.save(state(), checkpoint_id=folder / "plain_file"))
as_described = all(missed) and not issubclass(CheckpointException, Exception)
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
