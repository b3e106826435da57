"""The roster of secure sums at the operator's: written from the enrolled shops, and handed out.

Shops accept copies of it, so it changes only when the operator writes it anew, not with every shop
that is enrolled.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from rich.console import Group
from rich.text import Text

from common.disk import write_whole
from common.errors import ConfigError, RunError
from common.protocol import TrainingPlan
from common.secure_sum.members import (
    Roster,
    fingerprint,
    read_members,
    roster_text,
    threshold,
)
from common.wording import counted
from server.operating.folder import Federation
from server.operating.shops import Shops
from server.settings import RunSettings

Document = dict[str, Any]

_READABLE = 0o644


@dataclass(frozen=True)
class Members:
    """The roster as it was handed out, held against who is enrolled now.

    Attributes
    ----------
    names
        Of the shops on it.
    digest
        What people compare.
    not_on_it
        Enrolled shops that are not on it, or with another key.
    gone
        Names on it that are enrolled no more, or with another key.
    """

    names: tuple[str, ...]
    digest: str
    not_on_it: tuple[str, ...]
    gone: tuple[str, ...]

    def notes(self) -> list[str]:
        """Return who could be in sums and is not, as sentences."""
        found = []
        if self.not_on_it:
            found.append(
                f"not on the roster, and in no sum: {', '.join(self.not_on_it)}; `python -m server "
                "roster` writes a new one, which every shop has to accept"
            )
        if self.gone:
            found.append(
                f"on the roster and enrolled no more: {', '.join(self.gone)}; sums count them as "
                "dropped out"
            )
        return found


def write_roster(federation: Federation, out: Path | None = None) -> Document:
    """Write the roster of the enrolled shops; return what it holds, and what changed.

    Parameters
    ----------
    out
        Another place for a copy.

    Raises
    ------
    ConfigError
        If no shop is enrolled, or a file cannot be written.
    """
    shops = Shops(federation.shops).all()
    if not shops:
        raise ConfigError("no shop is enrolled: `python -m server enrol SHOP KEY.pub` adds one")
    pairs = [(shop.name, shop.key) for shop in shops]
    text = roster_text(pairs).encode()
    place = federation.roster
    before, damage = _before(place)
    old = {name: fingerprint(key) for name, key in before.items()}
    new = {shop.name: shop.fingerprint for shop in shops}
    try:
        # The one that counts comes last: until then, saying it again is the same.
        for path in (*([] if out is None else [out]), place):
            if not path.exists() or path.read_bytes() != text:
                write_whole(path, text, mode=_READABLE)
    except OSError as error:
        raise ConfigError(f"cannot write the roster {path}: {error.strerror}") from error
    return {
        "roster": str(place),
        "copy": None if out is None else str(out),
        "digest": Roster.of(pairs).digest,
        "shops": [{"shop": shop.name, "key": shop.fingerprint} for shop in shops],
        "damage": damage,
        "new": not before,
        "added": sorted(name for name in new if old.get(name) != new[name]),
        "gone": sorted(name for name in old if old[name] != new.get(name)),
    }


def _before(place: Path) -> tuple[dict[str, EllipticCurvePublicKey], str]:
    """Return what the roster to be replaced holds, and what keeps that unknown."""
    try:
        return (read_members(place) if place.exists() else {}), ""
    except ConfigError as error:
        return {}, str(error)


def handed_out(federation: Federation) -> dict[str, EllipticCurvePublicKey]:
    """Return the keys on the roster that was handed out; none where there is none.

    Raises
    ------
    ConfigError
        If it is damaged.
    """
    found, damage = _before(federation.roster)
    if damage:
        raise ConfigError(
            f"{damage}. Put back the one that the shops have, or write a new one (`python -m "
            "server roster`), which every shop has to accept unless its digest is the old one's"
        )
    return found


def members(federation: Federation) -> Members:
    """Return the roster that was handed out.

    Raises
    ------
    ConfigError
        If there is none, or it is not valid.
    """
    place = federation.roster
    if not place.exists():
        raise ConfigError(
            'trust = "federation" needs a roster: `python -m server roster` writes it, and every '
            "shop accepts a copy (`python -m client roster`)"
        )
    found = handed_out(federation)
    enrolled = {shop.name: shop.fingerprint for shop in Shops(federation.shops).all()}
    listed = {name: fingerprint(key) for name, key in found.items()}
    return Members(
        names=tuple(sorted(listed)),
        digest=Roster.of(found.items()).digest,
        not_on_it=tuple(name for name, key in enrolled.items() if listed.get(name) != key),
        gone=tuple(sorted(name for name, key in listed.items() if enrolled.get(name) != key)),
    )


def needed_shops(found: Members, plan: TrainingPlan, settings: RunSettings) -> int:
    """Return how many shops must be there at the end of every sum of a plan.

    Raises
    ------
    RunError
        If so many shops are not enrolled.
    ConfigError
        If the settings ask too few of them.
    """
    there = len(found.names) - len(found.gone)
    least = plan.honest_shops + plan.colluding_shops
    if least > there:
        raise RunError(
            f"honest_shops = {plan.honest_shops} and colluding_shops = {plan.colluding_shops} take "
            f"{least} shops, and {there} of the roster are enrolled: enrol more and hand out a new "
            "roster (`python -m server roster`), or ask for fewer in plan.toml's [privacy]"
        )
    needed = threshold(len(found.names), plan.honest_shops, plan.colluding_shops)
    if needed > there:
        raise RunError(
            f"every sum takes {needed} of the {len(found.names)} shops on the roster, and "
            f"{', '.join(found.gone)} are enrolled no more: hand out a new roster (`python -m "
            "server roster`)"
        )
    asked = settings.asked_of(there)
    if asked < needed:
        raise ConfigError(
            f"server.clients_per_round = {settings.clients_per_round:g} asks {asked} of {there} "
            f"shops in a round, and every sum takes {needed}: set it to 1"
        )
    return needed


def roster_table(document: Document) -> Group:
    """Return what ``roster`` says."""
    lines = [f"{one['key'][:16]}... {one['shop']}" for one in document["shops"]]
    lines.append(f"{counted(len(lines), 'shop')} in {document['roster']}")
    if document["copy"]:
        lines.append(f"a copy in {document['copy']}")
    lines.append(f"digest {document['digest']}")
    if document["damage"]:
        lines.append(f"The one that was there could not be read: {document['damage']}")
    changed = list(dict.fromkeys([*document["added"], *document["gone"]]))
    if changed and not document["new"]:
        lines.append(f"changed: {', '.join(changed)}")
    if changed:
        lines.append(
            "Give every shop the file; they accept it with `python -m client roster SHOP.toml FILE "
            "--accept`. Read the digest to each other by telephone, not over this server."
        )
    else:
        lines.append("as it was: no shop need do anything")
    return Group(*(Text(line) for line in lines))
