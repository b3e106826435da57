"""One run as the server sees it: its name, plan, settings and the shapes of what travels."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.catalogue.stock import Stock
from common.features import Catalogue, Feature
from common.protocol import Arrays, TrainingPlan
from common.secure_sum.members import Roster
from common.shop_state import Slices
from server.settings import RunSettings

Shapes = Mapping[str, tuple[int, ...]]
#: Of the slices of a round together. Flower keeps a state that all shops are sent once, and each
#: slice by itself: where they are more than this, everyone is sent the whole state.
MOST_BYTES = 2**30
#: What comes with the messages of an exchange; or shop -> what it is sent alone.
Sent = Arrays | Callable[[str], Arrays]
#: Public facts of one step of a run, as plain JSON values.
Event = dict[str, object]


@dataclass(frozen=True)
class Job:
    """One run: its name, plan, settings and the shapes of what travels.

    ``trained`` are the arrays of ``shapes`` that shops send deltas of; ``features`` the public ones
    of the catalogue; ``members`` the operator's copy of the roster of secure sums, ``stock`` what
    shops are published to stock, of ``catalogue``: both or neither.
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
    catalogue: Catalogue | None = None

    def slices(self, state: Arrays) -> Slices | None:
        """Return what each shop is sent of a round's state; None: all of it."""
        if self.stock is None:
            return None
        assert self.catalogue is not None
        return Slices(self.plan, state, self.catalogue)

    def sent(self, state: Arrays, slices: Slices | None, shops: Iterable[str]) -> Sent:
        """Return what comes with the messages of a round to these shops."""
        if slices is None or (stock := self.stock) is None:
            return state
        if sum(slices.nbytes(stock.rows.get(shop)) for shop in shops) > MOST_BYTES:
            return state
        return lambda shop: slices.of(stock.rows.get(shop))
