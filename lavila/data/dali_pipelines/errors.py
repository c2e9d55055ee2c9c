"""The meaning of DALI's errors: a video that cannot be decoded, or a fault of the machine or of our own code.

DALI turns nearly every C++ exception into a RuntimeError whose text names the operator that failed:

    Error in CPU operator `nvidia.dali.fn.decoders.video`, ... encountered: <what happened> C++ context: ...

Only the decoder's own complaints about a video are faults of data. A complaint about CUDA or memory never is, from any
operator. The wordings are those of DALI 2.4. Tests provoke the CPU's. The GPU's come from the strings in its libraries.
"""

from __future__ import annotations

import re

from lavila.data.host.decode import raise_if_short_of_memory
from lavila.errors import UserError, one_line

_FAILED_OPERATOR = re.compile(r"Error in \w+ operator `([\w.]+)`", re.IGNORECASE)
_OF_THE_MACHINE = re.compile(r"cuda|cuvid|bad_alloc|allocat|out of memory|driver API", re.IGNORECASE)
DECODER = "decoders.video"


class DecoderFault(UserError):
    """The decoder fails on videos that another one decodes."""


def decode_problem(error: RuntimeError) -> str | None:
    """Why a video cannot be decoded, in one line; None if the error has another cause than a video.

    Raises MemoryError if the machine is short of memory, whatever DALI says.
    """
    text = str(error)
    operator = _FAILED_OPERATOR.search(text)
    said = text.partition("encountered:")[2]  # before that come lines of our own code
    if operator is None or not operator[1].endswith(DECODER) or _OF_THE_MACHINE.search(said):
        return None
    raise_if_short_of_memory()
    return cause(error)


def cause(error: RuntimeError) -> str:
    """The useful line of a DALI error: the one after "encountered:", without the C++ expression that failed."""
    text = str(error)
    lines = [line.strip() for line in text.partition("encountered:")[2].splitlines() if line.strip()]
    return re.sub(r'^Assert on ".*" failed: ', "", lines[0]) if lines else one_line(text)
