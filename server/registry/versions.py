"""Versioned models with their privacy statement: published whole, verified when read.

::

    WHERE/
    ├── models/<time>-<token>/     model.safetensors, items.parquet, manifest.json
    ├── versions/<n>.json          the record of version n: digest of each file, manifest,
    │                              evaluation if released, and why force was needed, if it was
    └── pins/<n>.json              the n-th decision about which version is served

A version's files are written first, under a name of their own, and read back; its record comes
last, in one step that only one process can win. A version exists with its record alone, so that
neither a crash nor two publishers at once leave half a version or a mixed one. Records and pins
are only ever added: the newest pin holds, and all of them are the log.
"""

import logging
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from common.artifact import ModelArtifact, load_model
from common.disk import sha256
from common.errors import ArtifactError, ConfigError, PrivacyError, RunError
from server.registry.records import (
    FILES,
    FOLDER_NAME,
    Act,
    Pin,
    Record,
    Sealed,
    objections,
    seal,
    unseal,
)
from server.registry.stores import open_store, without_secrets

_MODELS, _VERSIONS, _PINS = "models", "versions", "pins"
_STAMP = "%Y%m%dT%H%M%SZ"
#: Nobody publishes for so long: files without a record that are older were left by a crash.
_ABANDONED = timedelta(days=1)

_LOG = logging.getLogger(__name__)


