"""The rows of one customer in a SQL database, found by the database itself.

A ``user_id`` is text here, and whatever the shop made it there. The database decides what is equal,
generously: whoever reads the rows compares them once more, as text.
"""

import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

# No number that SQLite holds as one is longer.
_WHOLE = re.compile(r"-?[0-9]{1,19}")
# Semicolons and comments at the end of a query. What is quoted, or in /* */, ends with a mark.
_BEHIND = re.compile(r"(?:\s|;|--[^\n'\"`$\]*]*(?:\n|\Z))+\Z")


def of_customer(
    connection: sa.Connection,
    relation: sa.FromClause,
    columns: Sequence[str],
    user_column: str,
    user_id: str,
) -> sa.Select[Any]:
    """Return the query for the rows of one customer.

    Parameters
    ----------
    relation
        A table, or :func:`as_relation` of a query.
    columns
        What to select.
    user_column
        The column with the customer's id.
    """
    # Without a type the value is sent as it is: PostgreSQL takes the column's own, and so its
    # index. SQLite compares a column without affinity by the value's type: both are tried.
    column: sa.ColumnClause[Any] = sa.column(user_column)
    values: list[str | int] = [user_id]
    if connection.dialect.name == "sqlite" and _WHOLE.fullmatch(user_id):
        number = int(user_id)
        values += [number] if abs(number) < 2**63 else []
    same = sa.or_(*(column == sa.literal(value, sa.types.NullType()) for value in values))
    chosen: list[sa.ColumnClause[Any]] = [sa.column(name) for name in columns]
    return sa.select(*chosen).select_from(relation).where(same)


def bare_query(query: str) -> str:
    """Return a whole SELECT without semicolons and comments behind it."""
    return _BEHIND.sub("", query.strip())


def as_relation(query: str) -> sa.FromClause:
    """Return a whole SELECT as something to select from."""
    # text() would take 'HH24:MI' for a parameter; a comment ends where its line does.
    text = bare_query(query).replace(":", r"\:") + "\n"
    return sa.text(text).columns().subquery("of_the_shop")
