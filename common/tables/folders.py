"""A folder of CSV or Parquet files in the contract's columns.

Interactions are read in blocks: a file larger than memory is fine as long as its codes are not.
"""

import io
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as arrow
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from common.errors import DataError
from common.schema import Tables
from common.tables.checks import MERCHANT, Checker, like_merchant
from common.tables.columns import as_text, small_frame
from common.tables.contract import REQUIRED, BadRows
from common.tables.csv_files import check_names, csv_blocks, csv_header, not_utf8
from common.tables.interactions import IDS, InteractionsBuilder
from common.tables.validation import check_customers, check_products, check_stock

BLOCK_ROWS = 131_072
TEXTS = ("category", "brand", "title", "description")

#: Called with (done, total), in bytes of the file or rows of the table.
Progress = Callable[[int, int], None]


def read_folder(
    folder: Path,
    *,
    now: int,
    bad_rows: BadRows = "refuse",
    drop: Collection[str] = (),
) -> Tables:
    """Read and validate a folder of tables.

    Parameters
    ----------
    folder
        Holds ``interactions`` and ``products``, and may hold ``customers`` and ``stock``, each
        as ``.csv`` or ``.parquet``.
    now
        Epoch seconds; a later timestamp is bad.
    bad_rows
        ``"refuse"`` or ``"set-aside"``.
    drop
        Optional columns of interactions to check but not to keep, to save memory.

    Raises
    ------
    DataError
        If a file is missing or breaks the contract.
    """
    set_aside: Counter[str] = Counter()

    def checker(path: Path) -> Checker:
        return Checker(path.name, bad_rows, set_aside)

    paths = {name: require_table(folder, name) for name in ("interactions", "products")}
    goods = checker(paths["products"])
    products = check_products(read_small(paths["products"], goods), goods)
    # The small tables come first: what is wrong with them is said before the long read.
    customers = stock = None
    if (path := find_table(folder, "customers")) is not None:
        customers = check_customers(read_small(path, checker(path)), checker(path))
    if (path := find_table(folder, "stock")) is not None:
        shelves = read_small(path, checker(path))
        stock = check_stock(shelves, products["item_id"], checker(path))
    interactions = read_interactions(
        paths["interactions"],
        checker(paths["interactions"]),
        products["item_id"],
        now=now,
        drop=drop,
    )
    return Tables(interactions, products, customers, stock, dict(set_aside))


