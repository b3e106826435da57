"""What a SQL database gives: columns, and rows in chunks as text, as if they came from files."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as arrow
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, NoSuchTableError, SQLAlchemyError
from sqlalchemy.exc import DataError as WrongValue

from client.data.postgres_times import read_times
from client.data.sql_customer import as_relation, bare_query, of_customer
from client.database_settings import OPTIONAL, Database, TableSource
from common.config import nearest
from common.errors import DataError
from common.tables.checks import Checker
from common.tables.columns import value_text
from common.tables.contract import REQUIRED
from common.tables.csv_files import NO_VALUE
from common.tables.interactions import IDS

#: Rows held as Python objects at a time, and rows of a table that is read whole.
CHUNK_ROWS = 20_000
_TEXT_KINDS = (str, int, float, Decimal, UUID)
# PostgreSQL's number of char(n) among its types.
_PADDED = 1042

_FIRST_ROW = "its first row is 1, in the order in which the database gives them"


@dataclass(frozen=True)
class Part:
    """One source: the contract's columns that it has, by column or by constant.

    Attributes
    ----------
    places
        Column of the contract -> the source's own.
    constants
        Column of the contract -> one value for all rows.
    """

    source: TableSource
    label: str
    places: dict[str, str]
    constants: dict[str, str]

    @property
    def have(self) -> set[str]:
        """Columns of the contract that it has."""
        return {*self.places, *self.constants}


# PostgreSQL's codes for a text that a type can't be: none (the driver's own), out of a number's
# range, no date or none that can be, no such text or bytes, a character that the encoding lacks.
_NOT_OF_A_TYPE = (None, "22003", "22007", "22008", "22P02", "22P03", "22021")
# Of libpq, in seconds. A query may take its time: only a machine that is gone is given up.
_MANNERS: Mapping[str, str | int] = {
    "client_encoding": "utf8",
    "connect_timeout": 30,
    "keepalives_idle": 60,
    "keepalives_interval": 15,
    "keepalives_count": 4,
}
# SQLAlchemy would say that such a URL is invalid.
_WITHOUT_PASSWORD = ("sqlite", "sqlite+pysqlite")


@contextmanager
def reading(database: Database) -> Iterator[sa.Connection]:
    """Yield a connection that only reads; what the database says of errors comes as DataError."""
    password = database.password()
    try:
        url = sa.make_url(database.url)
        if password is not None:
            if url.drivername in _WITHOUT_PASSWORD:
                raise DataError(
                    "database.url names a SQLite file, which takes no password: take out "
                    "password_env and password_file"
                )
            url = url.set(password=password)
        engine = sa.create_engine(
            url, hide_parameters=True, poolclass=sa.pool.NullPool, connect_args=_manners(url)
        )
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        raise DataError(
            f"database.url is of no use here: {_words(error, password)}. What to do: write it like "
            "sqlite:///shop.db or postgresql://USER@HOST/DATABASE, and install its driver"
        ) from None
    kind, options = engine.dialect.name, {}
    if kind == "sqlite":
        # SQLite would make an empty database of a misspelt name.
        if url.database and not Path(url.database).is_file():
            raise DataError(f"there is no SQLite database {url.database}: correct database.url")
    elif kind == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    try:
        with engine.connect().execution_options(**options) as connection:
            if kind == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
                # Else each statement reads tables of another moment; theirs is that of the SELECT.
                connection.exec_driver_sql("BEGIN")
                connection.exec_driver_sql("SELECT 1 FROM sqlite_master").close()
            elif engine.dialect.driver == "psycopg":
                read_times(connection)
            yield connection
    except SQLAlchemyError as error:
        # The chain of causes is left out: a driver may repeat what it was given.
        raise DataError(
            f"the shop's database {url.render_as_string()} does not answer as it should: "
            f"{_words(error, password)}"
        ) from None
    finally:
        engine.dispose()


def _manners(url: sa.URL) -> dict[str, str | int]:
    """Return what psycopg is told besides the URL, whose own words on the same count.

    To give text as text: from a database of encoding SQL_ASCII, which promises none, it would be
    bytes, and not even what SQLAlchemy asks of a new connection could be read. PostgreSQL refuses
    those that are no UTF-8.

    And to notice that nobody is there: from a machine that is gone without a word no answer comes,
    and a shop would wait for it as long as the system does, which is hours.
    """
    if url.get_backend_name() != "postgresql" or url.get_dialect().driver != "psycopg":
        return {}
    return {name: value for name, value in _MANNERS.items() if name not in url.query}


def _words(error: Exception, password: str | None) -> str:
    """Return what a driver said, on one line and without the password."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    return text.replace(password, "***") if password else text


