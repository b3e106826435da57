"""One run as the server sees it: its name, plan, settings and the shapes of what travels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.features import Feature
from common.protocol import TrainingPlan
from common.secure_sum.members import Roster
from common.stock import Stock
from server.settings import RunSettings

Shapes = Mapping[str, tuple[int, ...]]
#: Public facts of one step of a run, as plain JSON values.
Event = dict[str, object]


@dataclass(frozen=True)
class Job:
    """One run: its name, plan, settings and the shapes of what travels.

    ``trained`` are the arrays of ``shapes`` that shops send deltas of; ``features`` the public ones
    of the catalogue; ``members`` the operator's copy of the roster of secure sums, ``stock`` what
    shops are published to stock.
    """

    run_name: str
    plan: TrainingPlan
    settings: RunSettings
    catalogue_fingerprint: str
    shapes: Shapes
    trained: Sequence[str]
    features: Sequence[Feature] = ()
    members: Roster | None = None
    stock: Stock | None = None
