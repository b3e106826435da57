"""The versions of a federation's catalogue: published whole, never changed, found by fingerprint.

::

    ROOT/
    └── <n>/                  version n: what a shop's ``catalogue`` setting names
        ├── products.parquet, catalogue.json    see common.features.write_catalogue
        ├── stock.parquet     what shops stock, where it is published: see common.catalogue.stock
        └── version.json      its number, fingerprint, time, parent and counts

One publisher at a time holds ``ROOT/.lock``. A version is written beside its place and renamed
into it, so a reader never meets half of one, and what a killed publisher left is swept by the next.
"""

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field

from common.catalogue.stock import Stock, read_stock
from common.disk import sync
from common.errors import ArtifactError, ConfigError
from common.features import Catalogue, read_catalogue, write_catalogue
from common.protocol import FINGERPRINT_CHARS, Frozen

RECORD = "version.json"
_DRAFTS = ".publishing-"
_LEAST_PREFIX = 8


class Version(Frozen):
    """What ``version.json`` says.

    Attributes
    ----------
    n
        From 1.
    parent
        The version before; None for the first.
    products, offered
        How many the version holds, and how many of them are not retired.
    changes
        What became of how many products since the version before: see
        :meth:`server.catalogue.diff.Difference.counts`.
    stock
        Fingerprint of the stock table; None where none is published.
    """

    format_version: Literal[1] = 1
    n: int = Field(ge=1)
    fingerprint: str = Field(pattern=f"^[0-9a-f]{{{FINGERPRINT_CHARS}}}$")
    published_at: str
    parent: int | None
    products: int = Field(ge=1)
    offered: int = Field(ge=1)
    changes: dict[str, int] = Field(default_factory=dict)
    stock: str | None = None


class Catalogues:
    """All versions of one federation's catalogue, in the folder ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def versions(self) -> list[Version]:
        """Return what is recorded of each version, the oldest first.

        Raises
        ------
        ArtifactError
            If a record is not as it was written.
        """
        return [self.version(n) for n in self.numbers()]

    def last(self) -> Version | None:
        """Return the record of the last version, if one is published; raises as :meth:`version`."""
        return self.version() if self.numbers() else None

    def version(self, which: int | str | None = None) -> Version:
        """Return the record of a version: by number, fingerprint or its beginning; None: the last.

        Raises
        ------
        ConfigError
            If there is no such version, or nothing is published.
        ArtifactError
            If its record is damaged.
        """
        numbers = self.numbers()
        if not numbers:
            raise ConfigError(
                f"{self.root} holds no catalogue yet: publish one with "
                "`python -m server catalogue publish FOLDER`"
            )
        text = str(numbers[-1] if which is None else which)
        if text.isdecimal() and int(text) in numbers:
            return self._record(int(text))
        if re.fullmatch("[0-9a-f]+", text) and len(text) >= _LEAST_PREFIX:
            newest_first = map(self._record, reversed(numbers))
            found = (v for v in newest_first if v.fingerprint.startswith(text))
            first = next(found, None)
            # Who names all of it needs no older record, whatever became of those.
            whole = len(text) == FINGERPRINT_CHARS
            if first and (whole or all(v.fingerprint == first.fingerprint for v in found)):
                return first
        raise ConfigError(
            f"{self.root} has no version {text!r}: give one of "
            f"{', '.join(map(str, numbers))}, or a fingerprint"
        )

    def current(self) -> Path:
        """Return the folder of the last version; raises as :meth:`version`."""
        return self.path()

    def path(self, which: int | str | None = None) -> Path:
        """Return the folder of a version; see :meth:`version`."""
        return self.root / str(self.version(which).n)

    def read(self, which: int | str | None = None) -> Catalogue:
        """Return a version's catalogue once it is checked against its record.

        Raises
        ------
        ConfigError, ArtifactError
            If there is no such version, or it is damaged.
        """
        version = self.version(which)
        folder = self.root / str(version.n)
        catalogue = read_catalogue(folder)
        if catalogue.fingerprint != version.fingerprint:
            raise ArtifactError(f"{folder} holds another catalogue than its {RECORD} says")
        stock = read_stock(folder, catalogue)
        if (None if stock is None else stock.fingerprint) != version.stock:
            raise ArtifactError(f"{folder} holds another stock table than its {RECORD} says")
        return catalogue

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Hold the right to publish, waiting for it: the last version stays the last meanwhile.

        Raises
        ------
        ConfigError
            If the folder can't be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot write to {self.root}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for draft in self.root.glob(f"{_DRAFTS}*"):
                shutil.rmtree(draft, ignore_errors=True)
            yield
        finally:
            os.close(descriptor)

    def next(
        self, catalogue: Catalogue, changes: Mapping[str, int], stock: Stock | None = None
    ) -> Version:
        """Return the record that a catalogue would have as the next version."""
        numbers = self.numbers()
        parent = numbers[-1] if numbers else None
        return Version(
            n=1 + (parent or 0),
            fingerprint=catalogue.fingerprint,
            published_at=datetime.now(UTC).isoformat(timespec="seconds"),
            parent=parent,
            products=catalogue.size,
            offered=int(catalogue.offered.sum()),
            changes=dict(changes),
            stock=None if stock is None else stock.fingerprint,
        )

    def add(
        self, version: Version, catalogue: Catalogue, stock: pd.DataFrame | None = None
    ) -> None:
        """Write the next version; to be called while :meth:`publishing`.

        Parameters
        ----------
        stock
            ``merchant_id, item_id``: the table that the version's fingerprint is of.

        Raises
        ------
        ConfigError
            If the folder can't be written.
        """
        try:
            draft = Path(tempfile.mkdtemp(prefix=_DRAFTS, dir=self.root))
            try:
                folder = draft / str(version.n)
                write_catalogue(catalogue, folder, stock)
                (folder / RECORD).write_text(version.model_dump_json(indent=1), encoding="utf-8")
                for path in (*folder.iterdir(), folder):
                    sync(path)
                folder.rename(self.root / folder.name)
                sync(self.root)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        except OSError as error:
            raise ConfigError(f"cannot write to {self.root}: {error.strerror}") from error

    def numbers(self) -> list[int]:
        """Return the numbers of all versions, ascending, whether records can be read or not."""
        names: list[str] = []
        with suppress(FileNotFoundError):
            names = [path.name for path in self.root.iterdir()]
        return sorted(int(name) for name in names if re.fullmatch(r"[1-9]\d*", name))

    def _record(self, n: int) -> Version:
        path = self.root / str(n) / RECORD
        try:
            version = Version.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from error
        if version.n != n:
            raise ArtifactError(f"{path} is the record of version {version.n}")
        return version
