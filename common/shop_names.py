"""What a shop may be called: the merchant_id of its data, and a file's name at the operator's."""

from urllib.parse import quote

from common.errors import ConfigError

# Of 255, for while it is written it has ten characters more (:func:`common.disk.write_whole`), and
# its ending has four.
_LONGEST = 241


def file_stem(name: str) -> str:
    """Return a shop's name as that of a file, percent-encoded.

    Raises
    ------
    ConfigError
        If no shop can be enrolled under it.
    """
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise ConfigError(
            f"{name!r} cannot be a shop's name: give the merchant_id that its data bears, of "
            "characters that can be printed, without blanks around it"
        )
    if len(stem := quote(name, safe=" ").replace(".", "%2E")) > _LONGEST:
        raise ConfigError(f"{name[:40]!r}... is too long for a shop's name")
    return stem
