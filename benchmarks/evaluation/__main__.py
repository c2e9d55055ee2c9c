"""Runs one part of the benchmark: python -m benchmarks.evaluation {metrics,end_to_end} [--dry-run]"""

import importlib
import sys

from lavila.engine.command_line import compute_the_same_bits, leave_cores_to_others

PARTS = ("metrics", "end_to_end")

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        sys.exit(f"python -m benchmarks.evaluation PART; PART is one of {', '.join(PARTS)}; --help after it says more")
    leave_cores_to_others()  # as evaluate.py does, before PyTorch is imported
    compute_the_same_bits()
    sys.exit(importlib.import_module(f"benchmarks.evaluation.{sys.argv[1]}").main(sys.argv[2:]))
