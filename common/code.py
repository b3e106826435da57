"""Which code trains: a digest over the sources that a shop runs, or over others too."""

import hashlib
from functools import lru_cache
from pathlib import Path

import common

_OF_SHOPS = ("client", "common")


@lru_cache(maxsize=2)
def code_digest(packages: tuple[str, ...] = _OF_SHOPS) -> str:
    """Return the SHA-256 over the sources of packages, 64 hex digits.

    Both lie side by side wherever they run: in the checkout, the bundle and the images.
    """
    digest = hashlib.sha256()
    home = Path(str(common.__file__)).parent.parent
    for root in (home / package for package in packages):
        for source in sorted(root.rglob("*.py"), key=lambda path: path.as_posix()):
            content = source.read_bytes()
            name = f"{root.name}/{source.relative_to(root).as_posix()}"
            digest.update(f"{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()
