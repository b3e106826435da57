"""What a shop has at home: the global model that came, its own records, and what it stocks."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from client.data.assortment import Assortment, shared_size
from client.data.periods import customer_counts, histories, stocked
from client.data.source import encode_source, open_source, unknown_merchant
from client.home.assortment_model import on_assortment
from client.home.models import in_use
from client.settings import ShopSettings
from common.artifact import MANIFEST, Manifest, load_model
from common.errors import ArtifactError, DataError, ProtocolError
from common.features import Catalogue
from common.metrics import tail_mask
from common.model import GlobalModel, initial_state
from common.protocol import POPULARITY, ModelPlan, TrainingPlan
from common.schema import ShopEvents, Tables

#: Told what is being done, for people who wait.
Progress = Callable[[str], object]


@dataclass(frozen=True)
class CameHome:
    """A global model as it lies at the shop.

    Attributes
    ----------
    folder
        Of the artifact.
    digest
        SHA-256 of its manifest, which names those of all its files.
    """

    folder: Path
    digest: str
    manifest: Manifest
    plan: TrainingPlan
    model: GlobalModel

    @property
    def learned(self) -> bool:
        """Whether its learned block was trained at all."""
        return self.manifest.server_round > 0


@dataclass(frozen=True)
class HomeRecords:
    """A shop's own records on the catalogue, and what it may list."""

    events: ShopEvents
    stock: np.ndarray | None

    @property
    def span(self) -> tuple[int, int]:
        """Times of the first and the last record, epoch seconds."""
        return int(self.events.timestamps.min()), int(self.events.timestamps.max())


@dataclass(frozen=True)
class HeldTables:
    """Tables that were read already, as a source."""

    held: Tables

    def tables(self) -> Tables:
        """Return the tables."""
        return self.held


def load_home_model(folder: Path, catalogue: Catalogue) -> CameHome:
    """Read a global model and check it against the shop's catalogue.

    On an assortment it knows the shop's own products too.

    Raises
    ------
    ArtifactError
        If it is damaged, of another catalogue, or says no plan that this code knows.
    """
    shared = catalogue.base if isinstance(catalogue, Assortment) else catalogue
    with in_use(folder.parent):
        artifact = load_model(folder, catalogue_fingerprint=shared.fingerprint)
    manifest = artifact.manifest
    try:
        plan = TrainingPlan.model_validate(manifest.config["plan"])
        model = on_assortment(GlobalModel(plan.model, shared, artifact.arrays), catalogue)
    except (KeyError, ValidationError, ProtocolError) as error:
        raise ArtifactError(
            f"{folder / MANIFEST} names no training plan that this code knows: use a model of this "
            "version of fedtail"
        ) from error
    return CameHome(folder, manifest_digest(folder), manifest, plan, model)


def untrained(catalogue: Catalogue) -> GlobalModel:
    """Return the global model before any shop has sent anything: public content alone."""
    plan = ModelPlan(dimension=1, learned_items=1)
    return GlobalModel(plan, catalogue, initial_state(plan, catalogue.size))


def manifest_digest(folder: Path) -> str:
    """Return the SHA-256 of a model's manifest; "" where there is none."""
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return ""


def read_records(settings: ShopSettings, catalogue: Catalogue) -> HomeRecords:
    """Read all of the shop's records and its stock, now.

    Raises
    ------
    DataError
        If the data break the contract, or hold other merchants' records but do not know this one.
    """
    tables = open_source(settings).tables()
    if words := unknown_merchant(tables, settings.merchant_id):
        raise DataError(words)  # At home nobody else learns of it.
    events = encode_source(HeldTables(tables), settings, catalogue)
    return HomeRecords(events, stocked(catalogue, tables.stock_of(settings.merchant_id)))


@dataclass(frozen=True)
class Tail:
    """Which products are outside the short head, and by whose count."""

    model: GlobalModel
    events: ShopEvents

    @cached_property
    def popularity(self) -> np.ndarray:
        """(n,) the federation's released popularity; the shop's own where there is none.

        Of products that the shop alone knows, it is their share of its own.
        """
        released, catalogue = np.asarray(self.model.state[POPULARITY]), self.model.catalogue
        shared = shared_size(catalogue)
        if released.any() and shared == catalogue.size:
            return released
        own = customer_counts(histories(self.events, catalogue.size, 0.0, 0))
        if not released.any():
            return own
        return np.concatenate([released[:shared], own[shared:] / max(own.sum(), 1)])

    @cached_property
    def mask(self) -> np.ndarray:
        """(n,) bool."""
        return tail_mask(self.popularity)
