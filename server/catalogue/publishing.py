"""From a folder with a products table to the next version of the catalogue."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.catalogue.content_columns import ITEM_ID, RETIRED, as_text, is_number
from common.catalogue.stock import Stock
from common.config import nearest
from common.errors import ConfigError, DataError
from common.features import CROSS, YES, Catalogue, ContentSpec, content_columns
from common.tables.checks import Checker
from common.tables.folders import find_table, read_small, require_table
from common.tables.validation import check_products, check_stock
from server.catalogue.diff import Difference
from server.catalogue.versions import Catalogues, Version

logger = logging.getLogger(__name__)

_NO = ("", "false", "0", "no")
_SHOWN = 5
_LEAST_KEPT = 0.5


@dataclass(frozen=True)
class Publishing:
    """How to publish.

    Attributes
    ----------
    content
        Columns, alone or joined, that describe a product; None: as the version before has it.
    reread
        Whether the table decides anew how columns are read, such as where bins of numbers begin.
    drop_retired
        Whether products that the table does not hold leave the catalogue altogether. By default
        they stay as retired: what customers did with them goes on to say what they like.
    force
        Publish although most products of the version before would be retired or dropped.
    dry_run
        Say what would change, and write nothing.
    """

    content: Sequence[str] | None = None
    reread: bool = False
    drop_retired: bool = False
    force: bool = False
    dry_run: bool = False


def publish(
    catalogues: Catalogues,
    folder: Path,
    how: Publishing | None = None,
    progress: Callable[[str], object] = logger.info,
) -> dict[str, Any]:
    """Publish the products table of a folder as the next version, unless nothing changed.

    What shops stock is published with it if the folder says so. Columns are read as the version
    before reads them: bins of numbers stay where they are.

    Parameters
    ----------
    folder
        Holds ``products.csv`` or ``products.parquet``; a column ``retired`` (true or false) may
        mark what is no longer sold. May hold ``stock.csv`` or ``stock.parquet``.

    Returns
    -------
    dict
        ``version`` (the number), ``fingerprint, published_at, parent, products, offered, stock``
        (the table's fingerprint, or null), ``path, features, unused`` (columns that describe
        nothing), ``changes`` (null for the first version; else see
        :meth:`server.catalogue.diff.Difference.document`), ``new``: false where the last version
        is just this already, and ``dry_run``.

    Raises
    ------
    DataError
        If a table breaks the contract: with column and rows.
    ConfigError
        If content names a column that is not there, most products would go, or the versions'
        folder can't be written.
    """
    how = how or Publishing()
    path = require_table(folder, "products")
    progress(f"reading {path.name}")
    products = check_products(read_small(path), Checker(path.name, may_set_aside=False))
    products = _marked(products, path.name)
    with nullcontext() if how.dry_run else catalogues.publishing():
        last = catalogues.last()
        old = None if last is None else catalogues.read(last.n)
        spec = _spec(products, path.name, old, how)
        products = _typed(products, path.name, spec)
        if old is not None:
            products = _with_retired(products, old, path.name, how)
        progress("settling how columns are read")
        catalogue = Catalogue.of(products, spec).settled()
        if not catalogue.offered.any():
            raise DataError(f"{path.name}: every product is retired: there is nothing to offer")
        progress("comparing with the version before")
        change = None if old is None else Difference.of(old, catalogue)
        table = _stock(folder, catalogue)
        stock = None if table is None else Stock.of(table, catalogue)
        version = catalogues.next(catalogue, {} if change is None else change.counts(), stock)
        if last is not None and _says(last) == _says(version):
            return _document(catalogues, last, catalogue, change, how, new=False)
        if not how.dry_run:
            progress("writing")
            catalogues.add(version, catalogue, table)
            logger.info("published catalogue=%d fingerprint=%s", version.n, version.fingerprint)
    return _document(catalogues, version, catalogue, change, how, new=True)


def _stock(folder: Path, catalogue: Catalogue) -> pd.DataFrame | None:
    """Return what a folder says that shops stock, once it is checked."""
    if (path := find_table(folder, "stock")) is None:
        return None
    return check_stock(
        read_small(path), pd.Series(catalogue.item_ids), Checker(path.name, may_set_aside=False)
    )


def _says(version: Version) -> tuple[str, str | None]:
    return version.fingerprint, version.stock


def _document(
    catalogues: Catalogues,
    version: Version,
    catalogue: Catalogue,
    change: Difference | None,
    how: Publishing,
    *,
    new: bool,
) -> dict[str, Any]:
    used = {part for name in catalogue.spec.features for part in name.split(CROSS)}
    return {
        **version_document(catalogues, version),
        "features": list(catalogue.spec.features),
        "unused": [name for name in content_columns(catalogue.products) if name not in used],
        "changes": None if change is None else change.document(),
        "new": new,
        "dry_run": how.dry_run,
    }


def version_document(catalogues: Catalogues, version: Version) -> dict[str, Any]:
    """Return what is recorded of a version, and where it is, as plain JSON values."""
    facts = version.model_dump(mode="json", exclude={"n", "format_version", "changes"})
    return {"version": version.n, **facts, "path": str(catalogues.root / str(version.n))}


def _marked(products: pd.DataFrame, table: str) -> pd.DataFrame:
    """Return the table with a ``retired`` column of bools where any product is retired."""
    if RETIRED not in products:
        return products
    said = pd.Series(as_text(products[RETIRED])).str.lower().to_numpy(dtype=object)
    wrong = np.flatnonzero(~np.isin(said, (*YES, *_NO)))
    if len(wrong):
        cells = ", ".join(f"row {k + 1}: {said[k]!r}" for k in wrong[:_SHOWN])
        raise DataError(
            f"{table}: column {RETIRED!r} says neither true nor false in {cells}. What to do: mark "
            "products that are no longer sold with true, or rename the column"
        )
    retired = np.isin(said, YES)
    rest = products.drop(columns=RETIRED)
    return rest.assign(**{RETIRED: retired}) if retired.any() else rest


def _spec(
    products: pd.DataFrame, table: str, old: Catalogue | None, how: Publishing
) -> ContentSpec:
    """Return how the table's content is read: as before, but for what is asked for anew."""
    spec = ContentSpec() if old is None else old.spec
    if how.content is not None:
        if twice := [name for name, count in Counter(how.content).items() if count > 1]:
            # It would count twice in every content score.
            raise ConfigError(f"content names {twice[0]!r} twice: name it once")
        spec = spec.model_copy(update={"features": tuple(how.content)})
    if how.reread:
        spec = spec.model_copy(update={"columns": None})
    known = content_columns(products)
    for name in spec.features:
        for column in name.split(CROSS):
            if column not in known:
                hint = nearest(column, known) if known else "it has no content columns"
                needs = f"needs a column {column!r}: {hint}"
                if how.content is not None:
                    raise ConfigError(f"{table}: content {name!r} {needs}")
                raise ConfigError(
                    f"{table}: content {name!r} as in the version before {needs}. Rename it back, "
                    "or say with --content what describes a product from now on"
                )
    return spec


