#!/usr/bin/env bash
# A filter on a Parquet file loses rows with NaN, depending on how the rows fell into row groups.
#
# Versions: pyarrow 26.0.1.
# A good guess: pq.read_table(path, filters=e) gives the rows of pq.read_table(path).filter(e): statistics of row groups
#   only save the reading of rows that cannot match. So pc.is_nan finds the clips with a broken loss or feature.
# What happens: statistics leave NaN out, and the filter takes them for the whole row group. If the other values of a
#   group are all the same, is_nan and x != value find no NaN there. If all of them are above a limit, ~(x >= limit)
#   loses it too. The same rows in groups of another size give another answer. No error and no warning. Losses that are
#   0 and weights that are 1 in most rows are such columns.
# Source (read in the repository, not in the wheel): cpp/src/arrow/dataset/file_parquet.cc, in
#   EvaluateStatisticsAsExpression equal minimum and maximum become "the column equals this value", others a range. NaN
#   is thought of only where minimum or maximum is one.
# Remedy: read the table and filter in memory, or write null for a value that is missing; the statistics count nulls.
#
# Output seen (numbers of the rows found; losses 0, 0, NaN, 0, 0.5, 2, NaN, 3):
#                       in memory             8 rows a group        4 rows a group
#   is_nan              [2, 6]                [2, 6]                [6]
#   loss != 0           [2, 4, 5, 6, 7]       [2, 4, 5, 6, 7]       [4, 5, 6, 7]
#   ~(loss >= 0)        [2, 6]                []                    []
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1
"$work/venv/bin/python" - "$work" <<'EOF'
import math
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

path = f"{sys.argv[1]}/losses.parquet"
losses = [0.0, 0.0, math.nan, 0.0, 0.5, 2.0, math.nan, 3.0]
table = pa.table({"row": list(range(len(losses))), "loss": losses})
loss = pc.field("loss")
FILTERS = {
    "is_nan": pc.is_nan(loss),
    "loss != 0": loss != 0,
    "~(loss >= 0)": ~(loss >= 0),
}
titles = ("in memory", "8 rows a group", "4 rows a group")
print(f"{'':<18}  {'  '.join(f'{title:<20}' for title in titles)}".rstrip())
found: dict[str, list[list[int]]] = {}
for name, condition in FILTERS.items():
    found[name] = [table.filter(condition)["row"].to_pylist()]
    for rows in (8, 4):
        pq.write_table(table, path, row_group_size=rows)
        found[name].append(pq.read_table(path, filters=condition)["row"].to_pylist())
    shown = (f"{value!s:<20}" for value in found[name])
    print(f"{name:<18}  {'  '.join(shown)}".rstrip())
nan, unequal, negative = found.values()
lost = nan == [[2, 6], [2, 6], [6]] and negative == [[2, 6], [], []]
as_described = lost and unequal[0] == unequal[1] == [2, *unequal[2]]
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
