"""``train``: what an operator asks for becomes a run, and the run a published model."""

import time
from dataclasses import dataclass, replace
from typing import Any

from common.artifact import ModelArtifact, load_model, save_model
from common.bundle import build, digest
from common.errors import ArtifactError, ConfigError, RunError
from common.statement import statement
from server.catalogue.versions import Catalogues, Version
from server.operating.folder import Federation
from server.operating.services import control, is_up
from server.operating.shops import Shops
from server.operating.sum_roster import members, needed_shops
from server.registry.tables import served
from server.registry.versions import Registry
from server.settings import EVENTS_FILE, read_run_config
from server.training.plan import prepare, read_plan_file
from server.training.records import RunRecord, Runs, new_name, now
from server.training.run import MIN_SHOPS, OF_SUMS, Standing, Training, View, standing
from server.training.tables import plan_lines

Document = dict[str, Any]

_SERVED = "served"
#: In a run's folder: the model that it goes on from.
_INITIAL = "initial"


@dataclass(frozen=True)
class Request:
    """What ``train`` was asked.

    Attributes
    ----------
    rounds
        Instead of plan.toml's.
    start_from
        A version in the registry, or ``served``: the run goes on from its model.
    resume
        A run to take up again.
    force
        Publish in spite of the objections to a model.
    evaluate
        Ask shops for their figures of the model, each at its own price.
    """

    rounds: int | None = None
    start_from: str | None = None
    resume: str | None = None
    force: bool = False
    evaluate: bool = False


@dataclass(frozen=True)
class Planned:
    """A run that was not begun, the catalogue version it trains on, and what to know of it.

    ``start`` is the model that it goes on from.
    """

    record: RunRecord
    catalogue: Version
    notes: tuple[str, ...]
    start: ModelArtifact | None


def plan_only(federation: Federation, request: Request, view: View) -> Document:
    """Return what ``train`` would do and what it would cost, without asking any shop.

    Raises
    ------
    ConfigError, ArtifactError
        As :func:`train`, or if a run is to be taken up again.
    """
    if request.resume is not None:
        raise ConfigError("a run that is taken up again has its plan: give --plan-only or --resume")
    planned = _new(federation, request, view)
    if request.evaluate:
        planned = replace(planned, record=_with_figures(planned.record, going=False))
    if planned.record.plan.trust == "federation":
        planned = replace(planned, notes=(*planned.notes, *_about_sums(federation, planned)))
    return _planned_document(planned, _standing(federation) if is_up(federation) else None)


def train(federation: Federation, request: Request, view: View) -> Document:
    """Train, or take a run up again, and publish its model; return what came of it.

    Raises
    ------
    ConfigError, ArtifactError
        If the plan, catalogue or registry are not usable.
    RunError
        If the run did not come to its end, or its model was not published.
    """
    runs = Runs(federation.runs)
    with runs.training():
        training = Training(
            runs, control(federation), lambda: is_up(federation), federation.registry, view
        )
        if request.resume is None:
            _check_is_up(federation)
            planned = _new(federation, request, view)
            record, going = planned.record, False
        else:
            if request.rounds is not None or request.start_from is not None:
                raise ConfigError(
                    "a run that has begun keeps its rounds and its start: leave out --rounds and "
                    "--from"
                )
            record, going = _finished(runs, runs.read(request.resume)), False
            planned = None
        if record.ended != "completed":
            _check_is_up(federation)
            record, going = training.take_up(record)
            record = _finished(runs, record)
        if request.evaluate:
            record = _with_figures(record, going=going)
        if record.ended != "completed":
            # Whoever trains for an hour wants to know before it that nothing can be published.
            Registry(federation.registry).versions()
            if not going:
                record = _submitted(federation, training, record, planned, view)
            offset = 0 if going else _size(runs, record)
            record = training.follow(record, offset)
        view.stage("publishing the model")
        record, published_now = training.publish(record, force=request.force)
        return _trained_document(federation, runs, record, published_now=published_now)


