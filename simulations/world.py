"""The analyst's view of one experiment: every shop's records, split in time, on one catalogue."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from client.data.periods import ShopPeriod, customer_counts, stocked
from common.config import nearest
from common.datasets import (
    Dataset,
    load_complete_journey,
    load_folder,
    load_marketplace,
    load_movielens,
)
from common.errors import ConfigError
from common.features import CROSS, Catalogue, ContentSpec, content_columns
from common.metrics import popularity_quintiles, tail_mask
from common.partitioning import partition, uniform
from common.rng import derive
from common.schema import ShopEvents, Tables, doubt_of_ratings, encode_shops
from common.splitting import TimeSplit, iso, split_in_time
from common.tables.contract import BEHAVIOR_WEIGHTS
from common.wording import counted
from simulations.experiment import DataSection, Experiment, PartitionSection, RunSection


@dataclass(frozen=True)
class Period:
    """What is known at one moment, and what is asked of the time after it.

    Attributes
    ----------
    history, targets
        Merchant id -> (U, n): what each customer did before, and first did after.
    counts
        (n,) customers of each product before, over all shops.
    reference_time
        The moment, in epoch seconds.
    """

    history: Mapping[str, sparse.csr_matrix]
    targets: Mapping[str, sparse.csr_matrix]
    counts: np.ndarray
    reference_time: int

    @cached_property
    def tail(self) -> np.ndarray:
        """(n,) bool: not in the short head."""
        return tail_mask(self.counts)

    @cached_property
    def quintiles(self) -> np.ndarray:
        """(n,) popularity fifth of each product."""
        return popularity_quintiles(self.counts)


@dataclass(frozen=True)
class World:
    """Everything an experiment may look at; only its runner ever holds all of it.

    Attributes
    ----------
    shops
        All records of each merchant, sorted by merchant id.
    stock
        Merchant id -> (n,) bool of what it may recommend; not named: everything.
    measured
        Merchant id -> sorted numbers of the customers at whom arms are tuned and measured; a shop
        that is not named is not measured.
    """

    dataset: Dataset
    catalogue: Catalogue
    split: TimeSplit
    shops: tuple[ShopEvents, ...]
    stock: Mapping[str, np.ndarray]
    measured: Mapping[str, np.ndarray]
    half_life_days: float = 0.0

    @property
    def measured_shops(self) -> tuple[ShopEvents, ...]:
        """The shops at which arms are measured, sorted by merchant id."""
        return tuple(shop for shop in self.shops if shop.merchant_id in self.measured)

    @cached_property
    def asked(self) -> Mapping[str, np.ndarray]:
        """Merchant id -> those of ``measured`` that have a history when the test weeks begin."""
        history = self.test.history
        return {
            key: who[np.diff(history[key].indptr)[who] > 0] for key, who in self.measured.items()
        }

    @cached_property
    def validation(self) -> Period:
        """Fit before the validation weeks, asked of them."""
        return self._period(self.split.fit, self.split.validation, self.split.validation_from)

    @cached_property
    def test(self) -> Period:
        """Train before ``train_until``, asked of what comes then."""
        return self._period(self.split.train, self.split.test, self.split.train_until)

    def facts(self) -> dict[str, Any]:
        """Return the report's ``data``."""
        pairs = sum(h.nnz for h in self.test.history.values())
        targets = sum(t.nnz for t in self.test.targets.values())
        asked = sum(int(np.count_nonzero(np.diff(t.indptr))) for t in self.test.targets.values())
        known = sum(int(np.count_nonzero(np.diff(h.indptr))) for h in self.test.history.values())
        measured = sum(map(len, self.asked.values()))
        sample = {"shops": len(self.measured), "customers": measured}
        return {
            "source": self.dataset.name,
            "shops": len(self.shops),
            "customers": known,
            "products": self.catalogue.size,
            "interactions": sum(len(shop) for shop in self.shops),
            "training_pairs": pairs,
            "test_targets": targets,
            "test_customers": asked,
            **({"measured": sample} if measured < known else {}),
            "split": {
                "validation_from": iso(self.split.validation_from),
                "train_until": iso(self.split.train_until),
            },
        }

    def _period(
        self,
        before: Callable[[ShopEvents], ShopEvents],
        after: Callable[[ShopEvents], ShopEvents],
        reference_time: int,
    ) -> Period:
        n = self.catalogue.size
        history, targets = {}, {}
        counts = np.zeros(n)
        for shop in self.shops:
            found = ShopPeriod.of(before(shop), after(shop), n, self.half_life_days, reference_time)
            history[shop.merchant_id], targets[shop.merchant_id] = found.history, found.targets
            counts += customer_counts(found.history)
        return Period(history, targets, counts, reference_time)


