"""Noise into rows of a table: drawn, added in float64 and rounded once.

What the loop does is numpy's work of ten passes over memory, several times as slow as one. It is
written in LLVM's language: LLVM itself is loaded, and makes machine code of it, in a twentieth of a
second, where numba takes more than half of one, and every message to a shop starts a process that
would pay for it. Nothing is kept on disk. Where there is no LLVM, numpy does the same, to the last
bit.
"""

import ctypes
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch

from client.privacy.noise import NoiseSource, SystemNoise
from client.privacy.normals import BITS, CELLS, EXPONENT, MOST

logger = logging.getLogger(__name__)

# For each row: its place in the table, and its noise's size; for each value: a cell's low edge and
# the place above it, as in :mod:`client.privacy.normals`, times the size, plus what is there. No
# operation may be fused with the next: numpy rounds after each.
_LOOP = f"""
define void @add_noise(ptr noalias %table, ptr noalias %rows, ptr noalias %scales, i64 %count,
                       i64 %width, ptr noalias %words, ptr noalias %lows) {{
start:
  br label %next_row

next_row:
  %at = phi i64 [0, %start], [%at_next, %row_done]
  %more_rows = icmp slt i64 %at, %count
  br i1 %more_rows, label %row, label %done

row:
  %row_at = getelementptr i64, ptr %rows, i64 %at
  %row_number = load i64, ptr %row_at
  %row_first = mul i64 %row_number, %width
  %weights = getelementptr float, ptr %table, i64 %row_first
  %scale_at = getelementptr double, ptr %scales, i64 %at
  %scale = load double, ptr %scale_at
  %word_first = mul i64 %at, %width
  %row_words = getelementptr i64, ptr %words, i64 %word_first
  br label %value

value:
  %column = phi i64 [0, %row], [%column_next, %value]
  %word_at = getelementptr i64, ptr %row_words, i64 %column
  %word = load i64, ptr %word_at
  %cell = and i64 %word, {CELLS - 1}
  %low_at = getelementptr double, ptr %lows, i64 %cell
  %low = load double, ptr %low_at
  %mantissa = lshr i64 %word, {BITS}
  %bits = or i64 %mantissa, {int(EXPONENT)}
  %above = bitcast i64 %bits to double
  %normal = fadd double %low, %above
  %noise = fmul double %normal, %scale
  %weight_at = getelementptr float, ptr %weights, i64 %column
  %weight = load float, ptr %weight_at
  %exact = fpext float %weight to double
  %total = fadd double %exact, %noise
  %rounded = fptrunc double %total to float
  store float %rounded, ptr %weight_at
  %column_next = add i64 %column, 1
  %more_values = icmp slt i64 %column_next, %width
  br i1 %more_values, label %value, label %row_done

row_done:
  %at_next = add i64 %at, 1
  br label %next_row

done:
  ret void
}}
"""


class Adder(Protocol):
    """Adds noise to a few rows of a table at a time.

    Attributes
    ----------
    rows
        How many at most.
    """

    rows: int

    def add(self, table: np.ndarray, rows: np.ndarray, scales: np.ndarray) -> None:
        """Add N(0, scales²) to some rows of a contiguous (N, D) float32 table.

        Parameters
        ----------
        rows
            (R,) int64, ascending, each once.
        scales
            (R,) float64.
        """


def adder(source: NoiseSource, width: int) -> Adder:
    """Return what adds ``source``'s noise to rows of ``width`` values."""
    if isinstance(source, SystemNoise) and width <= MOST and _loop() is not None:
        return CompiledAdder(source, width)
    return NumpyAdder(source, width)


class NumpyAdder:
    """See :class:`Adder`; for any source."""

    def __init__(self, source: NoiseSource, width: int) -> None:
        self.rows = max(1, MOST // max(width, 1))
        self._source = source
        self._noise = np.empty((self.rows, width))
        self._present = np.empty((self.rows, width), np.float32)

    def add(self, table: np.ndarray, rows: np.ndarray, scales: np.ndarray) -> None:
        """See :class:`Adder`."""
        noise, present = self._noise[: len(rows)], self._present[: len(rows)]
        # "clip" only to write into ``out`` unbuffered.
        table.take(rows, axis=0, out=present, mode="clip")
        self._source.fill(noise)
        # torch broadcasts along rows twice as fast as numpy.
        torch.from_numpy(noise).mul_(torch.from_numpy(scales).unsqueeze(1))
        noise += present
        present[...] = noise
        put_rows(table, rows, present)


class CompiledAdder:
    """See :class:`Adder`; what :class:`NumpyAdder` makes of the same words, to the last bit."""

    def __init__(self, source: SystemNoise, width: int) -> None:
        self.rows = max(1, MOST // max(width, 1))
        self._normals = source.normals
        self._width = width
        loop = _loop()
        assert loop is not None
        self._loop, self._lows = loop, _address(self._normals.lows, np.float64)

    def add(self, table: np.ndarray, rows: np.ndarray, scales: np.ndarray) -> None:
        """See :class:`Adder`."""
        count, width = len(rows), self._width
        if not count or not width:
            return
        # The loop checks nothing.
        if not (
            count == len(scales) <= self.rows
            and table.shape[1] == width
            and table.flags.writeable
            and 0 <= rows[0] <= rows[-1] < len(table)
        ):
            raise IndexError("noise for rows that are not there")
        starts = (_address(table, np.float32), _address(rows, np.int64))
        sizes = _address(scales, np.float64)
        words, places, values = self._normals.draw(count * width)
        # What the loop adds to the few values that are made otherwise is overwritten.
        which = places // width
        flat, there = table.reshape(-1), places + (rows[which] - which) * width
        kept = flat[there]
        self._loop(*starts, sizes, count, width, _address(words, np.uint64), self._lows)
        flat[there] = values * scales[which] + kept


def _address(array: np.ndarray, kind: type[np.generic]) -> int:
    """Return where an array begins in memory, if it is just as the loop expects it."""
    if array.dtype != kind or not array.flags.c_contiguous:
        raise TypeError(f"not a contiguous array of {kind.__name__}")
    return int(array.ctypes.data)


def put_rows(target: np.ndarray, rows: np.ndarray, values: np.ndarray) -> None:
    """Set distinct rows of a contiguous (N, D) array, each as one item: twice as fast."""
    item = np.dtype((np.void, target.shape[1] * target.itemsize))
    np.put(target.view(item), rows, values.view(item))


@cache
def _loop() -> Callable[..., None] | None:
    """Return the compiled loop, or None where it can't be had."""
    try:
        found, _ = compiled(_LOOP, "add_noise")
    except (ImportError, OSError, RuntimeError) as error:
        logger.warning("noise=slower reason=%s", type(error).__name__)
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    kind = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, number, number, pointer, pointer)
    return kind(found)


@cache
def compiled(code: str, name: str) -> tuple[int, Any]:
    """Return the address of a function in LLVM's language, compiled, and what keeps it alive."""
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
    return engine.get_function_address(name), engine
