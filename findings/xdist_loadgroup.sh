#!/usr/bin/env bash
# pytest-xdist's --dist loadgroup groups nothing under pytest 9.2, and says nothing.
#
# Versions: pytest-xdist 3.8.0 with pytest 9.2.0; with pytest 9.1.1 it works.
# A good guess: tests with @pytest.mark.xdist_group("one") run in one worker, as the documentation of --dist loadgroup
#   says. So a port, a database or a dear fixture that they share is there once. The newest xdist works with the newest
#   pytest, or its version bounds would refuse it.
# What happens: the tests of a group spread over the workers, as with --dist load. No warning, no error, and everything
#   passes where the tests tolerate it. A suite gets slower, or flaky, on the day that pytest is updated.
# Source: xdist/remote.py, WorkerInteractor.pytest_collection_modifyitems appends "@group" to item._nodeid, and the
#   scheduler splits node ids at that sign. _pytest/nodes.py of pytest 9.2 computes nodeid from another attribute, so
#   the suffix is written to a name that nobody reads. xdist 3.8.0 requires pytest>=7.0.0 without an upper bound.
# Remedy: a scheduler of the project's through the hook pytest_xdist_make_scheduler, which gets the plain node ids;
#   --dist loadfile where files are the groups; or pytest<9.2.
#
# Output seen:
#   pytest 9.1.1: 40 tests of one group in 1 worker(s)
#   pytest 9.2.0: 40 tests of one group in 2 worker(s)
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/test_group.py" <<'EOF'
import os
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(40))
def test_it(number):
    time.sleep(0.01)
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
EOF
workers() {
    python3 -m venv "$work/$1"
    "$work/$1/bin/pip" install --quiet --disable-pip-version-check "pytest==$1" pytest-xdist==3.8.0
    (cd "$work" && SEEN="$work/$1.txt" "$work/$1/bin/python" -m pytest -q -n 2 --dist loadgroup test_group.py >/dev/null)
    sort -u "$work/$1.txt" | wc -l
}
before=$(workers 9.1.1)
after=$(workers 9.2.0)
echo "pytest 9.1.1: 40 tests of one group in $before worker(s)"
echo "pytest 9.2.0: 40 tests of one group in $after worker(s)"
if [ "$before" = 1 ] && [ "$after" = 2 ]; then
    echo "as described"
else
    echo "CHANGED"
    exit 1
fi