class Registry:
    """The models at one folder or fsspec URL."""

    def __init__(self, where: str | Path) -> None:
        self.where = without_secrets(str(where))
        self._store = open_store(str(where))

    def publish(
        self, model: Path, *, evaluation: Mapping[str, Any] | None = None, force: bool = False
    ) -> Record:
        """Check a model folder, and publish it as the next version.

        Parameters
        ----------
        evaluation
            Figures that were released together with the model, as JSON values.
        force
            Publish in spite of the objections to it; the record says so.

        Raises
        ------
        ArtifactError
            If the model is damaged, or the registry cannot be written.
        PrivacyError
            If there are objections and no force.
        """
        found = load_model(model)
        forced = objections(found.manifest.privacy)
        if forced and not force:
            raise PrivacyError(
                f"{model} is not published: {'; '.join(forced)}. Publish a model that protects the "
                "shops' customers, or say --force: the record will tell"
            )
        with self._access("write"):
            self._sweep()
            at = datetime.now(UTC)
            folder = f"{at.strftime(_STAMP)}-{secrets.token_hex(8)}"
            files = {name: sha256(model / name) for name in FILES}
            try:
                for name in FILES:
                    self._store.put(model / name, f"{_MODELS}/{folder}/{name}")
                # What a reader will find, not what was meant: the source may change meanwhile.
                if self._load(folder, files).manifest != found.manifest:
                    raise ArtifactError(f"{model} changed while it was published: publish it again")
            except BaseException:
                with suppress(OSError):
                    self._store.remove(f"{_MODELS}/{folder}")
                raise
            # From here on a failure removes nothing: the record may stand in spite of it.
            record = self._add_record(
                {
                    "published_at": at.isoformat(timespec="seconds"),
                    "folder": folder,
                    "files": files,
                    "manifest": found.manifest,
                    "evaluation": None if evaluation is None else dict(evaluation),
                    "forced": forced,
                }
            )
        _LOG.info("published version=%d forced=%s", record.version, bool(forced))
        return record

    def versions(self) -> list[int]:
        """Return the numbers of all versions, ascending."""
        with self._access("read"):
            return self._numbers(_VERSIONS)

    def record(self, version: int) -> Record:
        """Return what is recorded of a version, without looking at its files.

        Raises
        ------
        ConfigError
            If there is no such version.
        ArtifactError
            If the record is not as it was written.
        """
        with self._access("read"):
            try:
                record = self._unseal(Record, f"{_VERSIONS}/{version}.json")
            except FileNotFoundError as error:
                raise ConfigError(f"{self.where} has no version {version}: see list") from error
        if record.version != version:
            raise ArtifactError(
                f"{self.where}/{_VERSIONS}/{version}.json is the record of version {record.version}"
            )
        return record

    def read(self, version: int | None = None) -> tuple[Record, ModelArtifact]:
        """Return a version, by default the served one, after checking every byte of it.

        Raises
        ------
        ConfigError
            If there is no such version.
        ArtifactError
            Naming the file that is missing or not as it was published.
        """
        record = self.record(self.served() if version is None else version)
        with self._access("read"):
            return record, self._load(record.folder, record.files)

    def served(self) -> int:
        """Return the version that is served: the pinned one, or else the newest.

        Raises
        ------
        ConfigError
            If nothing is published.
        ArtifactError
            If the last decision is not as it was written; a new one replaces it.
        """
        return self._served(self.pins())

    def pins(self) -> list[int]:
        """Return the numbers of all decisions about what is served, ascending."""
        with self._access("read"):
            return self._numbers(_PINS)

    def decision(self, number: int) -> Pin:
        """Return one decision, or raise ArtifactError if it is not as it was written."""
        name = f"{_PINS}/{number}.json"
        with self._access("read"):
            pin = self._unseal(Pin, name)
        if pin.number != number:
            raise ArtifactError(f"{self.where}/{name} is decision {pin.number}: pin a version anew")
        return pin

    def pin(self, version: int | None) -> Pin:
        """Serve one version from now on, or with None whichever is newest.

        Raises
        ------
        ConfigError, ArtifactError
            If there is no such version, or it is damaged: it is not served then.
        RunError
            If another process decided at the same time.
        """
        pins = self.pins()
        try:
            served = self._served(pins)
        except ArtifactError:
            served = None  # Nobody can tell what a damaged decision said: replace it.
        return self._decide("follow newest" if version is None else "pin", pins, served, version)

    def roll_back(self) -> Pin:
        """Serve the version before the served one; raises as :meth:`pin` does."""
        pins = self.pins()
        served = self._served(pins)
        earlier = [number for number in self.versions() if number < served]
        if not earlier:
            raise ConfigError(f"{self.where}: nothing was published before version {served}")
        return self._decide("roll back", pins, served, earlier[-1])

    def _served(self, pins: Sequence[int]) -> int:
        versions = self.versions()
        if not versions:
            raise ConfigError(f"{self.where} holds no models yet: publish one")
        return (self.decision(pins[-1]).version if pins else None) or versions[-1]

    def _decide(
        self, act: Act, pins: Sequence[int], served: int | None, version: int | None
    ) -> Pin:
        """Add the decision after the ones that were looked at, or fail if one was added since."""
        # Who follows the newest is served that one now.
        self.read(self.versions()[-1] if version is None else version)
        pin = Pin(
            number=1 + max(pins, default=0),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            act=act,
            version=version,
            before=served,
        )
        with self._access("write"):
            try:
                self._store.create(f"{_PINS}/{pin.number}.json", seal(pin))
            except FileExistsError as error:
                raise RunError(
                    f"{self.where}: somebody else decided at the same moment what is served; "
                    "look at it with list, and decide again"
                ) from error
        _LOG.info("decided act=%r version=%s before=%s", act, version or "newest", served)
        return pin

    def _add_record(self, values: Mapping[str, Any]) -> Record:
        """Take the next free number; another publisher may take it first, any number of times."""
        while True:
            number = 1 + max(self._numbers(_VERSIONS), default=0)
            record = Record.model_validate({**values, "version": number})
            with suppress(FileExistsError):
                self._store.create(f"{_VERSIONS}/{number}.json", seal(record))
                return record

    def _load(self, folder: str, files: Mapping[str, str]) -> ModelArtifact:
        where = f"{self.where}/{_MODELS}/{folder}"
        try:
            with self._store.local(f"{_MODELS}/{folder}", FILES) as local:
                for name in FILES:
                    if sha256(local / name) != files[name]:
                        raise ArtifactError(
                            f"{where}/{name} is not as it was published (SHA-256 differs): serve "
                            "another version, or publish the model anew"
                        )
                return load_model(local)
        except FileNotFoundError as error:
            name = Path(str(error.filename or error)).name
            raise ArtifactError(f"{where}/{name} is missing: publish the model anew") from error

    def _sweep(self) -> None:
        """Remove what publishers that crashed long ago left behind."""
        versions = self._numbers(_VERSIONS)
        folders = [name for name in self._store.names(_MODELS) if re.fullmatch(FOLDER_NAME, name)]
        if len(folders) <= len(versions):
            return
        try:
            recorded = {self.record(number).folder for number in versions}
        except ArtifactError:
            return  # Which files a damaged record speaks of cannot be known: keep all.
        before = (datetime.now(UTC) - _ABANDONED).strftime(_STAMP)
        for folder in folders:
            if folder not in recorded and folder < before:
                with suppress(FileNotFoundError):  # Another publisher may sweep, too.
                    self._store.remove(f"{_MODELS}/{folder}")

    def _numbers(self, folder: str) -> list[int]:
        found = (re.fullmatch(r"([1-9]\d*)\.json", name) for name in self._store.names(folder))
        return sorted(int(match[1]) for match in found if match)

    def _unseal(self, kind: type[Sealed], name: str) -> Sealed:
        return unseal(kind, self._store.read(name), f"{self.where}/{name}")

    @contextmanager
    def _access(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or f"{type(error).__name__}: {error}"
            raise ArtifactError(f"cannot {what} the registry {self.where}: {reason}") from error