def _with_figures(record: RunRecord, *, going: bool) -> RunRecord:
    """Return the record of a run whose next attempt asks shops for their figures of the model."""
    if record.ended == "completed":
        raise ConfigError(f"run {record.name} is finished: figures are asked for within it")
    if going and not record.config.get("evaluate"):
        raise ConfigError(
            f"run {record.name} goes on at this moment without asking for figures: `python -m "
            f"server train --resume {record.name}` follows it, Ctrl-C there stops it, and then "
            "--evaluate counts"
        )
    return record.model_copy(update={"config": {**record.config, "evaluate": True}})


def _new(federation: Federation, request: Request, view: View) -> Planned:
    """Return a new run of plan.toml, on the current catalogue."""
    file = read_plan_file(federation.plan)
    catalogues = Catalogues(federation.catalogue)
    version = catalogues.version()
    start, number = None, None
    if request.start_from is not None:
        view.stage("reading the model to go on from")
        number, start = _start(federation, request.start_from)
    view.stage("finding the noise that the plan needs")
    asked = prepare(
        file,
        catalogues.read(version.n),
        now=int(time.time()),
        rounds=request.rounds,
        since=0 if start is None else _day(start),
    )
    view.stage("packing the code that shops must have approved")
    name, config = new_name(), dict(asked.config)
    if start is not None:
        config["initial-model"] = f"{federation.runs.name}/{name}/{_INITIAL}"
    record = RunRecord(
        name=name,
        created_at=now(),
        config=config,
        bundle=digest(build()),
        catalogue=version.fingerprint,
        started_from=number,
    )
    return Planned(record, version, asked.notes, start)


def _start(federation: Federation, which: str) -> tuple[int, ModelArtifact]:
    """Return a version's number and its model, checked."""
    if which != _SERVED and not which.isdecimal():
        raise ConfigError(f"--from {which!r} is neither a version's number nor {_SERVED}")
    record, model = Registry(federation.registry).read(None if which == _SERVED else int(which))
    return record.version, model


def _day(model: ModelArtifact) -> int:
    """Return the day that a model's plan counted ages from: what is newer, it has not seen.

    Nor has one whose rounds were all for tuning seen what they left out before that day.
    """
    plan = model.manifest.config.get("plan")
    plan = plan if isinstance(plan, dict) else {}
    tuning, rounds = plan.get("tuning_round"), plan.get("rounds")
    found = plan.get("validation_from" if tuning and tuning == rounds else "reference_time")
    if not isinstance(found, int):
        raise ArtifactError(
            f"the manifest of model {model.manifest.version} does not say when it was planned: "
            "set only_new = false in plan.toml's [training], or train without --from"
        )
    return found


def _submitted(
    federation: Federation,
    training: Training,
    record: RunRecord,
    planned: Planned | None,
    view: View,
) -> RunRecord:
    """Say what it costs and who must have approved what, and submit an attempt."""
    shops = _standing(federation)
    needed, notes = _needed(federation, record)
    if planned is not None:
        planned = replace(planned, notes=(*planned.notes, *notes))
        document = _planned_document(planned, shops)
        for line in plan_lines(document):
            view.note(line)
    else:
        view.stage("packing the code that shops must have approved")
        if (bundle := digest(build())) != record.bundle:
            view.note(
                f"The code has changed since run {record.name} began: shops must approve bundle "
                f"{bundle}."
            )
            record = record.model_copy(update={"bundle": bundle})
    by_sums = needed > read_run_config(record.config)[1].min_shops
    shops.check(needed, OF_SUMS if by_sums else MIN_SHOPS)
    if shops.missing:
        view.note(f"Not connected, and not waited for: {', '.join(shops.missing)}.")
    if planned is not None and planned.start is not None:
        # A copy of its own: the run can go on whatever becomes of the registry.
        start, place = planned.start, Runs(federation.runs).folder(record.name) / _INITIAL
        save_model(place, start.arrays, start.item_ids, start.manifest)
    view.stage(f"submitting run {record.name}")
    # The record keeps what plan.toml asked for: the next attempt may have another roster.
    return training.submit(record, {"min-shops": needed})


