"""How a shop's settings name a SQL database; SQLAlchemy itself is in client/data/sql_*.py only."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from pydantic import Field, field_validator, model_validator

from client.joining.keys import read_own
from common.errors import ConfigError
from common.protocol import Frozen
from common.tables.contract import BEHAVIORS, REQUIRED

#: What is read of interactions besides what must be there. Quantity and price teach no model
#: anything, so they stay in the database.
OPTIONAL = ("rating", "session_id")
#: Columns that a source may name once for all of its rows.
CONSTANTS = ("merchant_id", "behavior")

# As SQLAlchemy takes a URL apart: a password ends at the first @, whatever else is in it.
_PASSWORD = re.compile(r"[^:/]+://[^:/]*:[^@]*@")
# What drivers are told behind a ?; ODBC takes a whole text of its own, with PWD=... in it.
_SECRET_OPTIONS = ("password", "passwd", "pwd", "sslpassword")
_SECRET_WORDS = re.compile(r"\b(pwd|password)\s*=", re.IGNORECASE)


class TableSource(Frozen):
    """Where the rows of one of the contract's tables are.

    Attributes
    ----------
    table, query
        One of them: a table or view, ``schema.table`` included, or a whole SELECT.
    columns
        The contract's column -> the database's, where they differ.
    constants
        ``merchant_id`` or ``behavior`` of all rows, where no column holds it.
    """

    table: str = ""
    query: str = ""
    columns: dict[str, str] = Field(default_factory=dict)
    constants: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_place(self) -> "TableSource":
        if bool(self.table) == bool(self.query):
            raise ValueError('give either table = "NAME" or query = "SELECT ..."')
        for name in self.constants:
            if name not in CONSTANTS:
                raise ValueError(f"only {' and '.join(CONSTANTS)} may be constants, not {name!r}")
            if name in self.columns:
                raise ValueError(f"{name!r} is a constant and a column: keep one of them")
        behavior = self.constants.get("behavior", BEHAVIORS[0])
        if behavior not in BEHAVIORS:
            raise ValueError(f"no behaviour is called {behavior!r}; use {', '.join(BEHAVIORS)}")
        return self

    def label(self, name: str) -> str:
        """Return what messages call this source of the table ``name``."""
        return f"table {self.table!r}" if self.table else f"the query for {name}"


class Database(Frozen):
    """A SQL database and where in it the contract's tables are.

    Attributes
    ----------
    url
        SQLAlchemy's URL, without a password; a SQLite file's path starts from ``shop.toml``.
    password_env, password_file
        Where the password is: an environment variable, or a file that holds nothing else and that
        its owner alone may read, as a shop's keys are.
    interactions
        One source or several, such as one for orders and one for page views.
    products
        Read where the shop's numbers are mapped by one of its columns, and for what the shop knows
        at home: :mod:`client.data.assortment`.
    """

    url: str = Field(min_length=1)
    password_env: str = ""
    password_file: Path | None = None
    interactions: tuple[TableSource, ...] = Field(min_length=1)
    customers: TableSource | None = None
    stock: TableSource | None = None
    products: TableSource | None = None

    @field_validator("interactions", mode="before")
    @classmethod
    def _one_is_fine(cls, value: Any) -> Any:  # noqa: ANN401 - as TOML has it
        return [value] if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _known_columns(self) -> "Database":
        if self.password_env and self.password_file is not None:
            raise ValueError("give password_env or password_file, not both")
        known = (*REQUIRED["interactions"], *OPTIONAL)
        for source in self.interactions:
            _only(source, known, "interactions")
        if self.stock is not None:
            _only(self.stock, REQUIRED["stock"], "stock")
        return self

    def password(self) -> str | None:
        """Return the password; None where the settings name none.

        Raises
        ------
        ConfigError
            If it is not where the settings say, or others can read its file.
        """
        if self.password_env:
            if self.password_env not in os.environ:
                raise ConfigError(
                    f"the environment variable {self.password_env} is not set: it must hold the "
                    "password of the shop's database"
                )
            return os.environ[self.password_env]
        if self.password_file is None:
            return None
        mend = "write the password into it, or take password_file out"
        data = read_own(self.password_file, "the database's password", mend)
        try:
            return data.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"cannot read the database's password from {self.password_file}: it is not text"
            ) from error


def from_folder(values: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Return a ``[database]`` section with its relative paths starting from ``folder``.

    Raises
    ------
    ConfigError
        If its URL holds a password: settings are shown in messages and kept in backups.
    """
    found = dict(values)
    url = found.get("url")
    if isinstance(url, str):
        if _holds_password(url):
            raise ConfigError(
                f"{where}: database.url holds a password: take it out, and name where it is with "
                "password_env or password_file"
            )
        scheme, _, path = url.partition(":///")
        if scheme.split("+")[0] == "sqlite" and path and path != ":memory:":
            found["url"] = f"{scheme}:///{(folder / path).resolve()}"
    if isinstance(found.get("password_file"), str):
        found["password_file"] = (folder / found["password_file"]).resolve()
    return found


def _holds_password(url: str) -> bool:
    options = parse_qsl(url.partition("?")[2])
    return bool(_PASSWORD.match(url)) or any(
        name.lower() in _SECRET_OPTIONS or _SECRET_WORDS.search(value) for name, value in options
    )


def _only(source: TableSource, known: tuple[str, ...], name: str) -> None:
    for column in source.columns:
        if column not in known:
            raise ValueError(f"{name} has no column {column!r}; map {', '.join(known)}")
