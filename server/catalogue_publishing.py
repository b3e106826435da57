"""From a folder with a products table to the next version of the catalogue."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.checks import Checker
from common.features import Catalogue, ContentSpec
from common.folders import read_small, require_table
from common.validation import check_products
from server.catalogues import Catalogues


def publish(
    catalogues: Catalogues, folder: Path, content: Sequence[str] | None = None
) -> dict[str, Any]:
    """Publish the products table of a folder as the next version, unless nothing changed.

    Parameters
    ----------
    folder
        Holds ``products.csv`` or ``products.parquet``.
    content
        Columns and pairs of columns that describe a product; None: as the version before has it.

    Returns
    -------
    dict
        ``version, fingerprint, published_at, parent, products, path`` and ``new``: false where
        the last version is just this already.

    Raises
    ------
    DataError
        If the table breaks the contract: with column and rows.
    ConfigError
        If content names a column that is not there, or the versions' folder can't be written.
    """
    path = require_table(folder, "products")
    products = check_products(read_small(path), Checker(path.name))
    with catalogues.publishing():
        last = catalogues.version() if catalogues.versions() else None
        spec = ContentSpec() if last is None else catalogues.read(last.n).spec
        if content is not None:
            spec = spec.model_copy(update={"features": tuple(content)})
        catalogue = Catalogue.of(products, spec)
        new = last is None or last.fingerprint != catalogue.fingerprint
        version = catalogues.add(catalogue) if new or last is None else last
    return {
        "version": version.n,
        "fingerprint": version.fingerprint,
        "published_at": version.published_at,
        "parent": version.parent,
        "products": version.products,
        "path": str(catalogues.path(version.n)),
        "new": new,
    }
