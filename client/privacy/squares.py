"""Squared norms of units' gradients, in float64."""

import numpy as np

from client.privacy.compiling import address, function

# Values whose float64 copies are in memory at a time.
_CHUNK = 1 << 14

# For each unit, each of its rows that is not apart, each value: its square to the column's sum.
_LOOP = """
define void @add_squares(ptr noalias %values, ptr noalias %apart, i64 %units, i64 %rows, i64 %width,
                         ptr noalias %sums) {
start:
  br label %next_unit

next_unit:
  %unit = phi i64 [0, %start], [%unit_next, %unit_done]
  %more_units = icmp slt i64 %unit, %units
  br i1 %more_units, label %unit_begins, label %done

unit_begins:
  %sum_first = mul i64 %unit, %width
  %unit_sums = getelementptr double, ptr %sums, i64 %sum_first
  %row_first = mul i64 %unit, %rows
  br label %next_row

next_row:
  %row = phi i64 [0, %unit_begins], [%row_next, %row_done]
  %more_rows = icmp slt i64 %row, %rows
  br i1 %more_rows, label %row_begins, label %unit_done

row_begins:
  %place = add i64 %row_first, %row
  %apart_at = getelementptr i8, ptr %apart, i64 %place
  %is_apart = load i8, ptr %apart_at
  %counts = icmp eq i8 %is_apart, 0
  %value_first = mul i64 %place, %width
  %row_values = getelementptr float, ptr %values, i64 %value_first
  br i1 %counts, label %value, label %row_done

value:
  %column = phi i64 [0, %row_begins], [%column_next, %value]
  %value_at = getelementptr float, ptr %row_values, i64 %column
  %single = load float, ptr %value_at
  %exact = fpext float %single to double
  %square = fmul double %exact, %exact
  %sum_at = getelementptr double, ptr %unit_sums, i64 %column
  %sum = load double, ptr %sum_at
  %total = fadd double %sum, %square
  store double %total, ptr %sum_at
  %column_next = add i64 %column, 1
  %more_values = icmp slt i64 %column_next, %width
  br i1 %more_values, label %value, label %row_done

row_done:
  %row_next = add i64 %row, 1
  br label %next_row

unit_done:
  %unit_next = add i64 %unit, 1
  br label %next_unit

done:
  ret void
}
"""


def unit_squares(values: np.ndarray, apart: np.ndarray, units: int) -> np.ndarray:
    """Return the sum of squares of each unit's rows, ``(units,)`` float64.

    Each column is summed by itself, row after row, and then the columns: an order that has nothing
    to do with other units.

    Parameters
    ----------
    values
        ``(units L, D)`` float32.
    apart
        ``(units L,)`` mask of rows that do not count.
    """
    sums = np.zeros((units, values.shape[1]))
    if not values.size:
        return np.zeros(units)
    if len(values) % units or apart.shape != values.shape[:1]:
        raise ValueError("units have as many rows each, and a mark each")
    loop = function(_LOOP, "add_squares", "ppiiip")
    if loop is None:
        _add_squares(values, apart, sums)
    else:
        where = (address(values, np.float32), address(apart, np.bool_), units)
        loop(*where, len(values) // units, values.shape[1], address(sums, np.float64))
    total: np.ndarray = sums.sum(axis=1)
    return total


def _add_squares(values: np.ndarray, apart: np.ndarray, sums: np.ndarray) -> None:
    """Do what the loop does, some units at a time."""
    rows, width = len(values) // len(sums), values.shape[1]
    count = max(1, _CHUNK // (rows * width))
    for start in range(0, len(sums), count):
        part = slice(start * rows, (start + count) * rows)
        exact = values[part].astype(np.float64)
        exact[apart[part]] = 0.0
        exact *= exact
        # Along rows numpy adds one after the other.
        sums[start : start + count] = exact.reshape(-1, rows, width).sum(axis=1)
