"""Which model is served now: it follows the registry, and a damaged version changes nothing."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from common.errors import ArtifactError, ConfigError, FedtailError
from common.features import Catalogue
from common.programs.watching import Watch
from server.query.core import ServedModel
from server.query.index import Index
from server.registry.records import Record
from server.registry.versions import Registry

logger = logging.getLogger(__name__)

#: Returns the catalogue with a fingerprint, and the shops' stock in rows of it.
FindCatalogue = Callable[[str], tuple[Catalogue, dict[str, np.ndarray]]]


@dataclass
class ModelHost:
    """Holds the served model; a request takes it once and keeps it to its end.

    Parameters
    ----------
    find_catalogue
        Of a model's catalogue, by fingerprint.
    make_index
        How the products' vectors are held.
    """

    registry: Registry
    find_catalogue: FindCatalogue
    make_index: Callable[[np.ndarray], Index]
    switches: int = 0
    refusals: int = 0
    _current: ServedModel | None = None
    _refused: dict[int, str] = field(default_factory=dict)
    _watch: Watch | None = None

    def current(self) -> ServedModel:
        """Return the model served now.

        Raises
        ------
        ConfigError
            If there is none yet.
        """
        model = self._current
        if model is None:
            raise ConfigError(f"{self.registry.where} holds no model that can be served yet")
        return model

    @property
    def ready(self) -> bool:
        """Whether there is a model to answer from."""
        return self._current is not None

    def refresh(self) -> None:
        """Look at the registry once; switch if another version is to be served.

        Whatever is wrong there, the model served so far stays: it was checked when it was read.
        """
        try:
            wanted = self.registry.served()
            if self._current is not None and wanted == self._current.version:
                return
            self._current = self._load(wanted)
            self.switches += 1
            self._refused.clear()
            logger.info("model=switched version=%d", wanted)
        except FedtailError as error:
            self._refuse(error)

    def watch(self, every_seconds: float) -> None:
        """Look again and again, in a thread of its own, until :meth:`close`."""
        self._watch = Watch(self.refresh, "model-host")
        self._watch.start(every_seconds)

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.close()

    def records(self) -> list[Record]:
        """Return the records of all versions that can be read, the newest first."""
        found = []
        for version in reversed(self.registry.versions()):
            try:
                found.append(self.registry.record(version))
            except ArtifactError as error:
                logger.warning("record=damaged version=%d reason=%s", version, error)
        return found

    def pinned(self) -> int | None:
        """Return the version that was chosen to be served; None: whichever is newest."""
        try:
            pins = self.registry.pins()
            return self.registry.decision(pins[-1]).version if pins else None
        except ArtifactError as error:
            logger.warning("pin=damaged reason=%s", error)
            return None

    def _load(self, version: int) -> ServedModel:
        record, artifact = self.registry.read(version)
        catalogue, stock = self.find_catalogue(record.manifest.catalogue_fingerprint)
        return ServedModel.of(version, artifact, catalogue, make_index=self.make_index, stock=stock)

    def _refuse(self, error: FedtailError) -> None:
        """Say once what is wrong; the next look may find it mended."""
        served = -1 if self._current is None else self._current.version
        if self._refused.get(served) != str(error):
            self._refused[served] = str(error)
            self.refusals += 1
            logger.error("model=refused served=%d reason=%s", served, error)
