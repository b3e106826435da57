"""Who may ask, and how often: API keys that are hashed at rest, and a rate for each.

A key is 256 random bits, so a plain SHA-256 of it can't be turned back; salts and slow hashes
are for passwords that people choose.
"""

import fcntl
import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

from common.disk import write_whole
from common.errors import ConfigError
from common.protocol import Frozen

_PREFIX = "ft_"
_NAME = re.compile(r"[\w.-]{1,64}")
_SHOWN = 5


def _checked_name(name: str) -> str:
    # Not as a pattern of pydantic's: its expressions and Python's differ in what a letter is.
    if not _NAME.fullmatch(name):
        raise ValueError("use letters, digits, . and -")
    return name


class Key(Frozen):
    """One key, without the key."""

    name: Annotated[str, AfterValidator(_checked_name)]
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created_at: str


class _KeyFile(Frozen):
    keys: tuple[Key, ...] = ()


class Keys:
    """The keys in a file; read again when it changes, so that a removed key stops at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()

    def list(self) -> tuple[Key, ...]:
        """Return all keys.

        Raises
        ------
        ConfigError
            If the file can't be read.
        """
        try:
            return _KeyFile.model_validate_json(self.path.read_bytes()).keys
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise self._unreadable(error) from error
        except ValidationError as error:
            # Without the values: one of them may be a key that somebody wrote there.
            faults = [
                f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}"
                for fault in error.errors(include_input=False)[:_SHOWN]
            ]
            raise ConfigError(f"{self.path} is not a file of keys: {'; '.join(faults)}") from None

    def add(self, name: str) -> str:
        """Make a key and return it: this is the only time that it can be seen.

        Raises
        ------
        ConfigError
            If the name is taken or holds other than letters, digits, dots and hyphens.
        """
        try:
            _checked_name(name)
        except ValueError as error:
            raise ConfigError(f"{name!r} is no name for a key: {error}") from error
        key = _PREFIX + secrets.token_urlsafe(32)
        made = Key(
            name=name,
            sha256=_digest(key),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with self._changing():
            known = self.list()
            if name in {old.name for old in known}:
                raise ConfigError(
                    f"{self.path} holds a key named {name!r} already: remove it first"
                )
            self._write((*known, made))
        return key

    def remove(self, name: str) -> None:
        """Remove a key; raises ConfigError if there is none of that name."""
        with self._changing():
            known = self.list()
            kept = tuple(key for key in known if key.name != name)
            if len(kept) == len(known):
                raise ConfigError(f"{self.path} holds no key named {name!r}")
            self._write(kept)

    def name_of(self, key: str) -> str | None:
        """Return the name of a key, or None if it is not one of ours."""
        with self._lock:
            try:
                found = self.path.stat()
                stamp = (found.st_mtime_ns, found.st_ino)
            except FileNotFoundError:
                stamp = None
            except OSError as error:
                raise self._unreadable(error) from error
            if stamp != self._stamp:
                self._known = {known.sha256: known.name for known in self.list()}
                self._stamp = stamp
            # Looked up by digest: how long it takes tells nothing of the key.
            return self._known.get(_digest(key))

    def _unreadable(self, error: OSError) -> ConfigError:
        return ConfigError(f"cannot read the keys in {self.path}: {error.strerror}")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Whatever else may have that name loses nothing.
        with self.path.with_name(f"{self.path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, keys: tuple[Key, ...]) -> None:
        text = json.dumps(_KeyFile(keys=keys).model_dump(mode="json"), indent=1)
        write_whole(self.path, text.encode())


class RateLimit:
    """A token bucket for each caller: ``rate`` requests a second, ``burst`` at once.

    Callers are the names of keys, or without keys the addresses; those that have been quiet long
    enough to have a full bucket are forgotten.
    """

    _MOST_CALLERS = 10_000

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def wait(self, caller: str, cost: float = 1.0) -> float:
        """Take ``cost`` tokens and return 0, or take none and return the seconds until it may."""
        with self._lock:
            now = self._clock()
            tokens, since = self._buckets.get(caller, (self._burst, now))
            tokens = min(self._burst, tokens + (now - since) * self._rate)
            # A batch that is larger than any bucket is paid for by an empty one.
            cost = min(cost, self._burst)
            if tokens < cost:
                self._buckets[caller] = (tokens, now)
                return (cost - tokens) / self._rate
            self._buckets[caller] = (tokens - cost, now)
            if len(self._buckets) > self._MOST_CALLERS:
                full = self._burst / self._rate
                self._buckets = {
                    name: bucket for name, bucket in self._buckets.items() if now - bucket[1] < full
                }
            return 0.0


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
