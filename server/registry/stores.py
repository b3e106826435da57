"""Where a registry lies: a folder, or any location that fsspec knows by its URL.

Both give the registry the two promises that it is built on. ``put`` returns when a file is whole
and safe. ``create`` writes a small file whole or not at all, and of several callers with the same
name exactly one succeeds.
"""

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

from common.disk import sync
from common.errors import ConfigError

_CHUNK = 1 << 20


class Store(Protocol):
    """Named files; names are relative, with ``/`` between folders."""

    def put(self, source: Path, name: str) -> None:
        """Copy a file to ``name``; nobody else writes there."""

    def create(self, name: str, data: bytes) -> None:
        """Write a new file in one step.

        Raises
        ------
        FileExistsError
            If somebody was first.
        """

    def read(self, name: str) -> bytes:
        """Return a file's content."""

    def names(self, folder: str) -> list[str]:
        """Return what a folder holds; nothing where there is no such folder."""

    def local(self, folder: str, files: Sequence[str]) -> AbstractContextManager[Path]:
        """Hold a folder's files on this machine while the context lasts."""

    def remove(self, folder: str) -> None:
        """Remove a folder with all it holds."""


def open_store(where: str) -> Store:
    """Return the store at a path or URL.

    Raises
    ------
    ConfigError
        If nothing here reads that kind of URL.
    """
    if "://" not in where:
        return FolderStore(Path(where))
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    try:
        filesystem, path = url_to_fs(where)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"cannot use {without_secrets(where)}: {error}") from error
    if isinstance(filesystem, LocalFileSystem):
        return FolderStore(Path(path))
    return UrlStore(filesystem, path)


def without_secrets(where: str) -> str:
    """Return a location without the user and password that a URL may hold."""
    return re.sub(r"://[^/]*@", "://", where)


class FolderStore:
    """A folder on a disk, or on a network file system with hard links."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, source: Path, name: str) -> None:
        """Copy a file and sync it, with the folders that lead to it."""
        target = self._root / name
        self._make(target.parent)
        with source.open("rb") as reader, target.open("wb") as writer:
            shutil.copyfileobj(reader, writer, _CHUNK)
            writer.flush()
            os.fsync(writer.fileno())
        self._sync(target.parent)

    def create(self, name: str, data: bytes) -> None:
        """Write beside, then link: a rename would replace what another process wrote first."""
        target = self._root / name
        self._make(target.parent)
        beside = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            target.hardlink_to(beside)
        finally:
            beside.unlink(missing_ok=True)
        self._sync(target.parent)

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        return (self._root / name).read_bytes()

    def names(self, folder: str) -> list[str]:
        """Return what a folder holds."""
        try:
            return [path.name for path in (self._root / folder).iterdir()]
        except FileNotFoundError:
            return []

    def local(self, folder: str, files: Sequence[str]) -> AbstractContextManager[Path]:  # noqa: ARG002
        """Return the folder itself: its files are here already."""
        return nullcontext(self._root / folder)

    def remove(self, folder: str) -> None:
        """Remove a folder with all it holds."""
        shutil.rmtree(self._root / folder)

    def _make(self, folder: Path) -> None:
        # A registry that is new is itself a name in the folder that holds it.
        above = [path.parent for path in (self._root, *self._root.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in above:
            sync(path)

    def _sync(self, folder: Path) -> None:
        # A new folder is lost in a power cut until the one that holds it is synced too.
        for path in (folder, *folder.parents):
            sync(path)
            if path == self._root:
                return


class UrlStore:
    """Any other location, by fsspec.

    ``create`` asks for a write that fails where the name is taken. Object stores do that in one
    step. A service that cannot (plain FTP) looks first and writes then: there, let one process
    publish at a time.
    """

    def __init__(self, filesystem: Any, root: str) -> None:  # noqa: ANN401 - fsspec has no types
        self._fs = filesystem
        self._root = root.rstrip("/")

    def put(self, source: Path, name: str) -> None:
        """Upload a file."""
        with _service():
            self._fs.makedirs(self._path(name).rsplit("/", 1)[0], exist_ok=True)
            self._fs.put_file(str(source), self._path(name))

    def create(self, name: str, data: bytes) -> None:
        """Write a new file, and read it back: whoever finds another's there came second.

        A client that tries again after a lost answer is told that the name is taken, by itself.
        """
        path = self._path(name)
        with _service():
            self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            with suppress(FileExistsError):
                self._fs.pipe_file(path, data, mode="create")
        if self.read(name) != data:
            raise FileExistsError(path)

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        with _service():
            return bytes(self._fs.cat_file(self._path(name)))

    def names(self, folder: str) -> list[str]:
        """Return what a folder holds, as the service itself says now."""
        try:
            with _service():
                self._fs.invalidate_cache()
                found = self._fs.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return [str(path).rstrip("/").rsplit("/", 1)[-1] for path in found]

    @contextmanager
    def local(self, folder: str, files: Sequence[str]) -> Iterator[Path]:
        """Hold copies in a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="fedtail-") as temporary:
            with _service():
                for name in files:
                    self._fs.get_file(self._path(f"{folder}/{name}"), str(Path(temporary) / name))
            yield Path(temporary)

    def remove(self, folder: str) -> None:
        """Remove a folder with all it holds."""
        with _service():
            self._fs.rm(self._path(folder), recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


@contextmanager
def _service() -> Iterator[None]:
    """Make one kind of error of each service's own: wrong credentials, a host that is down."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
