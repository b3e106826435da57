"""Times as PostgreSQL writes them: in ISO 8601, and some that Python does not know."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

_KINDS = ("date", "timestamp", "timestamptz")


def read_times(connection: sa.Connection) -> None:
    """Have all times come, whatever they are and in whichever style the server writes them.

    One that Python can't hold (``infinity``, and years before 1 and after 9999) comes as PostgreSQL
    writes it, for the checks of the rows. Left to the driver it ends the whole query without a word
    of its column and row. A style other than ISO, which the driver does not read, ends with the
    transaction. Of psycopg, the driver of ``postgresql://`` URLs.
    """
    driver = connection.connection.driver_connection
    import psycopg  # Slow to import, and SQLite does without.
    from psycopg.adapt import Loader
    from psycopg.pq import Format

    if not isinstance(driver, psycopg.Connection):
        return
    # The order of day and month in what is read, such as '3/4/2024'::date, stays the server's.
    connection.exec_driver_sql("SET LOCAL datestyle TO iso")

    def instead_of(known: type[Any], number: int) -> type[Loader]:
        class OrText(Loader):
            def __init__(self, oid: int, context: Any = None) -> None:  # noqa: ANN401 - psycopg's
                super().__init__(oid, context)
                self._time: Callable[[Any], Any] = known(number, context).load

            def load(self, data: Any) -> Any:  # noqa: ANN401 - a buffer of psycopg's
                try:
                    return self._time(data)
                except psycopg.DataError:
                    return bytes(data).decode()

        return OrText

    for kind in _KINDS:
        number = driver.adapters.types[kind].oid
        known = driver.adapters.get_loader(number, Format.TEXT)
        assert known is not None
        driver.adapters.register_loader(number, instead_of(known, number))
