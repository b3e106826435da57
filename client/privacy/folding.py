"""Sums of weighted rows, in float64: what units' clipped gradients come to in each row.

Never in float32: where two sums that differ by one unit cross powers of two at different units,
each rounds what follows on a grid of its own, and what one unit moves can grow without bound
(Casacuberta et al. 2022, arXiv 2207.10635, section 5). In float64 a sum of ``n`` vectors of norm
``C`` is off by ``n² C 2^-53`` at most, whatever they are: a millionth of ``C`` for 100,000 units.
"""

from dataclasses import dataclass

import numpy as np

from client.privacy.compiling import FETCH, address, fetched_ahead, function
from client.privacy.moving import add_rows

# Where a row's terms are.
_BOUNDS = """
  %first_at = getelementptr i32, ptr %starts, i64 %row
  %first_small = load i32, ptr %first_at
  %first = sext i32 %first_small to i64
  %row_next = add i64 %row, 1
  %last_at = getelementptr i32, ptr %starts, i64 %row_next
  %last_small = load i32, ptr %last_at
  %last = sext i32 %last_small to i64
"""

# For each term of a row: the weight times the term's values, to %row_sums; then to %row_done.
_TERMS = """
next_term:
  %term = phi i64 [%first, %row_begins], [%term_next, %term_done]
  %more_terms = icmp slt i64 %term, %last
  br i1 %more_terms, label %term_begins, label %row_done

term_begins:
  %source_at = getelementptr i32, ptr %sources, i64 %term
  %source_small = load i32, ptr %source_at
  %source = sext i32 %source_small to i64
  %weight_at = getelementptr double, ptr %weights, i64 %term
  %weight = load double, ptr %weight_at
  %other = sub i64 %source, %count
  %is_other = icmp sge i64 %other, 0
  %from = select i1 %is_other, ptr %others, ptr %values
  %place = select i1 %is_other, i64 %other, i64 %source
  %value_first = mul i64 %place, %width
  %term_values = getelementptr float, ptr %from, i64 %value_first
  br label %value

value:
  %column = phi i64 [0, %term_begins], [%column_next, %value]
  %value_at = getelementptr float, ptr %term_values, i64 %column
  %single = load float, ptr %value_at
  %exact = fpext float %single to double
  %scaled = fmul double %exact, %weight
  %sum_at = getelementptr double, ptr %row_sums, i64 %column
  %sum = load double, ptr %sum_at
  %total = fadd double %sum, %scaled
  store double %total, ptr %sum_at
  %column_next = add i64 %column, 1
  %more_values = icmp slt i64 %column_next, %width
  br i1 %more_values, label %value, label %term_done

term_done:
  %term_next = add i64 %term, 1
  br label %next_term
"""

_FOLD = f"""
define void @fold_rows(ptr noalias %values, ptr noalias %others, i64 %count, ptr noalias %sources,
                       ptr noalias %weights, ptr noalias %starts, i64 %rows, i64 %width,
                       ptr noalias %slots, ptr noalias %sums) {{
start:
  br label %next_row

next_row:
  %row = phi i64 [0, %start], [%row_next, %row_done]
  %more_rows = icmp slt i64 %row, %rows
  br i1 %more_rows, label %row_begins, label %done

row_begins:
  {fetched_ahead("%row", "%rows", "%slots", "%sums", "double", 256)}
  {_BOUNDS}
  %slot_at = getelementptr i64, ptr %slots, i64 %row
  %slot = load i64, ptr %slot_at
  %sum_first = mul i64 %slot, %width
  %row_sums = getelementptr double, ptr %sums, i64 %sum_first
  br label %next_term
{_TERMS}
row_done:
  br label %next_row

done:
  ret void
}}
"""

# The same, of one row at a time, and at its end times the scale into the row's place in a table,
# which is fetched some rows ahead.
_MOVE = f"""
define void @move_rows(ptr noalias %values, ptr noalias %others, i64 %count, ptr noalias %sources,
                       ptr noalias %weights, ptr noalias %starts, i64 %rows, i64 %width,
                       ptr noalias %places, ptr noalias %row_sums, ptr noalias %table,
                       double %scale) {{
start:
  br label %next_row

next_row:
  %row = phi i64 [0, %start], [%row_next, %row_moved]
  %more_rows = icmp slt i64 %row, %rows
  br i1 %more_rows, label %clear, label %done

clear:
  %cleared = phi i64 [0, %next_row], [%cleared_next, %clear]
  %clear_at = getelementptr double, ptr %row_sums, i64 %cleared
  store double 0.0, ptr %clear_at
  %cleared_next = add i64 %cleared, 1
  %more_to_clear = icmp slt i64 %cleared_next, %width
  br i1 %more_to_clear, label %clear, label %row_begins

row_begins:
  {fetched_ahead("%row", "%rows", "%places", "%table", "float", 128)}
  {_BOUNDS}
  br label %next_term
{_TERMS}
row_done:
  %table_place_at = getelementptr i64, ptr %places, i64 %row
  %table_place = load i64, ptr %table_place_at
  %table_first = mul i64 %table_place, %width
  %table_row = getelementptr float, ptr %table, i64 %table_first
  br label %move

move:
  %moved = phi i64 [0, %row_done], [%moved_next, %move]
  %from_at = getelementptr double, ptr %row_sums, i64 %moved
  %added = load double, ptr %from_at
  %change = fmul double %added, %scale
  %to_at = getelementptr float, ptr %table_row, i64 %moved
  %old = load float, ptr %to_at
  %before = fpext float %old to double
  %new = fadd double %before, %change
  %rounded = fptrunc double %new to float
  store float %rounded, ptr %to_at
  %moved_next = add i64 %moved, 1
  %more_to_move = icmp slt i64 %moved_next, %width
  br i1 %more_to_move, label %move, label %row_moved

row_moved:
  br label %next_row

done:
  ret void
}}
"""

