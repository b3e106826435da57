"""Where a long command keeps its finished parts, so that the same command goes on from them."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from common.code import code_digest
from common.errors import ConfigError, InputError
from simulations.documents import write_text

LOCK = ".lock"
_IDENTITY = "identity.json"
# What a part may depend on: the server's rules and the attackers as much as what shops run.
_CODE = ("client", "common", "server", "simulations")


def tables_of(folders: Iterable[str]) -> dict[str, object]:
    """Return what folders of tables hold, for the facts of parts that are made of them.

    A folder's name says nothing of it: what was trained on its tables belongs to none that it gets
    later. Nothing where no folder is named ("").
    """
    named = [folder for folder in dict.fromkeys(folders) if folder]
    return {"tables": {name: _digest(Path(name).expanduser()) for name in named}} if named else {}


def _digest(folder: Path) -> str:
    """Return the SHA-256 over a folder's files; what can't be read, its reader tells of."""
    whole = hashlib.sha256()
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                with path.open("rb") as file:
                    own = hashlib.file_digest(file, "sha256").hexdigest()
                whole.update(f"{path.name}\0{own}\0".encode())
    return whole.hexdigest()


def _has_parts(folder: Path) -> bool:
    """Whether any part is finished: a document beside the one that says what parts belong to."""
    return any(path.name != _IDENTITY for path in folder.glob("*.json"))


@contextmanager
def finished_parts(
    folder: Path,
    what: str,
    facts: Mapping[str, object],
    *,
    identity: str = _IDENTITY,
    out: Path | None = None,
    begun: Callable[[Path], bool] = _has_parts,
) -> Iterator[Path]:
    """Give the folder of the finished parts, ours alone while it is open.

    Parameters
    ----------
    folder
        Made where it is not there.
    what
        The command, in words of errors: ``audit``.
    facts
        Plain JSON values that parts belong to; so does all code that runs here.
    identity
        Name of the file that says what the parts belong to.
    out
        What the command was told to write into; the folder's parent, where it is not named.
    begun
        Whether the folder holds what could be gone on with: without it, what was refused or
        interrupted leaves nothing that would stand in the way of the command once it is mended.

    Raises
    ------
    ConfigError
        If it can't be written, another process writes there, or it holds parts of other facts.
    """
    out = folder.parent if out is None else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise ConfigError(f"cannot write into {out}: {error.strerror}") from error
    wanted = json.dumps({**facts, "code": code_digest(_CODE)}, sort_keys=True)
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another {what} writes into {out} at this moment") from error
        known = folder / identity
        if known.exists() and known.read_text(encoding="utf-8") != wanted:
            raise ConfigError(
                f"{folder} holds another {what}: an interrupted {what} of another experiment or "
                "code. Go on with that one by its own command and code, or remove the folder, or "
                "give another"
            )
        write_text(known, wanted)
        try:
            yield folder
        except (InputError, KeyboardInterrupt):
            if not begun(folder):
                # The folder itself may be where one stands, or a mount: what is in it goes.
                shutil.rmtree(folder, ignore_errors=True)
            raise
