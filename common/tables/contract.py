"""The words of the contract: tables, columns, behaviours; none of them needs pandas."""

from collections.abc import Mapping
from typing import Literal

#: What becomes of rows that break the contract.
BadRows = Literal["refuse", "set-aside"]

BEHAVIORS = ("view", "favourite", "cart", "purchase", "rating")

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "interactions": ("merchant_id", "user_id", "item_id", "timestamp", "behavior"),
    "products": ("item_id",),
    "customers": ("user_id",),
    "stock": ("merchant_id", "item_id"),
}
#: Columns of interactions that may be there; any other is left unread.
OPTIONAL_INTERACTIONS = ("rating", "quantity", "price", "session_id")

#: How much one record of a behaviour says, where a configuration names none.
BEHAVIOR_WEIGHTS: Mapping[str, float] = {
    "view": 0.1,
    "favourite": 0.5,
    "cart": 0.5,
    "purchase": 1.0,
    "rating": 1.0,
}
#: Histories are summed and squared in float32: what weighs 1e20 there would be infinite.
MOST_WEIGHT = 1_000_000


def fault_of_weights(weights: Mapping[str, float]) -> str:
    """Return what is wrong with weights by behaviour; nothing where they can be used."""
    if unknown := sorted(set(weights) - set(BEHAVIORS)):
        return f"no behaviour is called {unknown[0]!r}; they are {', '.join(BEHAVIORS)}"
    for name, weight in weights.items():
        if not 0 <= weight <= MOST_WEIGHT:
            return f"a {name} weighs {weight}: give a finite weight from 0 to {MOST_WEIGHT:,}"
    if not any(weights.values()):
        return "no behaviour weighs anything: give one a weight above 0"
    return ""
