#!/usr/bin/env bash
# MKL takes MKL_CBWR=AVX2,STRICT on an AMD processor, and a row of a product still depends on how many rows there are.
#
# Versions: torch 2.14.1 (its wheel holds MKL), on an AMD EPYC with AVX-512. On an Intel Xeon with AVX-512 the same
#   setting gave equal bits for any number of rows; that is why one would rely on it.
# A good guess: with a branch and STRICT set, MKL adds up in one order. What keeps a row's bits on one machine, such as
#   answers that do not depend on the batch, keeps them on another; where MKL cannot, it says so.
# What happens: nothing is said. The first rows of a product of 600 rows differ in their last bits from a product of
#   these rows alone, for 1, 2 and 3 rows. Neither AVX2,STRICT nor AVX512,STRICT changes that. With COMPATIBLE, which
#   Intel names as the branch for processors of others, 77 rows differ as well.
# Source: MKL is closed. Intel's guide limits the branches of conditional numerical reproducibility to its processors,
#   and promises equal bits for any number of threads, not of rows. The variable has no way to report that.
# Remedy: compute what must have equal bits in products of one shape.
#
# Output seen:
#   unset          1:other 2:other 3:other 8:same
#   COMPATIBLE     1:other 2:other 3:other 8:same
#   AVX2,STRICT    1:other 2:other 3:other 8:same
#   AVX512,STRICT  1:other 2:other 3:other 8:same
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! grep -q AuthenticAMD /proc/cpuinfo || ! grep -qw avx512f /proc/cpuinfo; then
  echo "not applicable: this is no AMD processor with AVX-512"
  exit 0
fi
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cat >"$work/rows.py" <<'EOF'
import torch

torch.set_num_threads(1)
torch.manual_seed(0)
left, right = torch.randn(600, 768), torch.randn(768, 768)
whole = left @ right
print(*(f"{rows}:{'same' if torch.equal(whole[:rows], left[:rows] @ right) else 'other'}" for rows in (1, 2, 3, 8)))
EOF
changed=0
for setting in unset COMPATIBLE AVX2,STRICT AVX512,STRICT; do
  if [ "$setting" = unset ]; then
    found=$(env -u MKL_CBWR "$work/venv/bin/python" "$work/rows.py")
  else
    found=$(MKL_CBWR=$setting "$work/venv/bin/python" "$work/rows.py")
  fi
  printf '%-14s %s\n' "$setting" "$found"
  [ "$found" = "1:other 2:other 3:other 8:same" ] || changed=1
done
if [ "$changed" = 0 ]; then echo "as described"; else echo "CHANGED"; exit 1; fi
