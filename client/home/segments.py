"""What is served to who has no history, beside what sells: :mod:`client.home.segment_fitting`."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.explanation import add_part


@dataclass(frozen=True)
class Segments:
    """What is added to what sells for who has these attributes; a shop's own state.

    Attributes
    ----------
    names
        (S,) attribute and value.
    tastes
        (S, n) float32.
    """

    names: tuple[tuple[str, str], ...]
    tastes: np.ndarray

    def parts(self, attributes: Mapping[str, str]) -> dict[str, np.ndarray]:
        """Return label -> (n,) of the segments with these attributes that are known."""
        places = {name: place for place, name in enumerate(self.names)}
        parts: dict[str, np.ndarray] = {}
        for name, value in attributes.items():
            if (place := places.get((name, value))) is not None:
                add_part(parts, f"{name} {value}", self.tastes[place])
        return parts
