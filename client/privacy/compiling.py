"""Loops in LLVM's language, compiled where they are needed.

A loop that numpy takes several passes over memory for is several times as fast in one. LLVM itself
is loaded, and makes machine code of it, in a twentieth of a second, where numba takes more than
half of one, and every message to a shop starts a process that would pay for it. Nothing is kept on
disk. Each loop has a twin in numpy that does the same to the last bit, for where there is no LLVM:
no operation here may be fused with the next.
"""

import ctypes
import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

_KINDS = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}


#: Declares what :func:`fetched_ahead` calls.
FETCH = "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"
_LINE = 64


def fetched_ahead(
    at: str,
    count: str,
    places: str,
    tables: Sequence[str],
    number: str,
    size: int,
    *,
    written: bool = True,
) -> str:
    """Return instructions that fetch the row whose turn comes some rows on; rows lie apart.

    Parameters
    ----------
    at, count
        Which row is at hand, and how many there are.
    places
        Pointer to the rows' places in the tables, 64 bits each.
    tables, number, size
        Pointers to tables of ``%width`` columns, the type of their numbers, and how many bytes of a
        row are fetched.
    written
        Whether the row will be changed; one that is only read takes less time, and is asked for
        earlier.
    """
    lines = "".join(
        f"""
  %next_row{place} = getelementptr {number}, ptr {table}, i64 %next_first"""
        + "".join(
            f"""
  %next_line{place}_{line} = getelementptr i8, ptr %next_row{place}, i64 {line * _LINE}
  call void @llvm.prefetch.p0(ptr %next_line{place}_{line}, i32 {int(written)}, i32 3, i32 1)"""
            for line in range(size // _LINE)
        )
        for place, table in enumerate(tables)
    )
    return f"""
  %ahead = add i64 {at}, {8 if written else 16}
  %is_there = icmp slt i64 %ahead, {count}
  %next = select i1 %is_there, i64 %ahead, i64 {at}
  %next_at = getelementptr i64, ptr {places}, i64 %next
  %next_place = load i64, ptr %next_at
  %next_first = mul i64 %next_place, %width{lines}
"""


@cache
def function(code: str, name: str, arguments: str) -> Callable[..., None] | None:
    """Return a compiled function, or None where there is no compiler.

    Parameters
    ----------
    code
        A module of LLVM's language; compiled once, whichever of its functions are asked for.
    arguments
        A letter for each of the function's arguments: ``p`` a pointer, ``i`` a whole number of 64
        bits, ``d`` a float64.
    """
    try:
        found = int(_compiled(code).get_function_address(name))
    except (ImportError, OSError, RuntimeError) as error:
        logger.warning("loop=%s compiled=no reason=%s", name, type(error).__name__)
        return None
    return ctypes.CFUNCTYPE(None, *(_KINDS[letter] for letter in arguments))(found)


def address(array: np.ndarray, kind: type[np.generic]) -> int:
    """Return where an array begins in memory, if it is just as a loop expects it.

    Raises
    ------
    TypeError
        If it has other values, or is not contiguous.
    """
    if array.dtype != kind or not array.flags.c_contiguous:
        raise TypeError(f"not a contiguous array of {kind.__name__}")
    if array.size and array.flags.writeable:
        # A third of the time that numpy takes to tell.
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    return int(array.ctypes.data)


@cache
def _compiled(code: str) -> Any:  # noqa: ANN401 - llvmlite has no types
    """Return the engine in which a module's machine code lives."""
    from llvmlite import binding  # Only shops that train need it.

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3
    )
    module = binding.parse_assembly(code)
    module.verify()
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    passes = binding.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine
