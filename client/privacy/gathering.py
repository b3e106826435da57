"""Sums of two tables' rows, where they are read."""

import numpy as np

from client.privacy.compiling import FETCH, address, fetched_ahead, function

_TABLES = ("%start", "%moved")

# For each place: zeros if it is below 0, else the sum of what both tables hold there.
_LOOP = f"""
{FETCH}

define void @gather_sums(ptr noalias %start, ptr noalias %moved, ptr noalias %places,
                         ptr noalias %rows, i64 %count, i64 %width) {{
begin:
  br label %next_row

next_row:
  %at = phi i64 [0, %begin], [%at_next, %row_done]
  %more_rows = icmp slt i64 %at, %count
  br i1 %more_rows, label %row, label %done

row:
  {fetched_ahead("%at", "%count", "%places", _TABLES, "float", 128, written=False)}
  %place_at = getelementptr i64, ptr %places, i64 %at
  %place = load i64, ptr %place_at
  %to = mul i64 %at, %width
  %row_values = getelementptr float, ptr %rows, i64 %to
  %is_padding = icmp slt i64 %place, 0
  br i1 %is_padding, label %zero, label %sums

zero:
  %zero_column = phi i64 [0, %row], [%zero_next, %zero]
  %zero_at = getelementptr float, ptr %row_values, i64 %zero_column
  store float 0.0, ptr %zero_at
  %zero_next = add i64 %zero_column, 1
  %more_zeros = icmp slt i64 %zero_next, %width
  br i1 %more_zeros, label %zero, label %row_done

sums:
  %from = mul i64 %place, %width
  %start_values = getelementptr float, ptr %start, i64 %from
  %moved_values = getelementptr float, ptr %moved, i64 %from
  br label %value

value:
  %column = phi i64 [0, %sums], [%column_next, %value]
  %start_at = getelementptr float, ptr %start_values, i64 %column
  %start_value = load float, ptr %start_at
  %moved_at = getelementptr float, ptr %moved_values, i64 %column
  %moved_value = load float, ptr %moved_at
  %total = fadd float %start_value, %moved_value
  %value_at = getelementptr float, ptr %row_values, i64 %column
  store float %total, ptr %value_at
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


def gather_sums(start: np.ndarray, moved: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the sums of two tables' rows, (n, D) float32; zeros where a place is below 0.

    Parameters
    ----------
    start, moved
        (N, D) contiguous float32.
    places
        (n,) int64 rows, in any order.

    Raises
    ------
    IndexError
        If a row is not there.
    """
    rows = np.empty((len(places), start.shape[1]), dtype=np.float32)
    if not rows.size:
        return rows
    # The loop checks nothing.
    if start.shape != moved.shape or places.max() >= len(start):
        raise IndexError("rows that are not there")
    where = (
        address(start, np.float32),
        address(moved, np.float32),
        address(places, np.int64),
        address(rows, np.float32),
    )
    loop = function(_LOOP, "gather_sums", "ppppii")
    if loop is None:
        _gather_sums(start, moved, places, rows)
    else:
        loop(*where, *rows.shape)
    return rows


def _gather_sums(
    start: np.ndarray, moved: np.ndarray, places: np.ndarray, rows: np.ndarray
) -> None:
    """Do what the loop does."""
    known = np.maximum(places, 0)
    np.add(start.take(known, axis=0), moved.take(known, axis=0), out=rows)
    rows[places < 0] = 0