def columns_of(connection: sa.Connection, source: TableSource, name: str) -> list[str]:
    """Return the columns that a source has.

    Raises
    ------
    DataError
        If the database has no such table, or the query names a column twice.
    """
    if source.query:
        with _rows(connection, source.query) as result:
            found = list(result.keys())
        Checker(source.label(name)).require(found, ())
        return found
    schema, _, table = source.table.rpartition(".")
    inspector = sa.inspect(connection)
    try:
        return [str(c["name"]) for c in inspector.get_columns(table, schema or None)]
    except NoSuchTableError:
        views: list[str] = []
        with suppress(SQLAlchemyError):
            views = inspector.get_view_names(schema or None)
        known = [*inspector.get_table_names(schema or None), *views]
        # What is proposed can be written into shop.toml as it is.
        named = [f"{schema}.{other}" if schema else other for other in known]
        hint = nearest(source.table, named) if named else "it has no tables at all"
        raise DataError(f"the database has no {source.label(name)}: {hint}") from None


@contextmanager
def _rows(
    connection: sa.Connection, statement: str | sa.Select[Any]
) -> Iterator[sa.CursorResult[Any]]:
    """Yield a result that arrives in chunks, from a cursor of the server where there are such."""
    options: dict[str, Any] = {"yield_per": CHUNK_ROWS}
    result: sa.CursorResult[Any]
    if isinstance(statement, str):
        # As it is: text() would take 'HH24:MI' for a parameter, and a driver 'a%' for another.
        options["no_parameters"] = True
        result = connection.exec_driver_sql(bare_query(statement), execution_options=options)
    else:
        result = connection.execute(statement, execution_options=options)
    with result:
        yield result


def chunks(
    connection: sa.Connection, part: Part, wanted: Sequence[str], user_id: str | None = None
) -> Iterator[arrow.Table]:
    """Yield a source's rows as tables of the ``wanted`` columns, at least one, if empty.

    With a ``user_id`` only those of one customer, whom the database looks for.
    """
    source, names = part.source, list(part.places)
    statement: str | sa.Select[Any] = source.query
    schema, _, table = source.table.rpartition(".")
    if user_id is not None:
        found = (
            as_relation(source.query) if source.query else sa.table(table, schema=schema or None)
        )
        theirs = [part.places[name] for name in names]
        statement = of_customer(connection, found, theirs, part.places["user_id"], user_id)
    elif not source.query:
        # Columns without types: each value comes as the driver gives it, whatever SQLite's
        # declared types promise.
        columns: list[sa.ColumnClause[Any]] = [sa.column(part.places[name]) for name in names]
        statement = sa.select(*columns).select_from(sa.table(table, schema=schema or None))
    first, empty = 1, True
    with _unlike_any(connection, user_id), _rows(connection, statement) as result:
        keys = list(result.keys())
        places = [keys.index(part.places[name]) for name in names]
        padded = _padded(connection, result)
        for rows in result.partitions(CHUNK_ROWS):
            values = [_bare(rows, k) if k in padded else [row[k] for row in rows] for k in places]
            yield _table(part, wanted, names, values, first)
            first, empty = first + len(rows), False
    if empty:
        yield _table(part, wanted, names, [[] for _ in names], first)


