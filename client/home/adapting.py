"""``client adapt``: the shop's own mixture around the global model, fitted at home and kept there.

The weights are chosen on the last part of the shop's own time span, with parts that have not seen
it; then all is fitted on every record. The global model is as it came: where its training saw that
part too, weights lean to it a little, and the document says so.
"""

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from client.data.assortment import home_catalogue
from client.data.periods import ShopPeriod, histories
from client.home.adaptation import AdaptedFacts
from client.home.adapted_state import alone, folder_digest, read_facts, save_adapted
from client.home.models import adapted_to, current_model, in_use
from client.home.personalization import HomeModel
from client.home.segment_fitting import fit_segments
from client.home.shop import (
    CameHome,
    HomeRecords,
    Progress,
    Tail,
    load_home_model,
    read_records,
)
from client.home.weight_search import choose_weights
from client.home_settings import LEARNED_PARTS, TRAINED_PARTS, HomeSettings
from client.settings import ShopSettings
from client.shop_folder import ShopFolder
from common.code import code_digest
from common.errors import ArtifactError, ConfigError, DataError
from common.model import GlobalModel
from common.rng import derive
from common.splitting import iso
from common.tables.contract import BEHAVIOR_WEIGHTS

_DAY = 86_400


def adapt(
    path: Path,
    settings: ShopSettings,
    model_folder: Path | None = None,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Fit the shop's mixture on all of its records and keep it in the shop's folder.

    Parameters
    ----------
    path
        Of the settings.
    model_folder
        The global model; default: the one that came home last.

    Returns
    -------
    dict
        ``shop, model, span, validation_from, customers, records, validated, weights, segments``
        (whose taste is kept), ``kept_in, notes``.

    Raises
    ------
    InputError
        If there is no model, or it is damaged or of another catalogue; if the shop's data can't
        be read or hold nothing to adapt to.
    """
    with in_use(settings.models):
        return _adapt(path, settings, model_folder, progress)


def _adapt(
    path: Path, settings: ShopSettings, model_folder: Path | None, progress: Progress
) -> dict[str, Any]:
    folder = ShopFolder.of(path)
    chosen = current_model(settings.models) if model_folder is None else model_folder.resolve()
    progress("reading the catalogue and the model")
    catalogue = home_catalogue(settings)
    home = load_home_model(chosen, catalogue)
    progress("reading the shop's records")
    records = read_records(settings, catalogue)
    if not len(records.events):
        raise DataError(
            "the shop has no records of products in the catalogue: there is nothing to adapt to. "
            "python -m client recommend uses the global model as it came"
        )
    mixed = fitting(home, settings.home.mixed)
    first, last = records.span
    end = last + 1
    begin = last_part(first, end, settings.home.validation_share)
    fitted, validated = fit_home(
        home.model,
        home.plan.half_life_days,
        records,
        mixed,
        settings.home.validation_customers,
        begin,
        end,
        progress,
    )
    progress("reading off what segments of the customers like")
    segments = fit_segments(
        home.model,
        home.plan.half_life_days,
        records,
        fitted,
        mixed,
        settings.home.validation_customers,
        begin,
    )
    fitted = replace(fitted, segments=segments)
    progress("keeping the adaptation")
    facts = _kept(
        folder.adapted,
        settings.models,
        fitted,
        AdaptedFacts(
            merchant_id=settings.merchant_id,
            fitted_at=datetime.now(UTC).isoformat(timespec="seconds"),
            model_folder=home.folder,
            model_digest=home.digest,
            model_version=home.manifest.version,
            catalogue_digest=folder_digest(settings.catalogue),
            catalogue_fingerprint=home.manifest.catalogue_fingerprint,
            content=catalogue.spec,
            code_digest=code_digest(),
            settings=settings.home.mixed,
            behavior_weights=settings.behavior_weights or dict(BEHAVIOR_WEIGHTS),
            rating_scale=settings.rating_scale,
            own_products=settings.home.own_products,
            half_life_days=home.plan.half_life_days,
            first=first,
            last=last,
            validation_from=begin,
            customers=len(records.events.user_ids),
            records=len(records.events),
            validated=validated,
            mixing_weights={},
            part_scales={},
        ),
    )
    return {
        "shop": settings.merchant_id,
        "model": home.manifest.version,
        "span": {"first": iso(first), "last": iso(last)},
        "validation_from": iso(begin),
        "customers": facts.customers,
        "records": facts.records,
        "validated": validated,
        "weights": facts.mixing_weights,
        "segments": [f"{name} {value}" for name, value in facts.segments],
        "kept_in": str(folder.adapted),
        "notes": _notes(home, mixed, validated, begin),
    }


def _kept(adapted: Path, models: Path, fitted: HomeModel, facts: AdaptedFacts) -> AdaptedFacts:
    """Keep an adaptation, and the model that it is to for as long as it is the shop's."""
    # One `adapt` after the other: each names the model before, and its own, by the same two links.
    with alone(adapted.parent):
        before = None
        with suppress(ArtifactError):  # What is damaged is replaced.
            if (stored := read_facts(adapted)) is not None:
                before = stored[1].model_folder
        with adapted_to(models, facts.model_folder, before):
            return save_adapted(adapted, fitted, facts)


def fit_home(
    model: GlobalModel,
    half_life: float,
    records: HomeRecords,
    settings: HomeSettings,
    most: int,
    begin: int,
    end: int,
    progress: Progress = lambda _: None,
) -> tuple[HomeModel, int]:
    """Choose the weights on the records from ``begin`` on, then fit on all before ``end``.

    Parameters
    ----------
    half_life
        Of a record's weight, in days; 0 forgets nothing.
    most
        The weights are chosen on so many customers at most.

    Returns
    -------
    tuple
        The mixture, and how many customers the weights were chosen on.

    Raises
    ------
    ConfigError
        If the settings have no part to mix.
    """
    if not any(settings.start.values()):
        raise ConfigError(
            "home: start gives no part a weight, or such parts alone that a model without a "
            "trained round can't give: name another, such as own_ease"
        )
    n = model.catalogue.size
    events = records.events.before(end)
    before = events.before(begin)
    period = ShopPeriod.of(before, events.since(begin), n, half_life, begin)
    asked = drawn(np.flatnonzero(np.diff(period.targets.indptr)), most, events.merchant_id)
    weights = dict(settings.start)
    if len(asked):
        progress(f"choosing the weights on {len(asked)} customers")
        tail = Tail(model, before).mask
        weights = choose_weights(model, period, tail, settings, stock=records.stock, asked=asked)
    progress(f"fitting on all {len(events)} records")
    all_of_it = histories(events, n, half_life, end)
    fitted = HomeModel.fit(model, all_of_it, settings, stock=records.stock)
    return replace(fitted, mixing_weights=weights), len(asked)


def fitting(home: CameHome, settings: HomeSettings) -> HomeSettings:
    """Return the settings less the parts that an untrained learned block can't give."""
    return settings if home.learned else settings.without(*LEARNED_PARTS)


def drawn(customers: np.ndarray, most: int, merchant_id: str) -> np.ndarray:
    """Return at most so many of the customers, always the same ones, in their order."""
    stream = derive(0, purpose="home-customers", merchant_id=merchant_id)
    return np.sort(stream.permutation(customers)[:most])


def last_part(first: int, end: int, share: float) -> int:
    """Return where the last ``share`` of a time span begins; never before its second second."""
    return max(end - max(1, round(share * (end - first))), first + 1)


def has_seen(home: CameHome, moment: int) -> bool:
    """Whether the global model may have been trained on records from ``moment`` on.

    A run trains on all that a shop has then; the plan's date is the day of the run.
    """
    return not 0 < home.plan.reference_time <= moment - _DAY


def _notes(home: CameHome, settings: HomeSettings, validated: int, begin: int) -> list[str]:
    notes = []
    if not home.learned:
        notes.append("the global model has no trained round: it brings popularity and content only")
    if not validated:
        notes.append(
            f"no customer bought anything new since {iso(begin)}: the weights are those that the "
            "search would have started from"
        )
    elif set(TRAINED_PARTS) & set(settings.start) and has_seen(home, begin):
        notes.append(
            f"the global model may have been trained on records since {iso(begin)}, on which the "
            "weights were chosen: they may lean to it a little more than they should"
        )
    return notes