def find_table(folder: Path, name: str) -> Path | None:
    """Return the path of a table, None where it is not there.

    Raises
    ------
    DataError
        If the folder is missing, or the table is there twice.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: give the one that holds the tables")
    found = [path for kind in ("csv", "parquet") if (path := folder / f"{name}.{kind}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} holds {found[0].name} and {found[1].name}: keep one of them")
    return found[0] if found else None


def require_table(folder: Path, name: str) -> Path:
    """Return the path of a table that must be there; raises :class:`DataError` if it is not."""
    path = find_table(folder, name)
    if path is None:
        inside = sorted(f"{path.name}{'/' * path.is_dir()}" for path in folder.iterdir())
        raise DataError(
            f"{folder} has no file {name}.csv or {name}.parquet: add one. "
            f"It holds {', '.join(inside[:10]) or 'nothing'}"
        )
    return path


def read_small(
    path: Path, checker: Checker | None = None, *, as_text: bool = False
) -> pd.DataFrame:
    """Read a table that fits into memory; ids and texts stay text, or with ``as_text`` all of it.

    Of customers all is text: what is known of one must not depend on what is known of others. Other
    columns of products have their own types, which a CSV file does not say: pandas finds them.

    Parameters
    ----------
    checker
        Says what becomes of malformed rows of a CSV file; None: they are refused.

    Raises
    ------
    DataError
        If the file can't be read, or a row is malformed and bad rows are refused.
    """
    people = path.stem == "customers"
    texts = as_text or people
    try:
        if path.suffix == ".parquet":
            Checker(path.name).require(pq.read_schema(path).names, ())
            return small_frame(pq.read_table(path), IDS, path.name, texts=texts, people=people)
        table = _whole_csv(path, checker or Checker(path.name, may_set_aside=False))
        return table.to_pandas() if texts else _typed(table)
    except (arrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _whole_csv(path: Path, checker: Checker) -> arrow.Table:
    """Return all columns of a CSV file, as strings."""
    header = csv_header(path)
    check_names(path, header)
    blocks = [block for block, *_ in csv_blocks(path, header, checker)]
    none = arrow.schema([(name, arrow.string()) for name in header]).empty_table()
    return arrow.concat_tables([none, *blocks])


def _typed(table: arrow.Table) -> pd.DataFrame:
    """Return strings as the types that pandas finds in a CSV file, but ids and texts."""
    text = io.BytesIO()
    arrow_csv.write_csv(table, text)
    text.seek(0)
    types = {name: str for name in table.column_names if name in (*IDS, *TEXTS)}
    return pd.read_csv(
        text,
        dtype=types,
        keep_default_na=False,
        na_values=[""],
        low_memory=False,
        skip_blank_lines=False,  # A row of one column without a value.
        index_col=False,
    )


def _unreadable(path: Path, error: arrow.ArrowException | OSError) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        # The machine's: rights, a disk. Arrow's own, of damaged files, have no number.
        return error
    # A row that is malformed, and not set aside or refused as such, could not be shown as text.
    if path.suffix == ".csv" and any(w in str(error) for w in ("invalid UTF8", "parse error")):
        return not_utf8(path)
    return DataError(f"{path.name} cannot be read: {error}")


def read_interactions(
    path: Path,
    checker: Checker,
    item_ids: pd.Series | None,
    *,
    now: int,
    progress: Progress | None = None,
    drop: Collection[str] = (),
    may_be_empty: bool = False,
    user_id: str | None = None,
    merchant_id: str | None = None,
) -> pd.DataFrame:
    """Read and validate interactions block by block; see :func:`read_folder`.

    Parameters
    ----------
    item_ids
        The products that records may name; None allows any.
    progress
        Told how far they are read.
    may_be_empty
        Whether a table without rows is fine.
    user_id
        Check and return this customer's rows alone; row numbers count only those.
    merchant_id
        Whose rows they all are where the table has no such column; None: it must have one.
    """
    is_csv = path.suffix == ".csv"
    try:
        columns = csv_header(path) if is_csv else pq.read_schema(path).names
        filled = merchant_id is not None and lacks_merchant(columns)
        have = [*columns, MERCHANT] if filled else columns
        if filled:  # What is said to be found is what the file holds.
            others = [name for name in REQUIRED["interactions"] if name != MERCHANT]
            checker.require(columns, others)
        builder = InteractionsBuilder(checker, item_ids, have, now, drop)
        wanted = [name for name in builder.columns if not (filled and name == MERCHANT)]
        read = csv_blocks if is_csv else _parquet_blocks
        for block, done, total in read(path, wanted, checker):
            rows = block if user_id is None else _of_customer(block, user_id, checker)
            if len(rows):
                if filled:
                    rows = rows.append_column(MERCHANT, arrow.repeat(merchant_id, len(rows)))
                builder.add(rows)
            if progress is not None:
                progress(done, total)
    except (arrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    return builder.finish(may_be_empty=may_be_empty)


def lacks_merchant(columns: Collection[str]) -> bool:
    """Return whether no column says whose a row is, not even under a similar name.

    One that is only misspelt must not make other merchants' rows a shop's own.
    """
    return not like_merchant(columns)


def _of_customer(block: arrow.Table, user_id: str, checker: Checker) -> arrow.Table:
    names = as_text(block.column("user_id").combine_chunks(), "user_id", checker.table)
    return block.filter(pc.equal(names, user_id))


def _parquet_blocks(
    path: Path, columns: list[str], _: Checker
) -> Iterator[tuple[arrow.Table, int, int]]:
    with pq.ParquetFile(path) as file:
        done, total = 0, file.metadata.num_rows
        for batch in file.iter_batches(batch_size=BLOCK_ROWS, columns=columns):
            done += len(batch)
            yield arrow.Table.from_batches([batch]), done, total
