"""Scripts whose results are the numbers in the docs. Run from the repository: python -m benchmarks.loader"""

import os

# Before torch comes in: threads that wait in a busy loop would count as work, and slow each other down on busy cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
