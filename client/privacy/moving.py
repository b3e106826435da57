"""Multiples of rows into rows of a table."""

import numpy as np

from client.privacy.compiling import FETCH, address, fetched_ahead, function

# Values that numpy moves at a time.
_CHUNK = 1 << 15

# For each row: its place in the table; for each value: times the scale, plus what is there, in
# float64, and rounded once. Rows lie apart, so each is fetched some rows ahead.
_LOOP = f"""
{FETCH}

define void @add_rows(ptr noalias %table, ptr noalias %rows, ptr noalias %values, i64 %count,
                      i64 %width, double %scale) {{
start:
  br label %next_row

next_row:
  %at = phi i64 [0, %start], [%at_next, %row_done]
  %more_rows = icmp slt i64 %at, %count
  br i1 %more_rows, label %row, label %done

row:
  {fetched_ahead("%at", "%count", "%rows", ["%table"], "float", 128)}
  %row_at = getelementptr i64, ptr %rows, i64 %at
  %row_number = load i64, ptr %row_at
  %row_first = mul i64 %row_number, %width
  %weights = getelementptr float, ptr %table, i64 %row_first
  %value_first = mul i64 %at, %width
  %row_values = getelementptr double, ptr %values, i64 %value_first
  br label %value

value:
  %column = phi i64 [0, %row], [%column_next, %value]
  %value_at = getelementptr double, ptr %row_values, i64 %column
  %exact = load double, ptr %value_at
  %scaled = fmul double %exact, %scale
  %weight_at = getelementptr float, ptr %weights, i64 %column
  %weight = load float, ptr %weight_at
  %before = fpext float %weight to double
  %total = fadd double %before, %scaled
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


def add_rows(table: np.ndarray, rows: np.ndarray, values: np.ndarray, scale: float) -> None:
    """Add ``scale`` times values to rows of a contiguous (N, D) float32 table, rounding once.

    Parameters
    ----------
    rows
        (R,) int64, each once.
    values
        (R, D) float64.
    """
    if not values.size:
        return
    # The loop checks nothing.
    if not (
        values.shape == (len(rows), table.shape[1])
        and table.flags.writeable
        and rows.min() >= 0
        and rows.max() < len(table)
    ):
        raise IndexError("values for rows that are not there")
    where = (address(table, np.float32), address(rows, np.int64), address(values, np.float64))
    loop = function(_LOOP, "add_rows", "pppiid")
    if loop is None:
        _add_rows(table, rows, values, scale)
    else:
        loop(*where, *values.shape, scale)


def put_rows(target: np.ndarray, rows: np.ndarray, values: np.ndarray) -> None:
    """Set distinct rows of a contiguous (N, D) array, each as one item: twice as fast."""
    item = np.dtype((np.void, target.shape[1] * target.itemsize))
    np.put(target.view(item), rows, values.view(item))


def _add_rows(table: np.ndarray, rows: np.ndarray, values: np.ndarray, scale: float) -> None:
    """Do what the loop does, some rows at a time."""
    count = max(1, _CHUNK // table.shape[1])
    for start in range(0, len(rows), count):
        places = rows[start : start + count]
        total = values[start : start + count] * scale
        total += table.take(places, axis=0)
        put_rows(table, places, total.astype(np.float32))