_LOOPS = FETCH + _FOLD + _MOVE


@dataclass(frozen=True)
class Terms:
    """What sums of rows are made of.

    Attributes
    ----------
    values, others
        (N, D) and (S, D) float32 that terms are taken from.
    sources
        (K,) int32 which one: a row of ``values``, or from N on of ``others``.
    weights
        (K,) float64 of the terms.
    starts
        (R + 1,) int32, ascending: where each row's terms begin, and where the last one's end.
    """

    values: np.ndarray
    others: np.ndarray
    sources: np.ndarray
    weights: np.ndarray
    starts: np.ndarray

    def __post_init__(self) -> None:
        """Refuse terms that are not there: the loops check nothing."""
        if not (
            self.values.shape[1] == self.others.shape[1]
            and len(self.sources) == len(self.weights)
            and self.starts[0] == 0
            and self.starts[-1] == len(self.sources)
            and self.sources.min(initial=0) >= 0
            and self.sources.max(initial=-1) < len(self.values) + len(self.others)
        ):
            raise IndexError("terms that are not there")

    def loops_over(self) -> tuple[int, ...]:
        """Return what both loops are given first."""
        return (
            address(self.values, np.float32),
            address(self.others, np.float32),
            len(self.values),
            address(self.sources, np.int32),
            address(self.weights, np.float64),
            address(self.starts, np.int32),
            len(self.starts) - 1,
            self.values.shape[1],
        )

    def fold(self, sums: np.ndarray, slots: np.ndarray) -> None:
        """Do what the loop does: all rows' first terms, then their second ones, and so on."""
        lengths = np.diff(self.starts)
        for step in range(lengths.max(initial=0)):
            left = np.flatnonzero(lengths > step)
            terms = self.starts[left] + step
            places = self.sources[terms]
            found = np.empty((len(left), self.values.shape[1]))
            inside = places < len(self.values)
            found[inside] = self.values[places[inside]]
            found[~inside] = self.others[places[~inside] - len(self.values)]
            sums[slots[left]] += found * self.weights[terms, None]


def fold_rows(terms: Terms, slots: np.ndarray, sums: np.ndarray) -> None:
    """Add weighted terms to sums, each row's one after the other.

    Parameters
    ----------
    slots
        (R,) int64, each once: which row of ``sums`` a row's terms go to.
    sums
        (M, D) float64, changed in place.
    """
    if not sums.size:
        return
    _check(terms, slots, sums)
    loop = function(_LOOPS, "fold_rows", "ppipppiipp")
    if loop is None:
        terms.fold(sums, slots)
    else:
        loop(*terms.loops_over(), address(slots, np.int64), address(sums, np.float64))


def move_rows(terms: Terms, rows: np.ndarray, table: np.ndarray, scale: float) -> None:
    """Add ``scale`` times each row's sum of weighted terms to a table, rounding once.

    Parameters
    ----------
    rows
        (R,) int64, each once: which row of ``table`` a row's terms go to.
    table
        (M, D) float32, changed in place.
    """
    if not table.size:
        return
    _check(terms, rows, table)
    loop = function(_LOOPS, "move_rows", "ppipppiipppd")
    if loop is None:
        sums = np.zeros((len(rows), table.shape[1]))
        terms.fold(sums, np.arange(len(rows)))
        add_rows(table, rows, sums, scale)
        return
    room = np.empty(table.shape[1])
    places, target = address(rows, np.int64), address(table, np.float32)
    loop(*terms.loops_over(), places, address(room, np.float64), target, scale)


def _check(terms: Terms, rows: np.ndarray, target: np.ndarray) -> None:
    if not (
        len(terms.starts) == len(rows) + 1
        and target.flags.writeable
        and target.shape[1] == terms.values.shape[1]
        and rows.min(initial=0) >= 0
        and rows.max(initial=-1) < len(target)
    ):
        raise IndexError("rows that are not there")
