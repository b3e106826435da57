"""Which model a shop's own service answers from: it follows what comes home and what is adapted.

Something damaged, or that no longer fits together, changes nothing: the service goes on with what
it has, and says so once.
"""

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.home.adapted_state import newest_files
from client.home.answers import HomeAnswers
from client.home.recommending import get_ready
from client.settings import ShopSettings, read_settings
from client.shop_folder import CURRENT, ShopFolder
from common.artifact import MANIFEST, Manifest
from common.errors import ConfigError, DataError, FedtailError
from common.programs.watching import Watch
from common.tables.folders import find_table

logger = logging.getLogger(__name__)

_Stamp = frozenset[tuple[str, int, int, int]]


@dataclass(frozen=True)
class HomeRecord:
    """What is known of a model that came home.

    Attributes
    ----------
    version
        Its number in the order of arrival.
    published_at
        When it came; ISO 8601.
    """

    version: int
    published_at: str
    manifest: Manifest
    folder: Path
    evaluation: dict[str, Any] | None = None
    forced: tuple[str, ...] = ()


@dataclass
class HomeHost:
    """Holds what the shop answers from; a request takes it once and keeps it to its end.

    Parameters
    ----------
    path
        Of the shop's settings.
    """

    path: Path
    switches: int = 0
    refusals: int = 0
    _current: HomeAnswers | None = None
    _seen: _Stamp = frozenset()
    _refused: str = ""
    _watch: Watch | None = field(default=None, repr=False)

    @property
    def ready(self) -> bool:
        """Whether there is a model to answer from."""
        return self._current is not None

    @property
    def refused(self) -> str:
        """Why what lies there now is not used; empty where it is."""
        return self._refused

    def current(self) -> HomeAnswers:
        """Return what answers now.

        Raises
        ------
        ConfigError
            If there is no model yet.
        """
        answers = self._current
        if answers is None:
            raise ConfigError(f"the shop of {self.path} has no model to answer from yet")
        return answers

    def refresh(self) -> None:
        """Look once, and switch if the settings, the catalogue, a model or the adaptation changed.

        All that is read is checked first; the rest of it stays as it was read.
        """
        try:
            settings = read_settings(self.path)
            # Before anything is read: what changes meanwhile is seen at the next look.
            seen = _stamp(self.path, settings, self._used())
            if seen == self._seen:
                return
            self._seen = seen
            ready = get_ready(self.path, settings)
            found = _came_home(settings, ready.came.folder)
            version = next(r.version for r in found if r.folder == ready.came.folder)
            self._current = HomeAnswers.of(version, ready, settings)
            self.switches += 1
            self._refused = ""
            logger.info(
                "model=switched version=%d name=%s adapted=%s",
                version,
                ready.came.manifest.version,
                ready.fitted_at or "no",
            )
        except FedtailError as error:
            if isinstance(error, DataError) or isinstance(error.__cause__, OSError):
                # A database, or a disk, may answer again, and no file tells that it does.
                self._seen = frozenset()
            if str(error) != self._refused:
                self._refused = str(error)
                self.refusals += 1
                logger.error("model=refused served=%s reason=%s", self._name(), error)
        except Exception:
            self._seen = frozenset()  # As above: the next look shall not take it for looked at.
            raise

    def watch(self, every_seconds: float) -> None:
        """Look again and again, in a thread of its own, until :meth:`close`."""
        self._watch = Watch(self.refresh, "home-host")
        self._watch.start(every_seconds)

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.close()

    def records(self) -> list[HomeRecord]:
        """Return what is known of the models that came home, the last one first."""
        # Of what answers now: settings that were damaged since are refused, and change nothing.
        current = self._current
        settings = read_settings(self.path) if current is None else current.settings
        return _came_home(settings, self._used())[::-1]

    def pinned(self) -> None:
        """Return None: a shop uses what came last, or what it adapted to."""

    def _used(self) -> Path | None:
        return None if self._current is None else self._current.ready.came.folder

    def _name(self) -> str:
        return "none" if self._current is None else self._current.ready.came.manifest.version


def _came_home(settings: ShopSettings, used: Path | None) -> list[HomeRecord]:
    """Return the models that can be read, in the order of arrival; ``used`` is one of them."""
    folders = {
        path.parent.resolve()
        for path in settings.models.glob(f"*/{MANIFEST}")
        if not path.parent.name.startswith(".")  # A draft, or what is left of one.
    }
    if used is not None:
        folders.add(used)
    arrived = []
    for folder in sorted(folders):
        manifest = folder / MANIFEST
        try:
            moment = manifest.stat().st_mtime_ns
            arrived.append((moment, folder, Manifest.model_validate_json(manifest.read_bytes())))
        except (OSError, ValueError):
            logger.warning("model=unreadable folder=%s", folder)
    arrived.sort(key=lambda entry: entry[:2])
    return [
        HomeRecord(
            version=number,
            published_at=datetime.fromtimestamp(moment / 1e9, UTC).isoformat(timespec="seconds"),
            manifest=manifest,
            folder=folder,
        )
        for number, (moment, folder, manifest) in enumerate(arrived, start=1)
    ]


def _stamp(path: Path, settings: ShopSettings, used: Path | None) -> _Stamp:
    """Return what tells whether anything that answers depend on was written anew."""
    watched = [
        path,
        *_files(settings.catalogue),
        *_files(settings.models / CURRENT),
        *([] if used is None else _files(used)),
        *newest_files(ShopFolder.of(path).adapted),
        *_own_products(settings),
    ]
    found = set()
    for file in watched:
        try:
            status = file.stat()
        except OSError:
            continue
        found.add((str(file.resolve()), status.st_mtime_ns, status.st_size, status.st_ino))
    return frozenset(found)


def _own_products(settings: ShopSettings) -> list[Path]:
    """Return the files that say what the shop's own products are; a database has none."""
    if not settings.home.own_products:
        return []
    found = []
    if (mapping := settings.catalogue_mapping) is not None:
        found.append(mapping.table)  # What it maps is the catalogue's.
    if settings.data is not None:
        with suppress(DataError):
            found.append(find_table(settings.data, "products"))
    return [path for path in found if path is not None]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError:
        return []
