"""``status``: what runs, who is connected, what was trained, and what is served.

Each part is looked at by itself: one that cannot be read says so, and hides no other.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import FedtailError
from server.catalogue.versions import Catalogues
from server.operating import authority
from server.operating.folder import Federation
from server.operating.services import control, is_up, read_up
from server.operating.shops import Shops
from server.operating.tables import listening
from server.registry.records import read_evaluation
from server.registry.versions import Registry
from server.settings import EVALUATION_FILE
from server.training.codes import left_out, shop_names
from server.training.records import RunRecord, Runs
from server.training.request import exchanges

Document = dict[str, Any]


def status(federation: Federation) -> Document:
    """Return all that an operator wants to see at a glance, as plain JSON values.

    Returns
    -------
    dict
        ``federation, folder, address, up``; ``programs`` and ``listeners`` (empty while not up);
        ``shops``, ``catalogue``, ``run`` (the last one), ``registry``, ``certificates``. A part
        that cannot be read is ``{"error": ...}``.
    """
    running = is_up(federation)
    return {
        "federation": federation.settings.name,
        "folder": str(federation.folder),
        "address": federation.settings.address,
        "up": running,
        "programs": read_up(federation).get("programs", {}),
        "listeners": _or_error(lambda: listening(federation)["listeners"]) if running else [],
        "shops": _or_error(lambda: _shops(federation, running=running)),
        "catalogue": _or_error(lambda: _catalogue(federation)),
        "run": _or_error(lambda: _last_run(federation, running=running)),
        "registry": _or_error(lambda: _registry(federation)),
        "certificates": _or_error(lambda: _certificates(federation)),
    }


def _or_error(look: Callable[[], Any]) -> Any:  # noqa: ANN401 - a JSON value
    try:
        return look()
    except FedtailError as error:
        return {"error": str(error)}
    except OSError as error:
        # Such as a file of another user's, as a container may leave it.
        named = error.filename is not None
        return {"error": f"cannot read {error.filename}: {error.strerror}" if named else str(error)}


def _shops(federation: Federation, *, running: bool) -> list[Document]:
    """Return the enrolled shops; ``status`` and ``changed_at`` are null while nobody can tell."""
    nodes = {n.public_key: n for n in control(federation).nodes()} if running else {}
    found = []
    for shop in Shops(federation.shops).all():
        node = nodes.get(shop.pem)
        found.append(
            {
                "shop": shop.name,
                "status": None if node is None else node.status,
                "changed_at": None if node is None else node.changed_at or None,
            }
        )
    return found


def _catalogue(federation: Federation) -> Document | None:
    last = Catalogues(federation.catalogue).last()
    return None if last is None else last.model_dump(mode="json")


def _last_run(federation: Federation, *, running: bool) -> Document | None:
    runs = Runs(federation.runs)
    record = runs.last()
    if record is None:
        return None
    events = runs.events(record.name)
    done = exchanges(events)
    figures = runs.folder(record.name) / EVALUATION_FILE
    return {
        "run": record.name,
        "created_at": record.created_at,
        "state": _state(federation, record, running=running),
        "reason": record.reason or None,
        "trust": record.plan.trust,
        "sums": _sums(federation, record, events),
        "rounds": record.plan.rounds,
        "rounds_done": _rounds_done(events),
        "exchanges": done,
        "attempts": len(record.attempts),
        "bundle": record.bundle,
        "catalogue": record.catalogue,
        "published": record.published,
        "evaluation": _figures(federation, figures) if figures.exists() else None,
    }


def _rounds_done(events: list[Document]) -> int:
    """Return the last round that is known to be done.

    An attempt that is killed between a round's checkpoint and its event tells nothing of the round:
    the next one does, which starts after it, or before it where the checkpoint was lost.
    """
    told = [e for e in events if e.get("event") in ("start", "round", "end")]
    return int(told[-1].get("server_round", 0)) if told else 0


def _sums(federation: Federation, record: RunRecord, events: list[Document]) -> Document | None:
    """Return what a run's secure sums take, how many shops were in each, and who was left out.

    None without any.
    """
    plan = record.plan
    if plan.trust != "federation":
        return None
    names = shop_names([shop.name for shop in Shops(federation.shops).all()])
    done = exchanges(events)
    return {
        "honest_shops": plan.honest_shops,
        "colluding_shops": plan.colluding_shops,
        "survivors": [e["accepted"] for e in done if e["event"] in ("release", "round")],
        "left_out": left_out(events, names),
    }


def _figures(federation: Federation, path: Path) -> Document:
    """Return what shops released of a run's model, under the names they are enrolled by."""
    names = shop_names([shop.name for shop in Shops(federation.shops).all()])
    found = read_evaluation(path)
    shops = found.get("shops", {})
    return {**found, "shops": {names.get(key, key[:12]): said for key, said in shops.items()}}


def _state(federation: Federation, record: RunRecord, *, running: bool) -> str:
    """Return how a run stands: Flower's word while its last attempt is not known to have ended."""
    if record.ended:
        return record.ended
    if not record.attempts:
        return "not submitted"
    if not running:
        return "unknown: SuperLink is not up"
    return control(federation).status(record.attempts[-1])


def _registry(federation: Federation) -> Document:
    registry = Registry(federation.registry)
    versions, pins = registry.versions(), registry.pins()
    return {
        "where": registry.where,
        "versions": len(versions),
        "served": registry.served() if versions else None,
        "pinned": bool(pins) and registry.decision(pins[-1]).version is not None,
    }


def _certificates(federation: Federation) -> list[Document]:
    pairs = (federation.authority, federation.gateway, federation.superlink)
    now = authority.now()
    found = []
    for path in (pair.certificate for pair in pairs):
        until = authority.expiry(path)
        found.append(
            {"file": str(path), "until": until.isoformat(), "days_left": (until - now).days}
        )
    return found
