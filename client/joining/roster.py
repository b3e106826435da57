"""The shop's own copy of the roster of secure sums: looked at, accepted, and read.

Whoever stands on it is believed to be a shop; what a shop adds to a sum is hidden among theirs. So
a person of the shop accepts it, after comparing its digest with the others'.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from client.joining.keys import private_key
from client.settings import SecureSumSettings, ShopSettings, secure_sum_settings
from common.disk import write_whole
from common.errors import ConfigError
from common.secure_sum.members import Roster, fingerprint, parse_members, read_members

Document = dict[str, Any]

_READABLE = 0o644


def own_key(settings: SecureSumSettings) -> ec.EllipticCurvePrivateKey:
    """Return the shop's private key, which signs what it says in sums.

    Raises
    ------
    ConfigError
        If it is missing, open to others, or of another kind.
    """
    return private_key(settings.key)


def own_roster(
    merchant_id: str, settings: SecureSumSettings, key: ec.EllipticCurvePrivateKey | None = None
) -> Roster:
    """Return the roster that the shop has accepted, with the shop itself on it.

    Parameters
    ----------
    key
        The one that will sign, where it was read already: it is what the roster must hold.

    Raises
    ------
    ConfigError
        If there is none, or the shop is not on it with its present key.
    """
    if not settings.roster.exists():
        raise ConfigError(
            f"this shop has accepted no roster ({settings.roster}): `python -m client roster "
            "SHOP.toml FILE --accept` does, with the file that the operator sends"
        )
    found = read_members(settings.roster)
    mine = own_key(settings) if key is None else key
    _check_own(found, merchant_id, mine.public_key(), settings.roster)
    return Roster.of(found.items())


def look(path: Path, settings: ShopSettings, file: Path | None) -> Document:
    """Return what a roster holds; nothing is written.

    Parameters
    ----------
    path
        Of the settings.
    file
        The roster to look at; None: the one that the shop has accepted.

    Returns
    -------
    dict
        ``shop, file, place`` (of the accepted one), ``shops`` (``shop, key, own, new``: whether the
        accepted one lacks that key), ``digest``, ``own`` (``there``, ``missing`` or ``other-key``),
        ``gone`` (shops of the accepted one that are not on this one), ``accepted`` (whether it is
        the accepted one), ``in_use`` (whether shop.toml takes part in sums).

    Raises
    ------
    ConfigError
        If it is no roster.
    """
    sums = secure_sum_settings(path, settings)
    if file is None and not sums.roster.exists():
        raise ConfigError(f"this shop has accepted no roster: there is no {sums.roster}")
    found = read_members(file or sums.roster)
    _check_names(found, file or sums.roster)
    return _document(sums, settings, file or sums.roster, found, own_key(sums).public_key())


def accept(path: Path, settings: ShopSettings, file: Path) -> Document:
    """Make a roster the shop's own, whole or not at all; return what it holds.

    Raises
    ------
    ConfigError
        If it is no roster, the shop is not on it with its own key, or it cannot be written.
    """
    sums = secure_sum_settings(path, settings)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the roster {file}: {error.strerror}") from error
    found = parse_members(content, file)
    _check_names(found, file)
    mine = own_key(sums).public_key()
    _check_own(found, settings.merchant_id, mine, file)
    document = _document(sums, settings, file, found, mine)
    try:
        write_whole(sums.roster, content, mode=_READABLE)
    except OSError as error:
        raise ConfigError(f"cannot write the roster {sums.roster}: {error.strerror}") from error
    return {**document, "accepted": True}


def _check_names(found: Mapping[str, object], file: Path) -> None:
    """Refuse names that a person can't see for what they are.

    In a terminal one of them could hide the lines of others, and so the server's own inventions. No
    operator of ours enrols such a name.
    """
    for name in found:
        if not name.isprintable():
            raise ConfigError(
                f"{file} holds a shop's name with characters that cannot be printed: {name!a}. Ask "
                "the operator which shop that is, and accept no roster that holds it"
            )


def _document(
    sums: SecureSumSettings,
    settings: ShopSettings,
    file: Path,
    found: dict[str, ec.EllipticCurvePublicKey],
    mine: ec.EllipticCurvePublicKey,
) -> Document:
    known = read_members(sums.roster) if sums.roster.exists() else {}
    keys = {name: fingerprint(key) for name, key in found.items()}
    old = {name: fingerprint(key) for name, key in known.items()}
    own = keys.get(settings.merchant_id)
    return {
        "shop": settings.merchant_id,
        "file": str(file),
        "place": str(sums.roster),
        "shops": [
            {
                "shop": name,
                "key": key,
                "own": name == settings.merchant_id,
                "new": old.get(name) != key,
            }
            for name, key in sorted(keys.items())
        ],
        "digest": Roster.of(found.items()).digest,
        "own": "missing" if own is None else "there" if own == fingerprint(mine) else "other-key",
        "gone": sorted(set(old) - set(keys)),
        "accepted": sums.roster.exists() and keys == old,  # Of an empty file, none is no other.
        "in_use": settings.secure_sum is not None,
    }


def _check_own(
    found: dict[str, ec.EllipticCurvePublicKey],
    merchant_id: str,
    mine: ec.EllipticCurvePublicKey,
    where: Path,
) -> None:
    """Refuse a roster without the shop, or with another key under its name."""
    own = found.get(merchant_id)
    if own is None:
        raise ConfigError(
            f"{where} does not name this shop, {merchant_id!r}: it could take part in no sum. Ask "
            "the operator whether it is enrolled under that name, and for a new roster"
        )
    if fingerprint(own) != fingerprint(mine):
        raise ConfigError(
            f"{where} has another key for this shop, {fingerprint(own)[:16]}... in place of "
            f"{fingerprint(mine)[:16]}...: whoever has that one could speak for it. Ask the "
            "operator what was enrolled, and for a new roster"
        )
