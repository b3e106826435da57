"""A shop's catalogue and records as they are now, kept while the files that hold them stay as is.

A simulation's workers serve many shops, round after round: what they read is not read again.
"""

from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from client.data.source import read_shop
from client.settings import ShopSettings
from common.catalogue.stock import Stock, read_stock
from common.errors import ConfigError
from common.features import Catalogue, read_catalogue
from common.schema import ShopEvents

# (name, time of the last change in ns, size) of each file
_Stamp = tuple[tuple[str, int, int], ...]


def held_catalogue(settings: ShopSettings) -> Catalogue:
    """Return the catalogue that the shop holds.

    Raises
    ------
    InputError
        If there is none, or it is not what was published.
    """
    return _catalogue(settings.catalogue, _stamp(settings.catalogue))


def held_stock(settings: ShopSettings) -> Stock | None:
    """Return what shops are published to stock, beside the catalogue that the shop holds.

    Raises
    ------
    InputError
        If the table is not of that catalogue.
    """
    return _stock(settings.catalogue, _stamp(settings.catalogue))


def held_records(settings: ShopSettings) -> ShopEvents:
    """Return the shop's records as they are now.

    A database is read again at every exchange. It has no stamp: a count and the newest time stay
    the same when a row is corrected, or when a customer who asked to be forgotten is replaced by
    another; and what was deleted must not train one round longer.

    Raises
    ------
    InputError
        If the catalogue or the data can't be read, or the data break the contract.
    """
    if settings.data is None:
        return read_shop(settings, held_catalogue(settings))
    data, mapping = _stamp(settings.data), settings.catalogue_mapping
    if mapping is not None and mapping.table is not None and mapping.table.is_file():
        data += tuple(one for one in _stamp(mapping.table.parent) if one[0] == mapping.table.name)
    return _events(settings.model_dump_json(), data, _stamp(settings.catalogue))


def forget() -> None:
    """Drop all that is kept of shops' records: for a process that goes on to other shops."""
    _catalogue.cache_clear()
    _stock.cache_clear()
    _events.cache_clear()


@lru_cache(maxsize=2)
def _catalogue(folder: Path, stamp: _Stamp) -> Catalogue:  # noqa: ARG001 - part of the key
    return read_catalogue(folder)


@lru_cache(maxsize=2)
def _stock(folder: Path, stamp: _Stamp) -> Stock | None:
    return read_stock(folder, _catalogue(folder, stamp))


@lru_cache(maxsize=128)
def _events(settings_json: str, data: _Stamp, catalogue: _Stamp) -> ShopEvents:  # noqa: ARG001
    settings = ShopSettings.model_validate_json(settings_json)
    return read_shop(settings, _catalogue(settings.catalogue, catalogue))


def _stamp(folder: Path) -> _Stamp:
    """Return what tells whether the files in a folder changed."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}")
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # A link to nothing, such as an editor's lock; a draft.
            state = path.stat()
            found.append((path.name, state.st_mtime_ns, state.st_size))
    return tuple(sorted(found))
