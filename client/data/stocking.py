"""What the federation publishes of this shop's shelves, beside what the shop's records say."""

from typing import Any

import numpy as np
import pandas as pd

from client.data.coverage import catalogue_rows
from client.data.mapping import ItemMapping
from client.settings import ShopSettings
from common.catalogue.stock import read_stock
from common.errors import ArtifactError
from common.features import Catalogue
from common.protocol import shop_key


def published_stock(
    settings: ShopSettings,
    catalogue: Catalogue,
    mapping: ItemMapping | None,
    own: pd.DataFrame,
    problems: list[str],
    advice: list[str],
) -> dict[str, Any] | None:
    """Return what the stock table beside the shop's catalogue says of it; None without a table.

    Parameters
    ----------
    own
        The shop's interactions, with its own product numbers.
    problems, advice
        Sentences are added.

    Returns
    -------
    dict
        ``fingerprint``; ``shops`` in the table; ``products`` that this shop stocks by it, null
        where it is not named and so stocks everything; ``unlisted``: products of its records that
        the table does not say it stocks.
    """
    try:
        stock = read_stock(settings.catalogue, catalogue)
    except ArtifactError as error:
        problems.append(f"{error}. What to do: get the catalogue from the federation's operator")
        return None
    if stock is None:
        return None
    rows = stock.rows.get(shop_key(settings.merchant_id))
    listed, unlisted = 0, 0
    if rows is not None:
        names = np.asarray(own["item_id"].unique(), dtype=object)
        known = catalogue_rows(names, catalogue, mapping)
        of_records = np.unique(known[known >= 0])
        listed = int(np.count_nonzero(np.isin(of_records, rows)))
        unlisted = len(of_records) - listed
    if unlisted and not listed:
        problems.append(
            "the published stock table names no product of the shop's records as stocked: it would "
            "train on nothing but noise. Tell the operator"
        )
    elif unlisted:
        advice.append(
            f"the published stock table does not say that the shop stocks {unlisted:,} products of "
            "its records: next to nothing of them is learned from it. Tell the operator"
        )
    return {
        "fingerprint": stock.fingerprint,
        "shops": len(stock.rows),
        "products": None if rows is None else len(rows),
        "unlisted": unlisted,
    }