def build_world(
    experiment: Experiment, progress: Callable[[str], object] = lambda _: None
) -> World:
    """Load, check, split and encode what an experiment runs on.

    Raises
    ------
    DataError, ConfigError
        If a table or the split is wrong, or a cap is one of no merchant.
    """
    dataset = _load(experiment.data, experiment.run.seed, progress)
    dataset = _with_fewer_customers(dataset, experiment.data.customers_share, experiment.run.seed)
    tables = dataset.tables
    progress("splitting in time and encoding")
    times = tables.interactions["timestamp"].to_numpy()
    chosen = _timestamp(experiment.split.train_until) or dataset.train_until
    share = experiment.split.validation_share
    split = split_in_time(int(times.min()), int(times.max()), chosen, validation_share=share)
    content = experiment.content
    lacking = _lacking(content, tables.products) if experiment.data.path else []
    if lacking:
        content = content.model_copy(update={"features": ()})
        words = ", ".join(map(repr, lacking))
        note = f"content.features name columns that the products lack ({words}): "
        own = ", ".join(map(str, content_columns(tables.products)))
        note += (
            f"all columns that they have are used ({own})"
            if own
            else "they have none beside item_id, so all that is known of a product is who bought it"
        )
        dataset = replace(dataset, notes=[*dataset.notes, note])
    catalogue = Catalogue.of(tables.products, content)
    weights, scale = experiment.data.behaviors, experiment.data.rating_scale
    shops = tuple(encode_shops(tables, catalogue.item_ids, weights, scale))
    _check_caps(experiment, shops)
    present = tables.interactions["behavior"].value_counts()
    for name, count in present[present > 0].items():
        if name not in weights:
            note = f"data.behaviors does not name {name}: {count:,} such records are left out "
            note += f"(data.behaviors.{name} = {BEHAVIOR_WEIGHTS[str(name)]:g} counts them)"
            dataset = replace(dataset, notes=[*dataset.notes, note])
    if len(shops) == 1:
        note = f"{shops[0].merchant_id!r} is the only merchant: with nobody to learn from, no gain "
        note += "here is one of federating"
        dataset = replace(dataset, notes=[*dataset.notes, note])
    found = [*dataset.notes, *_unread(experiment.data), *_silent(shops, split)]
    if words := doubt_of_ratings(tables.interactions, weights, scale):
        found.append(f"section data: {words}")
    dataset = replace(dataset, notes=[*found, *_unstocked(tables, shops, catalogue)])
    stock = {}
    for shop in shops:
        allowed = stocked(catalogue, tables.stock_of(shop.merchant_id))
        if allowed is not None:
            stock[shop.merchant_id] = allowed
    measured = _measured(shops, split, experiment.run)
    half_life = experiment.federated.half_life_days
    world = World(dataset, catalogue, split, shops, stock, measured, half_life)
    if experiment.run.measured_shops or experiment.run.measured_customers:
        note = f"arms are tuned and measured at {sum(map(len, world.asked.values()))} customers of "
        note += f"{len(measured)} shops, the same for every arm; all shops and customers train"
        dataset.notes.append(note)
    return world


def _check_caps(experiment: Experiment, shops: Sequence[ShopEvents]) -> None:
    known = [shop.merchant_id for shop in shops]
    for merchant_id in experiment.privacy.caps:
        if merchant_id not in known:
            hint = nearest(merchant_id, known)
            raise ConfigError(f"privacy.caps: no merchant is called {merchant_id!r}; {hint}")


def _unread(data: DataSection) -> list[str]:
    """Return what to know of settings that say nothing of these data."""
    notes = []
    if data.merchants != "market" and (data.path or data.source != "complete-journey"):
        notes.append(
            f"data.merchants = {data.merchants!r} is for complete-journey alone: merchants are "
            "those of the data"
        )
    reads = {
        "natural": set[str](),
        "uniform": {"merchants", "skew"},
        "dirichlet": {"merchants", "skew", "alpha", "column"},
        "column": {"column"},
    }[data.partition.kind]
    for name, field in PartitionSection.model_fields.items():
        if name not in {"kind", *reads} and getattr(data.partition, name) != field.default:
            notes.append(
                f"data.partition.{name} says nothing where data.partition.kind is "
                f"{data.partition.kind!r}"
            )
    return notes


def _silent(shops: Sequence[ShopEvents], split: TimeSplit) -> list[str]:
    """Return what to know of shops without records on one side of the split."""
    spans = [(s.merchant_id, s.timestamps.min(), s.timestamps.max()) for s in shops if len(s)]
    untested = [name for name, _, last in spans if last < split.train_until]
    untaught = [name for name, first, _ in spans if first >= split.train_until]
    notes = []
    for names, side, meaning in (
        (untested, "after", "they train, but"),
        (untaught, "before", "they have nothing to learn from and take part all the same, but"),
    ):
        if names:
            shown = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
            notes.append(
                f"no records {side} {iso(split.train_until)} at {len(names)} of {len(shops)} shops "
                f"({shown}): {meaning} no figure, share of shops or answer counts them"
            )
    return notes


