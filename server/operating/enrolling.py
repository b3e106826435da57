"""Enrolling, renaming and removing shops: the folder first, then a running SuperLink."""

import logging
from pathlib import Path
from typing import Any

from common.errors import ConfigError, RunError
from common.protocol import NO_FINGERPRINT, shop_key
from common.secure_sum.members import fingerprint
from server.operating.folder import Federation
from server.operating.services import control, is_up
from server.operating.shops import Shop, Shops, reconcile
from server.operating.sum_roster import handed_out
from server.rounds.heads import LedgerHeads
from server.settings import read_home
from server.variables import SERVER_VARIABLE

logger = logging.getLogger(__name__)


def enrol(federation: Federation, name: str, key_file: Path) -> dict[str, Any]:
    """Add a shop; return what was done."""
    shop = Shops(federation.shops).enrol(name, key_file)
    return _done(federation, shop, "enrolled")


def rename(federation: Federation, name: str, to: str) -> dict[str, Any]:
    """Correct the name of a shop that nobody was told of yet; return what was done.

    Raises
    ------
    ConfigError
        If the shop took part under that name, its key was handed out with it, or as
        :meth:`Shops.rename`.
    """
    _check_nobody_knows(federation, name)
    done = _done(federation, Shops(federation.shops).rename(name, to), "renamed")
    return {**done, "before": name}


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


def _check_nobody_knows(federation: Federation, name: str) -> None:
    """Refuse where somebody else holds a shop's key under this name: it would be two shops'."""
    new_key = (
        "`python -m server remove` it, and let the shop make a new key (`python -m client key new "
        "SHOP.toml`)"
    )
    heads = read_home({SERVER_VARIABLE: str(federation.folder)}).heads_file
    if heads.exists() and LedgerHeads(heads).of(shop_key(name)) != NO_FINGERPRINT:
        # Under another name a ledger that forgets what was spent would pass.
        raise ConfigError(f"{name!r} took part in a run under that name: {new_key}")
    listed = {fingerprint(key) for key in handed_out(federation).values()}
    for shop in Shops(federation.shops).all():
        if shop.name == name and shop.fingerprint in listed:
            raise ConfigError(f"the key of {name!r} is on the roster of secure sums: {new_key}")
