#!/usr/bin/env bash
# DALI's reader of WebDataset shards hands out empty tensors where the webdataset library finds the file.
#
# Versions: DALI 2.4.0 (nvidia-dali-cuda130) on the CPU, webdataset 1.0.2. No GPU is needed.
# A good guess: both read the same format. A shard that one of them reads whole, the other reads whole; a part that is
#   missing raises an error, as a shard with a hole is a mistake.
# What happens: webdataset compares file extensions in lower case; DALI compares them as written. Where one sample's
#   file is b.TXT instead of b.txt (cameras and Windows tools write upper case), webdataset gives the text. DALI gives
#   an empty tensor for that sample and says nothing: no error, no warning, the batch keeps its size.
# Source: DALI's documentation of fn.readers.webdataset: case_sensitive_extensions is True and
#   missing_component_behavior is "empty" by default; webdataset/tariterators.py (group_by_keys) lowers the suffix.
# Remedy: case_sensitive_extensions=False and missing_component_behavior="error", both.
#
# Output seen:
#   webdataset                                  [b'content of a.txt', b'content of b.TXT', b'content of c.txt']
#   DALI, defaults                              [b'content of a.txt', b'', b'content of c.txt']
#   DALI, missing_component_behavior='error'    raises RuntimeError
#   DALI, case_sensitive_extensions=False       [b'content of a.txt', b'content of b.TXT', b'content of c.txt']
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check nvidia-dali-cuda130==2.4.0 \
    webdataset==1.0.2 numpy==2.4.6
"$work/venv/bin/python" - "$work" 2> "$work/warnings" <<'EOF'
import io
import sys
import tarfile

import webdataset
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline

shard = f"{sys.argv[1]}/shard.tar"
with tarfile.open(shard, "w") as tar:
    for name in ("a.cls", "a.txt", "b.cls", "b.TXT", "c.cls", "c.txt"):
        data = f"content of {name}".encode()
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))


def with_dali(**options: object) -> list[bytes] | str:
    pipeline = Pipeline(batch_size=3, num_threads=1, device_id=None)
    with pipeline:
        pipeline.set_outputs(*fn.readers.webdataset(paths=[shard], ext=["cls", "txt"], **options))
    try:
        texts = pipeline.run()[1]
    except RuntimeError as error:
        return f"raises {type(error).__name__}"
    return [bytes(texts.at(i)) for i in range(len(texts))]


by_library = [sample["txt"] for sample in webdataset.WebDataset(shard, shardshuffle=False)]
by_default, ignoring_case = with_dali(), with_dali(case_sensitive_extensions=False)
strict = with_dali(missing_component_behavior="error")
print(f"webdataset                                  {by_library}")
print(f"DALI, defaults                              {by_default}")
print(f"DALI, missing_component_behavior='error'    {strict}")
print(f"DALI, case_sensitive_extensions=False       {ignoring_case}")
wanted = [b"content of a.txt", b"content of b.TXT", b"content of c.txt"]
as_described = by_library == ignoring_case == wanted and by_default == [wanted[0], b"", wanted[2]]
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
