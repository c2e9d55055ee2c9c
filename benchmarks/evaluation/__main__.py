"""Runs one part of the benchmark: python -m benchmarks.evaluation {metrics,end_to_end} [--dry-run]"""

import sys

from benchmarks.evaluation import end_to_end, metrics

PARTS = {"metrics": metrics.main, "end_to_end": end_to_end.main}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        sys.exit(f"python -m benchmarks.evaluation PART; PART is one of {', '.join(PARTS)}; --help after it says more")
    sys.exit(PARTS[sys.argv[1]](sys.argv[2:]))
