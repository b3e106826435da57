"""A shop's adaptation on disk: its own state, for its owner's eyes alone, checked before use.

::

    adapted/                    mode 0700
    ├── current                 the name of the newest
    └── 20261124T171500.123456/
        ├── state.safetensors   EASE, the shop's own popularity and products, content
        └── adapted.json        what it was fitted on, and the SHA-256 of the other

An adaptation is written into a folder of its own and then named by ``current``: a reader, or a
power cut, meets the old one or the new one, never half of either.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from client.home.adaptation import AdaptedFacts, arrays_of, with_parts
from client.home.ease import Ease
from client.home.personalization import HomeModel
from common.artifact import save_arrays
from common.code import code_digest
from common.disk import sha256, sync
from common.errors import ArtifactError
from common.protocol import Arrays

STATE, FACTS, CURRENT = "state.safetensors", "adapted.json", "current"
_KEPT = 2
_DRAFT = ".draft-"


def save_adapted(folder: Path, home: HomeModel, facts: AdaptedFacts) -> AdaptedFacts:
    """Write an adaptation whole or not at all, and let ``current`` name it.

    Parameters
    ----------
    folder
        The shop's ``adapted``; made where it is missing. The one before stays too, for whoever is
        reading it; older ones go.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    with alone(folder):
        _sweep(folder)
        try:
            return _write(folder, home, facts)
        finally:
            _sweep(folder)


def _write(folder: Path, home: HomeModel, facts: AdaptedFacts) -> AdaptedFacts:
    eases = {name: part for name, part in home.eases.items() if isinstance(part, Ease)}
    draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=folder))
    save_arrays(draft / STATE, arrays_of(home, eases))
    facts = with_parts(facts, home, eases)
    facts = facts.model_copy(update={"state_digest": sha256(draft / STATE)})
    (draft / FACTS).write_text(facts.model_dump_json(indent=2), encoding="utf-8")
    for path in (draft / STATE, draft / FACTS):
        path.chmod(0o600)
        sync(path)
    sync(draft)
    name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    draft.rename(folder / name)
    pointer = folder / f"{_DRAFT}{CURRENT}"
    pointer.write_text(name, encoding="utf-8")
    pointer.chmod(0o600)
    sync(pointer)
    pointer.replace(folder / CURRENT)
    sync(folder)
    return facts


def read_facts(folder: Path) -> tuple[Path, AdaptedFacts] | None:
    """Return the newest adaptation's folder and facts; None where the shop has none.

    Raises
    ------
    ArtifactError
        If it is there and cannot be read.
    """
    name = _current(folder)
    if name is None:
        return None
    if not name:
        raise _unusable(folder / CURRENT, "it names no adaptation")
    path = folder / name / FACTS
    try:
        return folder / name, AdaptedFacts.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _unusable(path, "it is missing or damaged, or of another version") from error


def newest_files(folder: Path) -> list[Path]:
    """Return the files that the newest adaptation is made of; there may be none of them."""
    name = _current(folder)
    return [folder / CURRENT, *(folder / name / part for part in (STATE, FACTS) if name)]


def read_state(folder: Path, facts: AdaptedFacts) -> Arrays:
    """Return the arrays of an adaptation, checked against its facts.

    Raises
    ------
    ArtifactError
        If they are damaged, or were fitted by other code.
    """
    if facts.code_digest != code_digest():
        raise ArtifactError(
            f"{folder}: it was fitted by another version of this code; make it anew with python -m "
            "client adapt, or, where that was done, start this service again"
        )
    try:
        if sha256(folder / STATE) != facts.state_digest:
            raise _unusable(folder / STATE, "it is damaged: its SHA-256 is not what was written")
        arrays: Arrays = load_file(folder / STATE)
    except (OSError, SafetensorError) as error:
        raise _unusable(folder / STATE, "it is missing or damaged") from error
    return arrays


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 over the names and contents of the files in a folder."""
    digest = hashlib.sha256()
    try:
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            digest.update(f"{path.name}:{sha256(path)}\n".encode())
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _sweep(folder: Path) -> None:
    """Delete what an interrupted adaptation left, and all but the newest ones."""
    for path in folder.glob(f"{_DRAFT}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    whole = sorted(path for path in folder.iterdir() if path.is_dir())
    current = _current(folder)
    for path in whole[:-_KEPT]:
        if path.name != current:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that drafts and links in it are one's own."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _current(folder: Path) -> str | None:
    try:
        name = (folder / CURRENT).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        return ""
    return name if Path(name).name == name else ""


def _unusable(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path}: {why}; make it anew with python -m client adapt")