def _unstocked(tables: Tables, shops: Sequence[ShopEvents], catalogue: Catalogue) -> list[str]:
    """Return what to know of records of products that their shop's stock does not name."""
    count, names = 0, []
    for shop in shops:
        stock = tables.stock_of(shop.merchant_id)
        if stock is not None:
            other = int(np.count_nonzero(~np.isin(shop.items, catalogue.rows(stock))))
            count += other
            names += [shop.merchant_id] if other else []
    shown = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
    note = f"{counted(count, 'record')} of {counted(len(names), 'shop')} ({shown}) are of products "
    note += "that stock does not name there: no list may hold those, though the test period asks "
    note += "for them, and where privacy.publish_stock is true nothing of them leaves the shop"
    return [note] if names else []


def _measured(
    shops: Sequence[ShopEvents], split: TimeSplit, run: RunSection
) -> dict[str, np.ndarray]:
    """Return who is measured: shops spread evenly over their sizes, customers drawn by seed."""
    by_size = sorted(shops, key=lambda shop: (len(shop.user_ids), shop.merchant_id))
    count = min(run.measured_shops or len(shops), len(shops))
    places = ((np.arange(count) + 0.5) * len(shops) / max(count, 1)).astype(np.int64)
    chosen = {}
    for shop in (by_size[place] for place in places):
        everyone = np.arange(len(shop.user_ids))
        if run.measured_customers:
            known = np.unique(shop.users[shop.timestamps < split.train_until])
            stream = derive(run.seed, purpose="measured-customers", merchant_id=shop.merchant_id)
            everyone = np.sort(stream.permutation(known)[: run.measured_customers])
        chosen[shop.merchant_id] = everyone
    return chosen


def _load(data: DataSection, seed: int, progress: Callable[[str], object]) -> Dataset:
    partitioner = data.partition.partitioner(seed)
    folder = Path(data.path).expanduser()
    if data.source == "movielens":
        if not data.path:
            raise ConfigError("data.source = 'movielens' needs data.path: your unpacked copy")
        return load_movielens(folder, partitioner or uniform(20, seed=seed, skew=0.5))
    if data.path:
        progress(f"reading {data.path}")
        dataset = load_folder(folder, bad_rows=data.bad_rows)
    elif data.source == "marketplace":
        progress("drawing a marketplace")
        dataset = load_marketplace(data.marketplace)
    else:
        progress("reading Complete Journey")
        dataset = load_complete_journey(data.merchants)
    if partitioner is None:
        return dataset
    tables = partition(dataset.tables, partitioner)
    note = f"customers were dealt to merchants: {data.partition.kind}"
    return Dataset(dataset.name, tables, dataset.train_until, [*dataset.notes, note])


def _with_fewer_customers(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Keep a share of each merchant's customers; the products stay as they are."""
    if share == 1.0:
        return dataset
    tables = dataset.tables
    frame = tables.interactions
    pairs = frame[["merchant_id", "user_id"]].drop_duplicates().astype(str)
    kept = []
    for merchant_id, own in pairs.groupby("merchant_id"):
        users = np.sort(own["user_id"].to_numpy(dtype=object))
        stream = derive(seed, purpose="customers-share", merchant_id=str(merchant_id))
        chosen = stream.permutation(len(users))[: max(1, round(share * len(users)))]
        kept.append(pd.DataFrame({"merchant_id": merchant_id, "user_id": users[np.sort(chosen)]}))
    chosen_pairs = pd.MultiIndex.from_frame(pd.concat(kept).astype(str))
    rows = pd.MultiIndex.from_frame(frame[["merchant_id", "user_id"]].astype(str))
    smaller = replace(tables, interactions=frame[rows.isin(chosen_pairs)].reset_index(drop=True))
    note = f"{share:g} of each merchant's customers were drawn by seed {seed}"
    return replace(dataset, tables=smaller, notes=[*dataset.notes, note])


def _lacking(content: ContentSpec, products: pd.DataFrame) -> list[str]:
    """Return the columns that the features name and the products lack.

    An experiment names those of its own data set; with ``data.path`` it must run on any other.
    """
    named = {column for feature in content.features for column in feature.split(CROSS)}
    return sorted(named - set(products.columns))


def _timestamp(value: int | str) -> int | None:
    """Return epoch seconds of a setting; None where it says nothing."""
    if isinstance(value, int):
        return value or None
    try:
        moment = pd.Timestamp(value)
        if pd.isna(moment):  # "" and "nan" are to pandas no wrong time, but none.
            raise ValueError
    except ValueError as error:
        raise ConfigError(
            f"split.train_until is {value!r}; write epoch seconds or a date such as 2017-10-02"
        ) from error
    moment = moment.tz_localize(UTC) if moment.tzinfo is None else moment
    return int(moment.timestamp())