def _padded(connection: sa.Connection, result: sa.CursorResult[Any]) -> set[int]:
    """Return which columns the database fills up with blanks that are no part of their values.

    In PostgreSQL 'c17' in a char(8) has five behind it and is equal to 'c17' without. Of a customer
    who is in a char column here and in a text column there they would make two, and what one
    customer adds is bounded for each.
    """
    if connection.dialect.name != "postgresql" or result.cursor is None:
        return set()
    columns = enumerate(result.cursor.description or ())
    return {place for place, column in columns if column[1] == _PADDED}


def _bare(rows: Sequence[sa.Row[Any]], place: int) -> list[Any]:
    values = (row[place] for row in rows)
    return [value.rstrip(" ") if isinstance(value, str) else value for value in values]


@contextmanager
def _unlike_any(connection: sa.Connection, user_id: str | None) -> Iterator[None]:
    """Take an id that the database's own type of ids can't be, such as a word, for nobody's."""
    if user_id is None:
        yield
        return
    kept = connection.begin_nested() if connection.dialect.name == "postgresql" else None
    try:
        yield
    except WrongValue as error:
        if getattr(error.orig, "sqlstate", None) not in _NOT_OF_A_TYPE:
            raise  # What went wrong is the shop's own query.
        # The transaction goes on from before the question.
        if kept is not None:
            kept.rollback()


def _table(
    part: Part, wanted: Sequence[str], names: list[str], values: list[list[Any]], first_row: int
) -> arrow.Table:
    n = len(values[0]) if values else 0
    columns: dict[str, arrow.Array] = {}
    for name in wanted:
        if name in part.constants:
            columns[name] = arrow.array([part.constants[name]] * n, arrow.string())
        elif name not in part.places:
            columns[name] = arrow.nulls(n, arrow.string())
        else:
            given = values[names.index(name)]
            convert = _CONVERT.get(name, _attribute)
            columns[name] = _converted(convert, given, part, name, first_row)
    return arrow.table(columns)


def _converted(
    convert: Callable[[Any], str | None],
    values: list[Any],
    part: Part,
    name: str,
    first_row: int,
) -> arrow.Array:
    """Return a column as text, as if it came from a file."""
    try:
        return arrow.array([convert(value) for value in values], arrow.string())
    except TypeError:
        for row, value in enumerate(values, first_row):
            with suppress(TypeError):
                convert(value)
                continue
            raise DataError(
                f"{part.label}: column {part.places[name]!r} (for {name!r}) holds "
                f"{type(value).__name__} in row {row} ({_FIRST_ROW}). What to do: map another "
                "column, or write a query that gives it as text or a number"
            ) from None
        raise


def _text(value: Any) -> str | None:  # noqa: ANN401 - as the driver gives it
    """Return a word or a number; 12.0 and Decimal("12.00") are "12"."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, _TEXT_KINDS):
        raise TypeError
    text = value_text(value)
    return None if text in NO_VALUE else text


def _id(value: Any) -> str | None:  # noqa: ANN401 - as the driver gives it
    """Return an id; an infinite number is none."""
    if isinstance(value, float | Decimal) and math.isinf(value):
        return None
    return _text(value)


def _time(value: Any) -> str | None:  # noqa: ANN401 - as the driver gives it
    """Return a time as epoch seconds; one without a zone is UTC, a date its first second."""
    if isinstance(value, datetime):
        moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return str(math.floor(moment.timestamp()))
    if isinstance(value, date):
        return str(int(datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp()))
    return _text(value)


def _attribute(value: Any) -> str | None:  # noqa: ANN401 - as the driver gives it
    """Return what is known of a customer, as text."""
    return str(value) if isinstance(value, bool | date) else _text(value)


_CONVERT: Mapping[str, Callable[[Any], str | None]] = {
    **dict.fromkeys((*REQUIRED["interactions"], *OPTIONAL), _text),
    **dict.fromkeys((*IDS, "session_id"), _id),
    "timestamp": _time,
}
