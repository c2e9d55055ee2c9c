"""What DALI's errors mean: a video that cannot be decoded, or a fault of the machine or of our own code.

DALI turns nearly every C++ exception into a RuntimeError whose text names the operator that failed:

    Error in CPU operator `nvidia.dali.fn.decoders.video`, ... encountered: <what happened> C++ context: ...

Only what the decoder itself says of a video is a fault of data. Words of CUDA or of memory never are, whichever
operator they come from. Wordings are those of DALI 2.4; the CPU's were provoked, the GPU's come from the strings in its
libraries and have not been seen, for want of a GPU.
"""

from __future__ import annotations

import re

from lavila.data.host.decode import raise_if_short_of_memory
from lavila.errors import UserError

_FAILED_OPERATOR = re.compile(r"Error in \w+ operator `([\w.]+)`", re.IGNORECASE)
_OF_THE_MACHINE = re.compile(r"cuda|cuvid|bad_alloc|allocat|out of memory|driver API", re.IGNORECASE)
DECODER = "decoders.video"


class DecoderFault(UserError):
    """A decoder that fails on videos which another one decodes."""


def decode_problem(error: RuntimeError) -> str | None:
    """Why a video cannot be decoded, in one line; None where the error is of anything but a video.

    Raises MemoryError where the machine is short of memory, whatever DALI says.
    """
    text = str(error)
    operator = _FAILED_OPERATOR.search(text)
    said = text.partition("encountered:")[2]  # what comes before are lines of our own code
    if operator is None or not operator[1].endswith(DECODER) or _OF_THE_MACHINE.search(said):
        return None
    raise_if_short_of_memory()
    return told(error)


def told(error: RuntimeError) -> str:
    """The telling line of a DALI error: the one after "encountered:", without the C++ expression it checked."""
    text = str(error)
    lines = [line.strip() for line in text.partition("encountered:")[2].splitlines() if line.strip()]
    return re.sub(r'^Assert on ".*" failed: ', "", lines[0]) if lines else " ".join(text.split())[:200]
