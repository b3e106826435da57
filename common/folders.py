"""A folder of CSV or Parquet files in the contract's columns.

Interactions are read in blocks: a file larger than memory is fine as long as its codes are not.
"""

import csv
import difflib
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as arrow
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from common.checks import Checker
from common.columns import as_text, small_frame
from common.contract import BadRows
from common.csv_files import check_quotes, check_shape, csv_header, malformed_row, not_utf8
from common.errors import DataError
from common.interactions import IDS, InteractionsBuilder
from common.schema import Tables
from common.validation import check_customers, check_products, check_stock

#: Arrow reads up to 32 blocks ahead, so these are small, and several are checked together.
BLOCK_BYTES = 1 << 20
BLOCKS_TOGETHER = 8
BLOCK_ROWS = 131_072
#: What a cell holds that holds nothing. "NA" is not among them: it is a brand and a country.
NO_VALUE = ["", "NaN", "nan", "NULL", "null"]
TEXTS = ("category", "brand", "title", "description")
MERCHANT = "merchant_id"
# "merchant" and "MerchantId" are; "terminal_id" is not.
_SIMILAR = 0.8

#: Called with (done, total), in bytes of the file or rows of the table.
Progress = Callable[[int, int], None]


def read_folder(
    folder: Path,
    *,
    now: int,
    bad_rows: BadRows = "refuse",
    progress: Progress | None = None,
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
    progress
        Told how far the interactions are read.
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
    products = check_products(read_small(paths["products"]), checker(paths["products"]))
    # The small tables come first: what is wrong with them is said before the long read.
    customers = stock = None
    if (path := find_table(folder, "customers")) is not None:
        customers = check_customers(read_small(path), checker(path))
    if (path := find_table(folder, "stock")) is not None:
        stock = check_stock(read_small(path), products["item_id"], checker(path))
    interactions = read_interactions(
        paths["interactions"],
        checker(paths["interactions"]),
        products["item_id"],
        now=now,
        progress=progress,
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
        raise DataError(f"{folder} is no folder: give one that holds interactions and products")
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


def read_small(path: Path, *, as_text: bool = False) -> pd.DataFrame:
    """Read a table that fits into memory; ids and texts stay text, or with ``as_text`` all of it.

    Of customers all is text: what is known of one must not depend on what is known of others. Other
    columns of a Parquet file have their own types.
    """
    try:
        if path.suffix == ".parquet":
            people = path.stem == "customers"
            texts = as_text or people
            frame = small_frame(pq.read_table(path), IDS, path.name, texts=texts, people=people)
        else:
            header = csv_header(path)
            check_shape(path, header)
            types = {name: str for name in header if name in (*IDS, *TEXTS)}
            if as_text or path.stem == "customers":
                types = dict.fromkeys(header, str)
            frame = pd.read_csv(
                path, dtype=types, keep_default_na=False, na_values=NO_VALUE, low_memory=False
            )
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    except (arrow.ArrowInvalid, pd.errors.ParserError, csv.Error) as error:
        raise DataError(f"{path.name} cannot be read: {error}") from error
    return frame


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
        builder = InteractionsBuilder(checker, item_ids, have, now, drop)
        wanted = [name for name in builder.columns if not (filled and name == MERCHANT)]
        read = _csv_blocks if is_csv else _parquet_blocks
        for block, done, total in read(path, wanted, checker):
            rows = block if user_id is None else _of_customer(block, user_id, checker)
            if len(rows):
                if filled:
                    rows = rows.append_column(MERCHANT, arrow.repeat(merchant_id, len(rows)))
                builder.add(rows)
            if progress is not None:
                progress(done, total)
    except arrow.ArrowInvalid as error:
        if is_csv and "invalid UTF8" in str(error):
            raise not_utf8(path) from error
        raise DataError(f"{path.name} cannot be read: {error}") from error
    return builder.finish(may_be_empty=may_be_empty)


def lacks_merchant(columns: Collection[str]) -> bool:
    """Return whether no column says whose a row is, not even under a similar name.

    One that is only misspelt must not make other merchants' rows a shop's own.
    """
    names = [str(name).lower() for name in columns]
    return not difflib.get_close_matches(MERCHANT, names, n=1, cutoff=_SIMILAR)


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


def _csv_blocks(
    path: Path, columns: list[str], checker: Checker
) -> Iterator[tuple[arrow.Table, int, int]]:
    malformed: list[arrow_csv.InvalidRow] = []

    def on_malformed(row: arrow_csv.InvalidRow) -> str:
        malformed.append(row)
        return "skip" if checker.bad_rows == "set-aside" else "error"

    total, rows = path.stat().st_size, 1  # The header.
    with arrow.OSFile(str(path)) as file:
        try:
            # One thread, so that a malformed row comes with its number.
            reader = arrow_csv.open_csv(
                file,
                arrow_csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
                # Else what others' rows add up to decides whether a value over several lines lies
                # in one block, and the file can be read.
                arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_malformed),
                arrow_csv.ConvertOptions(
                    include_columns=columns,
                    column_types=dict.fromkeys(columns, arrow.string()),
                    null_values=NO_VALUE,
                    strings_can_be_null=True,
                ),
            )
            while batches := list(itertools.islice(reader, BLOCKS_TOGETHER)):
                block = arrow.Table.from_batches(batches)
                rows += len(block)
                yield block, file.tell(), total
        except arrow.ArrowInvalid as error:
            if not malformed:
                raise
            row = malformed[0]
            shape = row.number - 1, row.actual_columns, row.expected_columns
            raise malformed_row(path, *shape, row.text) from error
    check_quotes(path, rows + len(malformed))
    if malformed:
        checker.set_aside[f"{checker.table}: not as many values as columns"] += len(malformed)
