"""What every file that must last needs: to be written whole, on the disk, and its digest."""

import hashlib
import os
import tempfile
from pathlib import Path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits, whatever its size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Return when a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file that is there whole or as it was, and on the disk when this returns.

    From its first byte on, nobody reads it whom ``mode`` does not name.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left of it then.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(mode)
        draft.replace(path)
        # A rename is lost in a power cut until its folder is synced too.
        sync(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
