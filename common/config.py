"""Frozen typed configuration from TOML: an unknown key names the nearest known one."""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from common.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
#: Pydantic's words name Python's types; these are TOML's.
_PLAIN = {
    "tuple_type": 'Input should be a list, such as ["one", "another"]',
    "dict_type": "Input should be a section of keys",
    "model_type": "Input should be a section of keys",
}
#: What Flower takes as a value of a run's config.
ConfigValue = bool | int | float | str


def read_toml(path: Path) -> dict[str, Any]:
    """Return the values of a TOML file.

    Raises
    ------
    ConfigError
        If it cannot be read or is not TOML.
    """
    try:
        # Some editors write a byte order mark first, which nobody sees.
        values: dict[str, Any] = _plain(tomllib.loads(path.read_text(encoding="utf-8-sig")))
        return values
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # A number of 5,000 digits, or lists in lists.
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def parse(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Return ``values`` as ``model``.

    Raises
    ------
    ConfigError
        Naming the key as it is written, what is wrong with it, and the nearest known key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_words(model, e, where) for e in error.errors()[:3])) from error


def with_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the values with ``section.key=value`` overrides; a value is TOML, or plain text.

    A key that holds a dot stands in quotes, as in TOML: ``privacy.caps."st. mary"=2``.

    Raises
    ------
    ConfigError
        If an override is not of that form.
    """
    result: dict[str, Any] = _plain(values)
    for text in overrides:
        path, equals, raw = text.partition("=")
        names = _names(path)
        if not equals or len(names) < 2 or not all(names):
            raise ConfigError(f"--set {text!r} is not of the form section.key=value")
        place = result
        for name in names[:-1]:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {text!r}: {name!r} is a value, not a section")
        place[names[-1]] = _value(raw.strip())
    return result


def flat_toml(values: Mapping[str, ConfigValue]) -> str:
    """Return flat TOML."""
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in values.items())


def toml_value(value: ConfigValue) -> str:
    """Return a scalar, or a key that is no bare one, as TOML writes it.

    JSON's scalars are TOML's but for two: JSON leaves U+007F bare, which TOML refuses, and can only
    escape what lies beyond U+FFFF as two surrogates. What can be read is written as it is: whoever
    compares a name with the data sees no escapes.
    """
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in text)


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a hint that names the closest known word, or all of them."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else f"known are: {', '.join(sorted(known))}"


def _plain(value: Any) -> Any:  # noqa: ANN401 - a TOML value
    """Return a copy of a TOML value that JSON knows: dates and times as ISO 8601 text."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, str) and "\0" in value:
        # Of a path the system says so by an error that nobody expects.
        raise tomllib.TOMLDecodeError("a text holds the character NUL")
    return value.isoformat() if isinstance(value, date | time) else value


def _names(path: str) -> list[str]:
    """Return the parts of a dotted key; with quotes in it, it is TOML's."""
    names = [name.strip() for name in path.split(".")]
    if '"' not in path and "'" not in path:
        return names
    quoted: list[str] = []
    try:
        place = tomllib.loads(f"{path} = 0")
        while isinstance(place, dict):
            ((name, place),) = place.items()
            quoted.append(name)
    except ValueError:
        return names  # An apostrophe of a name, or more than one key.
    return quoted


def _value(raw: str) -> Any:  # noqa: ANN401 - a TOML value
    try:
        return _plain(tomllib.loads(f"value = {raw}")["value"])
    except (ValueError, RecursionError):
        return raw


def _words(model: type[BaseModel], error: Any, where: str) -> str:  # noqa: ANN401 - pydantic's
    names = [str(part) for part in error["loc"]]
    path = ".".join(names) or "the whole"
    if error["type"] != "extra_forbidden":
        # Of what is wrong with a section as a whole, its keys tell nothing that the words do not.
        a_section = error["type"] == "value_error" and isinstance(error["input"], Mapping)
        given = "" if error["type"] == "missing" or a_section else f" (got {error['input']!r})"
        words = _PLAIN.get(error["type"], error["msg"].removeprefix("Value error, "))
        return f"{where}: {path}: {words}{given}"
    return f"{where}: unknown key {path!r}; {nearest(names[-1], _fields(model, names[:-1]))}"


def _fields(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the keys that are known at a path into nested models."""
    for name in path:
        if name.isdigit():  # One of a list, whose model is known already.
            continue
        kind = next(
            (f.annotation for key, f in model.model_fields.items() if name in (key, f.alias)), None
        )
        inner = next((k for k in (kind, *get_args(kind)) if _is_model(k)), None)
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _is_model(kind: Any) -> TypeGuard[type[BaseModel]]:  # noqa: ANN401 - an annotation
    return isinstance(kind, type) and issubclass(kind, BaseModel)
