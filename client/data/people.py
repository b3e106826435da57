"""What a shop's customers table says of one of them."""

import pandas as pd

from common.tables.checks import MERCHANT
from common.tables.columns import value_text


def person_of(people: pd.DataFrame, user_id: str, merchant_id: str | None) -> dict[str, str]:
    """Return what a checked customers table says of one customer of a shop, "" left out."""
    own = people["user_id"] == user_id
    if MERCHANT in people:
        own &= people[MERCHANT] == merchant_id
    rows = people[own.to_numpy(dtype=bool)].drop(columns=["user_id", MERCHANT], errors="ignore")
    said = {str(name): value_text(rows[name].iloc[0]) for name in rows} if len(rows) else {}
    return {name: text for name, text in said.items() if text}