def _typed(products: pd.DataFrame, table: str, spec: ContentSpec) -> pd.DataFrame:
    """Return the table with numbers where the version before has numbers."""
    for name, rule in (spec.columns or {}).items():
        if rule.kind != "numbers" or name not in products or is_number(products[name]):
            continue
        numbers = pd.to_numeric(products[name], errors="coerce")
        wrong = np.flatnonzero((numbers.isna() & products[name].notna()).to_numpy(dtype=bool))
        if len(wrong):
            cells = ", ".join(f"row {k + 1}: {products[name].iloc[k]!r}" for k in wrong[:_SHOWN])
            more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            raise DataError(
                f"{table}: column {name!r} holds numbers in the version before, but not in {cells}"
                f"{more}. What to do: correct them, or give text a column of its own"
            )
        products = products.assign(**{name: numbers})
    return products


def _with_retired(
    products: pd.DataFrame, old: Catalogue, table: str, how: Publishing
) -> pd.DataFrame:
    """Return the table with the products that only the version before has, as retired.

    Raises
    ------
    ConfigError
        If that and what the table marks are most of what was offered, and nobody said that it is
        meant.
    """
    ids = products[ITEM_ID].to_numpy(dtype=object).astype(str)
    here = np.isin(old.item_ids, ids)
    off = np.zeros(len(ids), dtype=bool)
    if RETIRED in products:
        off = products[RETIRED].to_numpy(dtype=bool)
    still = np.isin(old.item_ids, ids[~off])
    kept, offered = int((still & old.offered).sum()), int(old.offered.sum())
    if kept < _LEAST_KEPT * offered and not how.force:
        fate = "dropped" if how.drop_retired else "retired"
        why = f"has {ITEM_ID} changed"
        if off.any():
            fate = "retired or dropped" if how.drop_retired else "retired"
            why += f", or is {RETIRED} the wrong way round"
        raise ConfigError(
            f"{table} offers only {kept:,} of the {offered:,} products offered so far, so "
            f"{offered - kept:,} would be {fate}: {why}? Say --force if it is meant"
        )
    gone = old.products[~here]
    if how.drop_retired or gone.empty:
        return products
    gone = gone[[name for name in products.columns if name in gone.columns]]
    for name in content_columns(gone):
        # A column holds numbers or text, not both.
        if is_number(gone[name]) != is_number(products[name]):
            gone, products = (_as_words(frame, name) for frame in (gone, products))
    marked = pd.concat([products, gone.assign(**{RETIRED: True})], ignore_index=True)
    return marked.assign(**{RETIRED: marked[RETIRED].eq(True).astype(bool)})


def _as_words(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    text = pd.Series(as_text(frame[name]), index=frame.index, dtype=object)
    return frame.assign(**{name: text.where(text != "", None)})
