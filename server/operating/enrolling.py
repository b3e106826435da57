"""Enrolling and removing shops: the folder first, then a running SuperLink."""

import logging
from pathlib import Path
from typing import Any

from common.errors import RunError
from server.operating.folder import Federation
from server.operating.services import control, is_up
from server.operating.shops import Shop, Shops, reconcile

logger = logging.getLogger(__name__)


def enrol(federation: Federation, name: str, key_file: Path) -> dict[str, Any]:
    """Add a shop; return what was done."""
    shop = Shops(federation.shops).enrol(name, key_file)
    return _done(federation, shop, "enrolled")


def remove(federation: Federation, name: str) -> dict[str, Any]:
    """Take a shop off the list; return what was done."""
    return _done(federation, Shops(federation.shops).remove(name), "removed")


def listed(federation: Federation, *, tell: bool = False) -> dict[str, Any]:
    """Return the enrolled shops; ``status`` is None while SuperLink is not up.

    Parameters
    ----------
    tell
        Tell SuperLink first what it missed; an error if it is not up.
    """
    running = is_up(federation)
    if tell:
        reconcile(Shops(federation.shops), control(federation))
    nodes = {n.public_key: n for n in control(federation).nodes()} if running else {}
    shops = [
        {
            "shop": shop.name,
            "key": shop.fingerprint,
            "status": nodes[shop.pem].status if shop.pem in nodes else None,
        }
        for shop in Shops(federation.shops).all()
    ]
    return {"federation": federation.settings.name, "up": running, "shops": shops}


def _done(federation: Federation, shop: Shop, what: str) -> dict[str, Any]:
    told = False
    if is_up(federation):
        try:
            told = shop.name not in reconcile(Shops(federation.shops), control(federation))
        except RunError as error:
            # The list is what counts: SuperLink is told when it starts again.
            logger.warning("shop=%r event=not_told reason=%s", shop.name, error)
    return {"shop": shop.name, "key": shop.fingerprint, "done": what, "superlink_told": told}
