"""All shops' numbers of some rows at a time."""

from collections.abc import Iterator

# Numbers that are held at a time, in float64.
_NUMBERS = 1 << 22


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of rows of so many numbers, all shops' together, so that each stays small."""
    size = max(1, _NUMBERS // width)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
