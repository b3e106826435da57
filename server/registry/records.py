"""What a registry writes of a model and of what is served, and what may be published."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator

from common.artifact import ITEMS, MANIFEST, MODEL, Manifest
from common.errors import ArtifactError, ConfigError
from common.protocol import Frozen

FILES: Final = (MODEL, ITEMS, MANIFEST)
#: When its publishing began, and a token of its own.
FOLDER_NAME = "^[0-9TZ]{16}-[0-9a-f]+$"
Act = Literal["pin", "roll back", "follow newest"]
#: What a privacy statement cannot do without: see common.statement.
_PROMISE = ("epsilon", "delta", "unit", "trust", "accountant", "mechanisms", "not_covered")


class Record(Frozen):
    """What ``versions/<n>.json`` says of one version.

    Attributes
    ----------
    forced
        Why this model could not be published without force; empty for one that needed none.
    """

    format_version: Literal[1] = 1
    version: int = Field(ge=1)
    published_at: str
    folder: str = Field(pattern=FOLDER_NAME)
    files: dict[str, str]
    manifest: Manifest
    evaluation: dict[str, Any] | None
    forced: tuple[str, ...]

    @field_validator("files")
    @classmethod
    def _names_the_files(cls, files: dict[str, str]) -> dict[str, str]:
        if set(files) != set(FILES):
            raise ValueError(f"a model has the files {', '.join(FILES)}")
        return files


class Pin(Frozen):
    """One decision about what is served.

    Attributes
    ----------
    version
        The version served from now on; None: whichever is newest.
    before
        The version served until now; None where the decision before is damaged.
    """

    format_version: Literal[1] = 1
    number: int = Field(ge=1)
    at: str
    act: Act
    version: int | None
    before: int | None


Sealed = TypeVar("Sealed", Record, Pin)


def objections(privacy: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return why a model with this privacy statement may not be published without force."""
    if not privacy:
        return ("it has no privacy statement",)
    if privacy.get("private") is not True:
        return ("it was trained without differential privacy",)
    found = []
    bound = privacy.get("epsilon")
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 <= bound < math.inf:
        found.append(f"its privacy statement gives no bound (epsilon is {json.dumps(bound)})")
    delta = privacy.get("delta", 0.0)
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 <= delta < 1:
        found.append(f"its privacy statement gives no bound (delta is {json.dumps(delta)})")
    if privacy.get("noise") == "seeded":
        found.append("its noise was seeded: whoever knows the seed can take the noise off")
    elif privacy.get("noise") != "system":
        found.append("its privacy statement does not say where the noise came from")
    if missing := [name for name in _PROMISE if name not in privacy]:
        found.append(f"its privacy statement lacks {', '.join(missing)}")
    return tuple(found)


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read the evaluation to release with a model: a JSON object of finite numbers.

    Raises
    ------
    ConfigError
        If it is anything else.
    """

    def finite(number: str) -> float:
        # As JSON, 1e999 is a number; as a float it is none, and null in the record.
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number} is no JSON number that is finite")
        return value

    try:
        document = json.loads(path.read_bytes(), parse_constant=finite, parse_float=finite)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold one JSON object, not a {type(document).__name__}")
    return document


def seal(content: Record | Pin) -> bytes:
    """Return a file that cannot lose or change a byte unnoticed: one rendering, with its digest."""
    values = content.model_dump(mode="json")
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return json.dumps({"content": values, "sha256": digest}, indent=1, sort_keys=True).encode()


def unseal(kind: type[Sealed], data: bytes, name: str) -> Sealed:
    """Return what :func:`seal` wrote.

    Raises
    ------
    ArtifactError
        If a byte of it has changed.
    """
    try:
        found = kind.model_validate(json.loads(data)["content"])
        whole = seal(found) == data
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        advice = "pin a version anew" if kind is Pin else "serve another version"
        raise ArtifactError(f"{name} is not as it was written: {advice}")
    return found
