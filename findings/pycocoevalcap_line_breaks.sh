#!/usr/bin/env bash
# pycocoevalcap scores every later clip with its neighbour's caption when one caption holds an unusual line break.
#
# Versions: pycocoevalcap 1.2. It needs a Java runtime (any that runs `java -version`).
# A good guess: captions are matched to clips by key. The tokenizer replaces "\n" in a caption, so line breaks are taken
#   care of; text from a language model or a web page can be scored as it is.
# What happens: the tokenizer writes all captions to one file, a line each, and matches the lines that come back by
#   their order. The Java side also breaks lines at "\r", "\v", "\f", U+2028 and U+2029. One such character makes two
#   lines of one caption; each caption after it moves to the next clip and the last one falls off. No error. Scores
#   fall for the whole set from that clip on.
# Source: pycocoevalcap/tokenizer/ptbtokenizer.py: only "\n" is replaced; zip(image_id, lines) drops what is left over.
# Remedy: " ".join(caption.splitlines()) for each caption before (and compare the numbers of lines).
#
# Output seen:
#   candidates equal to the references     CIDEr 10.00
#   \n in the caption of clip_0            CIDEr 10.00  other clips with a wrong caption: 0
#   \r in the caption of clip_0            CIDEr 1.27  other clips with a wrong caption: 3
#   \v in the caption of clip_0            CIDEr 1.27  other clips with a wrong caption: 3
#   \f in the caption of clip_0            CIDEr 1.27  other clips with a wrong caption: 3
#   U+0085 in the caption of clip_0        CIDEr 10.00  other clips with a wrong caption: 0
#   U+2028 in the caption of clip_0        CIDEr 1.27  other clips with a wrong caption: 3
#   U+2029 in the caption of clip_0        CIDEr 1.27  other clips with a wrong caption: 3
#   the captions after U+2029: {'clip_0': ['a person washes a red'], 'clip_1': ['cup in the sink'], 'clip_2': ['a person opens the door of a fridge'], 'clip_3': ['a person cuts two onions on a wooden board']}
#   as described

set -euo pipefail
java -version > /dev/null 2>&1 || { echo "not applicable: no Java runtime here"; exit 0; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pycocoevalcap==1.2 numpy==2.4.6
"$work/venv/bin/python" - 2> "$work/log" <<'EOF'
import sys

from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

CAPTIONS = {
    "clip_0": "a person washes a red cup in the sink",
    "clip_1": "a person opens the door of a fridge",
    "clip_2": "a person cuts two onions on a wooden board",
    "clip_3": "a person rides a bicycle along the river",
}
BREAKS = {"\\n": "\n", "\\r": "\r", "\\v": "\v", "\\f": "\f", "U+0085": "\x85", "U+2028": "\u2028", "U+2029": "\u2029"}


def tokenized(captions: dict[str, str]) -> dict[str, list[str]]:
    return PTBTokenizer().tokenize({key: [{"caption": text}] for key, text in captions.items()})


references = tokenized(CAPTIONS)
perfect = Cider().compute_score(references, tokenized(CAPTIONS))[0]
print(f"{'candidates equal to the references':<38} CIDEr {perfect:.2f}")
moved = []
for name, mark in BREAKS.items():
    first = CAPTIONS["clip_0"].replace("red cup", f"red{mark}cup")
    results = tokenized(CAPTIONS | {"clip_0": first})
    score = Cider().compute_score(references, results)[0]
    wrong = [key for key in CAPTIONS if key != "clip_0" and results[key] != references[key]]
    print(f"{f'{name} in the caption of clip_0':<38} CIDEr {score:.2f}  other clips with a wrong caption: {len(wrong)}")
    if wrong:
        moved.append(name)
        last = results
print(f"the captions after {moved[-1] if moved else 'none'}: {last if moved else references}")
as_described = perfect > 9 and "\\n" not in moved and {"\\r", "\\f", "U+2028"} <= set(moved)
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