def _needed(federation: Federation, record: RunRecord) -> tuple[int, list[str]]:
    """Return how many shops must be connected for a run to begin, and what to know of its sums.

    Raises
    ------
    ConfigError, RunError
        If the plan's secure sums cannot come about with the shops that there are.
    """
    plan, settings = read_run_config(record.config)
    if plan.trust != "federation":
        return settings.min_shops, []
    found = members(federation)
    needed = needed_shops(found, plan, settings)
    head = (
        f"every sum takes {needed} of the {len(found.names)} shops on the roster; its digest is "
        f"{found.digest}"
    )
    return max(settings.min_shops, needed), [head, *found.notes()]


def _about_sums(federation: Federation, planned: Planned) -> list[str]:
    """Return what to know of a plan's sums, also where they cannot come about yet."""
    try:
        return _needed(federation, planned.record)[1]
    except (ConfigError, RunError) as error:
        return [f"it cannot be run yet: {error}"]


def _finished(runs: Runs, record: RunRecord) -> RunRecord:
    """Note that a run is complete whose model is made and whose end was told.

    Whatever SuperLink still knows of it, no shop needs to be asked again.
    """
    if record.ended == "completed" or not (runs.folder(record.name) / "model").exists():
        return record
    events = runs.events(record.name)
    if not events or events[-1].get("event") != "end":
        return record
    return runs.save(record.model_copy(update={"ended": "completed", "reason": ""}))


def _check_is_up(federation: Federation) -> None:
    if not is_up(federation):
        raise RunError(
            f"{federation.folder} is not up: run `python -m server up` beside this command"
        )


def _standing(federation: Federation) -> Standing:
    enrolled = [shop.name for shop in Shops(federation.shops).all()]
    return standing(enrolled, control(federation).nodes())


def _size(runs: Runs, record: RunRecord) -> int:
    path = runs.folder(record.name) / EVENTS_FILE
    return path.stat().st_size if path.exists() else 0


def _planned_document(planned: Planned, shops: Standing | None) -> Document:
    record, plan = planned.record, planned.record.plan
    return {
        "run": record.name,
        "started_from": record.started_from,
        "plan": plan.model_dump(mode="json"),
        "server": {key: value for key, value in record.config.items() if key != "plan"},
        "catalogue": {
            "version": planned.catalogue.n,
            "fingerprint": planned.catalogue.fingerprint,
            "products": planned.catalogue.products,
        },
        "bundle": record.bundle,
        "privacy": statement(plan),
        "shops": None
        if shops is None
        else {"connected": list(shops.connected), "missing": list(shops.missing)},
        "notes": list(planned.notes),
    }


def _trained_document(
    federation: Federation, runs: Runs, record: RunRecord, *, published_now: bool
) -> Document:
    registry = Registry(federation.registry)
    folder = runs.folder(record.name)
    events = runs.events(record.name)
    return {
        "run": record.name,
        "started_from": record.started_from,
        "folder": str(folder),
        "attempts": len(record.attempts),
        "catalogue": record.catalogue,
        "bundle": record.bundle,
        "exchanges": exchanges(events),
        "seconds": round(sum(float(e.get("seconds", 0.0)) for e in events), 3),
        "privacy": load_model(folder / "model").manifest.privacy,
        "model": str(folder / "model"),
        "registry": registry.where,
        "published": record.published,
        "published_now": published_now,
        "forced": list(registry.record(record.published or 0).forced),
        "served": served(registry),
    }


def exchanges(events: list[dict[str, Any]]) -> list[Document]:
    """Return the release, rounds, way home and figures, each as its last attempt did it."""
    found: dict[tuple[str, int], Document] = {}
    for event in events:
        kind, number = str(event.get("event")), int(event.get("server_round", 0))
        if kind in ("release", "round", "home", "evaluate"):
            found.pop((kind, number), None)
            found[kind, number] = {key: v for key, v in event.items() if key != "shops"}
    return list(found.values())
