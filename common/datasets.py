"""Data sets by name, folders of tables, and contract tables on disk."""

import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from common.built_in.complete_journey import TRAIN_UNTIL, Merchants, complete_journey_frames
from common.built_in.marketplace import MarketplaceConfig, write_marketplace
from common.built_in.movielens import movielens_frames
from common.errors import ConfigError, DataError
from common.partitioning import Partitioner, partition
from common.schema import Tables
from common.splitting import doubt_of_times
from common.tables.contract import BadRows
from common.tables.folders import Progress, read_folder
from common.tables.validation import validate_tables
from common.wording import counted

NAMES = ("complete-journey", "movielens", "marketplace")


@dataclass(frozen=True)
class Dataset:
    """A data set that experiments run on.

    Attributes
    ----------
    train_until
        Epoch seconds where testing begins; None where the data set does not say.
    notes
        What a report on this data must say.
    """

    name: str
    tables: Tables
    train_until: int | None = None
    notes: list[str] = field(default_factory=list)


def load_complete_journey(merchants: Merchants = "market") -> Dataset:
    """Return Complete Journey with local markets, or single stores, as merchants."""
    interactions, products, customers, notes = complete_journey_frames(merchants)
    tables = validate_tables(interactions, products, customers, now=int(time.time()))
    return Dataset("complete-journey", tables, TRAIN_UNTIL, notes)


def load_movielens(path: Path, partitioner: Partitioner) -> Dataset:
    """Return the user's copy of ml-100k or ml-1m, its users dealt to merchants."""
    interactions, products, customers = movielens_frames(path)
    tables = validate_tables(interactions, products, customers, now=int(time.time()))
    note = "MovieLens has no shops: its users were dealt to merchants by a partitioner"
    return Dataset("movielens", partition(tables, partitioner), None, [note])


def load_marketplace(config: MarketplaceConfig) -> Dataset:
    """Return a synthetic marketplace; its planted truth is ``planted_truth(config)``.

    Raises
    ------
    ConfigError
        If it has no customers: nobody buys anything there.
    """
    if not config.customers_per_shop:
        raise ConfigError("data.marketplace.customers_per_shop is 0: give each shop a customer")
    with tempfile.TemporaryDirectory() as folder:
        write_marketplace(config, Path(folder))
        tables = read_folder(Path(folder), now=int(time.time()))
    return Dataset("marketplace", tables, config.train_until, ["the data are synthetic"])


def load_folder(path: Path, *, bad_rows: BadRows = "refuse") -> Dataset:
    """Return the tables in a folder; :func:`common.tables.folders.read_folder` explains.

    Quantities and prices are checked, but not kept: no model reads them.

    Raises
    ------
    DataError
        If a file is missing or breaks the contract, or its times are hardly seconds since 1970.
    """
    tables = read_folder(path, now=int(time.time()), bad_rows=bad_rows, drop=("quantity", "price"))
    if words := doubt_of_times(tables.interactions["timestamp"].to_numpy()):
        raise DataError(f"interactions: {words}")
    set_aside = tables.set_aside.items()
    notes = [f"set aside: {counted(count, 'row')} of {what}" for what, count in set_aside]
    # "." and ".." are no names of a folder.
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return Dataset(name, tables, None, [*notes, *_doubts(tables)])


def _doubts(tables: Tables) -> list[str]:
    """Return what may be wrong with tables that keep the contract, for a reader to judge."""
    frame, merchants = tables.interactions, tables.merchant_ids
    selling = set(frame["merchant_id"].cat.categories)
    doubts = [
        f"merchant {name!r} has no interactions: customers or stock alone name it"
        for name in merchants
        if name not in selling
    ]
    alike: dict[str, list[str]] = {}
    for name in merchants:
        alike.setdefault(name.strip().lstrip("0").casefold(), []).append(name)
    doubts += [
        f"merchants {' and '.join(map(repr, names))} differ in spaces, capitals or zeros in front "
        "only: if they are one, give it one id"
        for names in alike.values()
        if len(names) > 1
    ]
    sellers, users = (frame[name].cat.codes.to_numpy() for name in ("merchant_id", "user_id"))
    one_seller = np.empty(len(frame["user_id"].cat.categories), dtype=sellers.dtype)
    one_seller[users] = sellers
    several = len(np.unique(users[sellers != one_seller[users]]))
    if several:
        doubts.append(
            f"{several} of {len(np.unique(users))} user ids occur at more than one merchant: if "
            "they are the same people, federating seems to help by recalling what they bought "
            "next door"
        )
    return doubts


def write_dataset(
    name: str,
    out: Path,
    *,
    progress: Progress | None = None,
    merchants: Merchants = "market",
    path: Path | None = None,
    partitioner: Partitioner | None = None,
    marketplace: MarketplaceConfig | None = None,
) -> None:
    """Write a data set's contract tables as Parquet: the whole folder or nothing.

    Parameters
    ----------
    name
        One of :data:`NAMES`.
    out
        A folder that is not there yet, or is empty.
    progress
        Told how many of a marketplace's shops are written.
    merchants
        For ``complete-journey``.
    path, partitioner
        For ``movielens``: the unpacked archive, and who belongs to which merchant.
    marketplace
        For ``marketplace``; default: its defaults.

    Raises
    ------
    ConfigError
        If the name is unknown, an option is missing, or the folder is in use.
    """
    if name not in NAMES:
        raise ConfigError(f"no data set is called {name!r}: choose one of {', '.join(NAMES)}")
    if name == "movielens" and (path is None or partitioner is None):
        raise ConfigError("movielens needs a partitioner and the path of your unpacked copy")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is in use: give a folder that is new or empty")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside its goal, so that the rename at the end stays on one file system.
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        if name == "marketplace":
            write_marketplace(marketplace or MarketplaceConfig(), draft, progress)
        elif name == "complete-journey":
            _write_frames(draft, *complete_journey_frames(merchants)[:3])
        elif path is not None and partitioner is not None:
            write_tables(load_movielens(path, partitioner).tables, draft)
        draft.chmod(0o755)
        draft.replace(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write_tables(tables: Tables, folder: Path) -> None:
    """Write validated tables as Parquet files that :func:`load_folder` reads."""
    _write_frames(folder, tables.interactions, tables.products, tables.customers, tables.stock)


def _write_frames(
    folder: Path,
    interactions: pd.DataFrame,
    products: pd.DataFrame,
    customers: pd.DataFrame | None,
    stock: pd.DataFrame | None = None,
) -> None:
    interactions.to_parquet(folder / "interactions.parquet", index=False)
    products.to_parquet(folder / "products.parquet", index=False)
    if customers is not None:
        customers.to_parquet(folder / "customers.parquet", index=False)
    if stock is not None:
        stock.to_parquet(folder / "stock.parquet", index=False)
