"""Similarities of a vector with very many others, exactly and at the speed of memory.

Vectors lie in memory as float16. The processor turns them into float32 while it multiplies, so that no second copy is
needed, and sums are float32: the result is that of numpy in float32 up to the order of the sum.

A processor that reads one place after the other waits for memory. It waits about half as long where it reads several
places in turn and names what it will want next.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lavila.demo.encoders import Vector, Vectors

CHUNK = 16384  # rows that a thread takes at once: long enough to start, short enough to share evenly
STREAMS = 4  # places of a chunk that a thread reads in turn
CACHE_LINE = 64  # bytes

Scores = npt.NDArray[np.float32]
Spans = list[tuple[int, int]]
"""Rows first, first + 1 ... stop - 1, for each of some videos."""


@intrinsic  # type: ignore[untyped-decorator]
def _float(context: Any, bits: Any) -> Any:
    """The float32 of a float16 that is given by its bits. numba does not know the type; processors do."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic  # type: ignore[untyped-decorator]
def _fetch(context: Any, rows: Any, row: Any, channel: Any) -> Any:
    """Begin to bring the cache line of an element near the processor. Nothing waits for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of_array, array = signature.args[0], context.make_array(signature.args[0])(context, builder, arguments[0])
        element = cgutils.get_item_pointer(context, builder, of_array, array, arguments[1:], wraparound=False)
        address, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, often_used, data = number(0), number(3), number(1)
        builder.call(prefetch, [builder.bitcast(element, address), to_read, often_used, data])
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp), generate


# The compiler may add up in another order, as a sum over vector registers needs it.
@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})  # type: ignore[untyped-decorator]
def _product(row: npt.NDArray[np.uint16], vector: Vector) -> np.float32:
    total = np.float32(0)
    for channel in range(vector.shape[0]):
        total += _float(row[channel]) * vector[channel]
    return total


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _multiply(rows: npt.NDArray[np.uint16], vector: Vector, out: Scores) -> None:
    stream = len(rows) // STREAMS  # rows of each
    for step in range(stream):
        for number in range(STREAMS):
            place = number * stream + step
            for channel in range(0, vector.shape[0], CACHE_LINE // 2):
                _fetch(rows, min(place + 1, len(rows) - 1), channel)
            out[place] = _product(rows[place], vector)
    for place in range(STREAMS * stream, len(rows)):
        out[place] = _product(rows[place], vector)


class Similarities:
    """Scalar products with the rows of `vectors`, float16 [M, D]. Any number of threads may call it."""

    def __init__(self, vectors: Vectors, *, threads: int) -> None:
        self._bits = vectors.view(np.uint16)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="similarity")
        _multiply(self._bits[:0], np.zeros(vectors.shape[1], np.float32), np.zeros(0, np.float32))  # compiles it

    def __call__(self, vector: Vector, spans: Spans) -> Scores:
        """float32 [M]: the scalar product with each row within the spans, -inf elsewhere. vector: float32 [D]."""
        out = np.full(len(self._bits), -np.inf, np.float32)
        chunks = [(low, min(low + CHUNK, stop)) for first, stop in spans for low in range(first, stop, CHUNK)]
        vector = np.ascontiguousarray(vector, np.float32)
        assert vector.shape == self._bits.shape[1:]
        list(self._pool.map(lambda chunk: _multiply(self._bits[slice(*chunk)], vector, out[slice(*chunk)]), chunks))
        return out
