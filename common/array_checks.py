"""Arrays that came over the wire, checked before anything is done with them."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from common.errors import ProtocolError

# Of a stranger's names, and characters of each, that are shown: they go into logs.
_NAMES, _NAME_CHARS = 5, 64
# Of an array that is checked, so that what is worked on stays near the processor.
_PART = 1 << 15


def check_names(names: Iterable[str], expected: Iterable[str]) -> None:
    """Raise :class:`ProtocolError` unless both hold the same names."""
    have, want = set(names), set(expected)
    if have != want:
        missing, extra = (
            [name[:_NAME_CHARS] for name in sorted(names)[:_NAMES]]
            for names in (want - have, have - want)
        )
        raise ProtocolError(f"array names differ: missing {missing}, unexpected {extra}")


def check_arrays(
    arrays: Mapping[str, np.ndarray],
    spec: Mapping[str, tuple[int, ...]],
    *,
    max_norm: float,
) -> None:
    """Check arrays that came over the wire before anything is done with them.

    Parameters
    ----------
    arrays
        What arrived.
    spec
        Name -> shape of what was asked for.
    max_norm
        Largest Euclidean norm allowed over all arrays together; 0 switches the bound off.

    Raises
    ------
    ProtocolError
        If a name, shape or type differs, a value is not finite, or the norm is too large.
    """
    check_names(arrays, spec)
    square = 0.0
    for name, shape in spec.items():
        array = arrays[name]
        if array.dtype != np.float32:
            raise ProtocolError(f"array {name!r} is {array.dtype}, not float32")
        if array.shape != tuple(shape):
            raise ProtocolError(f"array {name!r} has shape {array.shape}, not {tuple(shape)}")
        # In float64 no sum of squares of float32 overflows: it is finite if all values are.
        own = _square(array)
        if not math.isfinite(own):
            raise ProtocolError(f"array {name!r} holds values that are not finite")
        square += own
    if max_norm and square > max_norm**2:
        raise ProtocolError(f"the arrays' norm {square**0.5:.4g} is above {max_norm:.4g}")


def _square(array: np.ndarray) -> float:
    """Return the sum of squares in float64, a part at a time: a large array is read once."""
    flat, total = array.reshape(-1), 0.0
    with np.errstate(invalid="ignore"):
        for start in range(0, flat.size, _PART):
            part = flat[start : start + _PART].astype(np.float64)
            total += float(part @ part)
    return total
