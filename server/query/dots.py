"""The loops that score rows: compiled, and told what they will read next.

A row's arithmetic takes less time than its bytes take to come from memory, and they are asked for
late: the processor's own look-ahead ends at each page, and its queue of instructions holds few
rows. Asking for what lies 8 KB further on makes the loop about twice as fast.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

#: Compiling takes seconds; without it, fewer products than this are scored about as fast.
_COMPILED_FROM = 50_000
#: Bytes of a line of the processor's cache, and how far ahead lines are asked for.
_LINE = 64
_AHEAD = 8192


def worth_compiling(products: int) -> bool:
    """Return whether loops over so many products are compiled, where there is another way."""
    return products >= _COMPILED_FROM


@cache
def int8_dots(width: int) -> Callable[..., None]:
    """Return the loop for rows of one width, a multiple of 64.

    Only a constant width is turned into vector code. The loop takes (n, width) int8 codes, (n,)
    float32 scales, (width,) int16 query, the query's scale, and (n,) float32 to write into.
    """
    import numba  # Slow: 32 bits do without.

    fetch = _fetch()

    @numba.njit(
        "void(int8[:,::1], float32[::1], int16[::1], float32, float32[::1])",
        fastmath=True,
        nogil=True,
    )
    def dots(
        codes: np.ndarray, scales: np.ndarray, query: np.ndarray, scale: float, found: np.ndarray
    ) -> None:
        for row in range(codes.shape[0]):
            for line in range(0, width, _LINE):
                fetch(codes, row * width + line + _AHEAD)
            total = np.int32(0)
            for lane in range(width):
                # Kept at 32 bits at each step: numba's sums of 64 take half as long again.
                part = np.int32(np.int32(codes[row, lane]) * np.int32(query[lane]))
                total = np.int32(total + part)
            found[row] = scale * scales[row] * np.float32(total)

    loop: Callable[..., None] = dots
    return loop


@cache
def float32_dots(width: int) -> Callable[..., None]:
    """Return the loop for rows of one width: (n, width) float32, (width,), and (n,) to write."""
    import numba  # Slow: small catalogues do without.

    fetch = _fetch()

    @numba.njit("void(float32[:,::1], float32[::1], float32[::1])", fastmath=True, nogil=True)
    def dots(vectors: np.ndarray, query: np.ndarray, found: np.ndarray) -> None:
        for row in range(vectors.shape[0]):
            for line in range(0, 4 * width, _LINE):
                fetch(vectors, 4 * row * width + line + _AHEAD)
            total = np.float32(0)
            for lane in range(width):
                total += vectors[row, lane] * query[lane]
            found[row] = total

    loop: Callable[..., None] = dots
    return loop


def _fetch() -> Any:  # noqa: ANN401 - numba's own
    """Return what asks for the cache line at some byte of an array; beyond its end it does no harm.

    The processor drops a prefetch of an address that it may not read.
    """
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    def fetch(typing: Any, array: Any, byte: Any) -> Any:  # noqa: ANN401, ARG001
        def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ANN401
            held = context.make_array(signature.args[0])(context, builder, given[0])
            start = builder.bitcast(held.data, ir.IntType(8).as_pointer())
            number = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [start.type, number, number, number])
            call = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
                builder.module, kind, "llvm.prefetch.p0"
            )
            # To read; to be kept; data.
            builder.call(call, [builder.gep(start, [given[1]]), number(0), number(3), number(1)])
            return context.get_dummy_value()

        return types.void(array, types.intp), code

    return intrinsic(fetch)
