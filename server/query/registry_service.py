"""The service over a registry: which model it answers from, and with which catalogue and stock."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import ConfigError
from common.features import Catalogue, read_catalogue
from server.catalogue.versions import Catalogues
from server.query.answering import Service
from server.query.host import FindCatalogue, ModelHost
from server.query.index import ExactIndex, Index, Int8Index, index_of
from server.query.serving import ListenSettings, service_of
from server.registry.versions import Registry


@dataclass(frozen=True, kw_only=True)
class ServeSettings(ListenSettings):
    """Where to serve what, and to whom.

    Attributes
    ----------
    catalogue
        A published catalogue, or a folder of its versions.
    stock
        JSON: merchant_id -> item_ids that the shop stocks; optional.
    precision
        How products' vectors are read, all with the same answers: as ``float32``, by way of
        ``int8``, or ``auto``: the latter where products are many.
    """

    registry: str
    catalogue: Path
    stock: Path | None = None
    precision: str = "auto"


def make_service(settings: ServeSettings) -> Service:
    """Return the service over the registry, with its model loaded if there is one."""
    makers: dict[str, Callable[[np.ndarray], Index]] = {
        "auto": index_of,
        "float32": ExactIndex,
        "int8": Int8Index.of,
    }
    if settings.precision not in makers:
        raise ConfigError(f"precision {settings.precision!r}: choose auto, float32 or int8")
    host = ModelHost(
        Registry(settings.registry),
        find_catalogue(settings.catalogue, settings.stock),
        makers[settings.precision],
    )
    host.refresh()
    return service_of(host, settings)


def find_catalogue(folder: Path, stock: Path | None) -> FindCatalogue:
    """Return what finds a catalogue by fingerprint: the one in ``folder``, or a version in it."""

    def find(fingerprint: str) -> tuple[Catalogue, dict[str, np.ndarray]]:
        if (folder / "catalogue.json").exists():
            catalogue = read_catalogue(folder)
        else:
            catalogue = Catalogues(folder).read(fingerprint)
        return catalogue, {} if stock is None else _stock(stock, catalogue)

    return find


def _stock(path: Path, catalogue: Catalogue) -> dict[str, np.ndarray]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(items, list) for items in listed.values()):
            raise TypeError("each shop needs a list")  # Of a text, letters would be its products.
        found = {m: catalogue.rows([str(item) for item in items]) for m, items in listed.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON of merchant_id -> item_ids: {error}") from error
    return {merchant: rows[rows >= 0].astype(np.int64) for merchant, rows in found.items()}
