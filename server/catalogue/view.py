"""The catalogue's versions as JSON documents, and as folders or files for shops to take."""

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from common.catalogue.content_columns import as_text
from common.errors import ArtifactError, ConfigError
from common.features import CROSS, Catalogue, content_columns
from server.catalogue.diff import Difference
from server.catalogue.publishing import version_document
from server.catalogue.versions import Catalogues, Version
from server.operating.folder import Federation
from server.registry.versions import Registry
from server.training.records import Runs

Document = dict[str, Any]
SUFFIX = ".zip"


def show(federation: Federation, which: str | None) -> Document:
    """Return all that is known of a version, by default the last one, once it is verified.

    Returns
    -------
    dict
        As :func:`server.catalogue.publishing.version_document`; ``current``; ``columns``: each
        ``name, read_as`` (values, words or numbers), ``filled`` (share of the products), ``used``;
        ``features``; ``changes`` since the version before as counts; ``models``: registry versions
        of this catalogue (``version, model, served``); ``runs``: their names; ``versions``: all of
        them, the oldest first, each with ``version, published_at, products, offered, fingerprint``
        and how many ``models`` and ``runs`` are of it; ``unreadable``: what of the other versions,
        the registry or the runs could not be read.
    """
    catalogues = Catalogues(federation.catalogue)
    version = catalogues.version(which)
    catalogue = catalogues.read(version.n)
    unreadable: list[str] = []
    versions = _versions(catalogues, unreadable)
    models, runs = _models(federation, unreadable), _runs(federation, unreadable)
    return {
        **version_document(catalogues, version),
        "current": version.n == catalogues.numbers()[-1],
        "columns": _columns(catalogue),
        "features": list(catalogue.spec.features),
        "changes": version.changes,
        "models": models.get(version.fingerprint, []),
        "runs": runs.get(version.fingerprint, []),
        "versions": [
            {
                "version": v.n,
                "published_at": v.published_at,
                "products": v.products,
                "offered": v.offered,
                "fingerprint": v.fingerprint,
                "models": len(models.get(v.fingerprint, [])),
                "runs": len(runs.get(v.fingerprint, [])),
            }
            for v in versions
        ],
        "unreadable": unreadable,
    }


def diff(catalogues: Catalogues, old: str, new: str, examples: int) -> Document:
    """Return how a version differs from another: ``from``, ``to`` and what Difference tells."""
    first, second = catalogues.version(old), catalogues.version(new)
    found = Difference.of(catalogues.read(first.n), catalogues.read(second.n))
    return {
        "from": version_document(catalogues, first),
        "to": version_document(catalogues, second),
        **found.document(examples),
    }


def export(catalogues: Catalogues, which: str | None, out: Path) -> Document:
    """Copy a version for shops: a folder, or one ``.zip`` that unpacks into one.

    Raises
    ------
    ConfigError
        If ``out`` is there already, or cannot be written.
    """
    version = catalogues.version(which)
    catalogues.read(version.n)  # What is damaged goes to nobody.
    folder = catalogues.path(version.n)
    if out.exists():
        raise ConfigError(f"{out} is there already and stays as it is: name another place")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as draft:
            whole = Path(draft) / out.name
            if out.suffix == SUFFIX:
                # Of files without a time, as some backups bring them back, zip has no year 1970.
                with zipfile.ZipFile(
                    whole, "w", zipfile.ZIP_STORED, strict_timestamps=False
                ) as archive:
                    for path in sorted(folder.iterdir()):
                        archive.write(path, f"catalogue/{path.name}")
            else:
                shutil.copytree(folder, whole)
            whole.rename(out)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error
    return {**version_document(catalogues, version), "exported": str(out)}


def _columns(catalogue: Catalogue) -> list[Document]:
    used = {part for name in catalogue.spec.features for part in name.split(CROSS)}
    rules = catalogue.spec.columns or {}
    return [
        {
            "name": name,
            "read_as": rules[name].kind,
            "filled": float((as_text(catalogue.products[name]) != "").mean()),
            "used": name in used,
        }
        for name in content_columns(catalogue.products)
    ]


def _versions(catalogues: Catalogues, unreadable: list[str]) -> list[Version]:
    """Return what is recorded of each version, the oldest first."""
    found = []
    for number in catalogues.numbers():
        try:
            found.append(catalogues.version(number))
        except ArtifactError as error:
            unreadable.append(str(error))
    return found


def _models(federation: Federation, unreadable: list[str]) -> dict[str, list[Document]]:
    """Return fingerprint -> the registry's versions of that catalogue."""
    found: dict[str, list[Document]] = {}
    registry = Registry(federation.registry)
    numbers: list[int] = []
    served: int | None = None
    try:
        numbers = registry.versions()
        served = registry.served() if numbers else None
    except ArtifactError as error:
        # A decision that is damaged says nothing of the versions.
        unreadable.append(str(error))
    for number in numbers:
        try:
            manifest = registry.record(number).manifest
        except ArtifactError as error:
            unreadable.append(str(error))
            continue
        model = {"version": number, "model": manifest.version, "served": number == served}
        found.setdefault(manifest.catalogue_fingerprint, []).append(model)
    return found


def _runs(federation: Federation, unreadable: list[str]) -> dict[str, list[str]]:
    """Return fingerprint -> the names of runs on that catalogue."""
    found: dict[str, list[str]] = {}
    runs = Runs(federation.runs)
    for name in runs.names():
        try:
            found.setdefault(runs.read(name).catalogue, []).append(name)
        except (ArtifactError, ConfigError) as error:
            unreadable.append(str(error))
    return found
