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

# Terms of a row lie apart: each is fetched so many terms ahead, up to the last row's.
_AHEAD = 16
_ALL = """
  %all_at = getelementptr i32, ptr %starts, i64 %rows
  %all_small = load i32, ptr %all_at
  %all = sext i32 %all_small to i64
"""

# For each term of a row: the weight times the term's values, to %row_sums; then to %row_done.
_TERMS = f"""
next_term:
  %term = phi i64 [%first, %row_begins], [%term_next, %term_done]
  %more_terms = icmp slt i64 %term, %last
  br i1 %more_terms, label %term_begins, label %row_done

term_begins:
  %term_ahead = add i64 %term, {_AHEAD}
  %is_term = icmp slt i64 %term_ahead, %all
  %fetched_term = select i1 %is_term, i64 %term_ahead, i64 %term
  %fetched_at = getelementptr i32, ptr %sources, i64 %fetched_term
  %fetched_small = load i32, ptr %fetched_at
  %fetched = sext i32 %fetched_small to i64
  %fetched_first = mul i64 %fetched, %width
  %fetched_line = getelementptr float, ptr %values, i64 %fetched_first
  %fetched_second = getelementptr i8, ptr %fetched_line, i64 64
  call void @llvm.prefetch.p0(ptr %fetched_line, i32 0, i32 3, i32 1)
  call void @llvm.prefetch.p0(ptr %fetched_second, i32 0, i32 3, i32 1)
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


def _cleared(before: str) -> str:
    """Return the block that sets a row's sums to zero, entered from the block ``before``."""
    return f"""
clear:
  %cleared = phi i64 [0, {before}], [%cleared_next, %clear]
  %clear_at = getelementptr double, ptr %row_sums, i64 %cleared
  store double 0.0, ptr %clear_at
  %cleared_next = add i64 %cleared, 1
  %more_to_clear = icmp slt i64 %cleared_next, %width
  br i1 %more_to_clear, label %clear, label %row_begins
"""


# Sums that begin with this are cleared one at a time, and are still in the cache for their terms.
_FOLD = f"""
define void @fold_rows(ptr noalias %values, ptr noalias %others, i64 %count, ptr noalias %sources,
                       ptr noalias %weights, ptr noalias %starts, i64 %rows, i64 %width,
                       ptr noalias %slots, ptr noalias %sums, i64 %fresh) {{
start:
  {_ALL}
  br label %next_row

next_row:
  %row = phi i64 [0, %start], [%row_next, %row_done]
  %more_rows = icmp slt i64 %row, %rows
  br i1 %more_rows, label %slot, label %done

slot:
  {fetched_ahead("%row", "%rows", "%slots", ["%sums"], "double", 256)}
  %slot_at = getelementptr i64, ptr %slots, i64 %row
  %slot_number = load i64, ptr %slot_at
  %sum_first = mul i64 %slot_number, %width
  %row_sums = getelementptr double, ptr %sums, i64 %sum_first
  %is_fresh = icmp sge i64 %slot_number, %fresh
  br i1 %is_fresh, label %clear, label %row_begins

{_cleared("%slot")}
row_begins:
  {_BOUNDS}
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
  {_ALL}
  br label %next_row

next_row:
  %row = phi i64 [0, %start], [%row_next, %row_moved]
  %more_rows = icmp slt i64 %row, %rows
  br i1 %more_rows, label %clear, label %done

{_cleared("%next_row")}
row_begins:
  {fetched_ahead("%row", "%rows", "%places", ["%table"], "float", 128)}
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

# For each row: its slot, or the next one if it has none, which is then its own; how many slots are
# taken is counted in place.
_TAKE = """
define void @take_slots(ptr noalias %rows, i64 %count, ptr noalias %slots, ptr noalias %owners,
                        ptr noalias %taken, ptr noalias %found) {
start:
  %taken_before = load i64, ptr %taken
  br label %next_row

next_row:
  %at = phi i64 [0, %start], [%at_next, %row]
  %last = phi i64 [%taken_before, %start], [%last_now, %row]
  %more_rows = icmp slt i64 %at, %count
  br i1 %more_rows, label %row, label %done

row:
  %row_at = getelementptr i64, ptr %rows, i64 %at
  %row_number = load i64, ptr %row_at
  %slot_at = getelementptr i32, ptr %slots, i64 %row_number
  %slot_before = load i32, ptr %slot_at
  %has_none = icmp eq i32 %slot_before, 0
  %one_more = zext i1 %has_none to i64
  %last_now = add i64 %last, %one_more
  %next_slot = trunc i64 %last_now to i32
  %slot = select i1 %has_none, i32 %next_slot, i32 %slot_before
  store i32 %slot, ptr %slot_at
  %slot_number = sext i32 %slot to i64
  %place = sub i64 %slot_number, 1
  %owner_at = getelementptr i64, ptr %owners, i64 %place
  store i64 %row_number, ptr %owner_at
  %found_at = getelementptr i64, ptr %found, i64 %at
  store i64 %place, ptr %found_at
  %at_next = add i64 %at, 1
  br label %next_row

done:
  store i64 %last, ptr %taken
  ret void
}
"""

_LOOPS = FETCH + _FOLD + _MOVE + _TAKE


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


def take_slots(
    rows: np.ndarray, slots: np.ndarray, owners: np.ndarray, taken: int
) -> tuple[np.ndarray, int]:
    """Find the slots of rows, and give the next free one to each row that has none.

    Parameters
    ----------
    rows
        (R,) int64, each once.
    slots
        (N,) int32, changed in place: each row's slot, from 1; 0 has none.
    owners
        (N,) int64, changed in place: the row of each slot, from 0.
    taken
        How many slots are taken.

    Returns
    -------
    tuple
        (R,) int64 the rows' slots, from 0, and how many are taken now.
    """
    if not (
        rows.min(initial=0) >= 0
        and rows.max(initial=-1) < len(slots) == len(owners) < np.iinfo(np.int32).max
        # If all are new, or else as many as are.
        and (
            0 <= taken <= len(slots) - len(rows)
            or 0 <= taken <= len(slots) - np.count_nonzero(slots[rows] == 0)
        )
    ):
        raise IndexError("slots that are not there")
    loop = function(_LOOPS, "take_slots", "pipppp")
    if loop is None:
        new = rows[slots[rows] == 0]
        now = taken + len(new)
        owners[taken:now] = new
        slots[new] = np.arange(taken, now, dtype=np.int32) + np.int32(1)
        return slots[rows] - np.int64(1), now
    found, count = np.empty(len(rows), np.int64), np.array([taken])
    starts = (address(slots, np.int32), address(owners, np.int64), address(count, np.int64))
    loop(address(rows, np.int64), len(rows), *starts, address(found, np.int64))
    return found, int(count[0])


def fold_rows(terms: Terms, slots: np.ndarray, sums: np.ndarray, fresh: int | None = None) -> None:
    """Add weighted terms to sums, each row's one after the other.

    Parameters
    ----------
    slots
        (R,) int64, each once: which row of ``sums`` a row's terms go to.
    sums
        (M, D) float64, changed in place.
    fresh
        From which slot on sums begin at zero, whatever is there.
    """
    if not sums.size:
        return
    _check(terms, slots, sums)
    fresh = len(sums) if fresh is None else fresh
    loop = function(_LOOPS, "fold_rows", "ppipppiippi")
    if loop is None:
        sums[slots[slots >= fresh]] = 0.0
        terms.fold(sums, slots)
    else:
        loop(*terms.loops_over(), address(slots, np.int64), address(sums, np.float64), fresh)


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
