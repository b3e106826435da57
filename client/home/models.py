"""The models that a shop has: what the federation brought home, each in a folder of its own.

::

    models/
    ├── <run>/      the model of one run: see common.artifact
    ├── current     a link to the folder of the one that came last
    └── .adapted    a link to that of the one that the shop adapted to

Of the older ones only the manifest stays: when it came, and what was promised of it.
"""

import fcntl
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.shop_folder import CURRENT
from common.artifact import ITEMS, MANIFEST, MODEL, Manifest, load_model, save_model
from common.disk import sync
from common.errors import ArtifactError, ConfigError
from common.features import Catalogue
from common.protocol import FINGERPRINT_CHARS, Arrays, RoundHeader, TrainingPlan, check_run_name

logger = logging.getLogger(__name__)

# No run is called by a name that begins with a dot.
ADAPTED, _NEXT = ".adapted", ".adapted.next"
_DIGEST, _DIGEST_CHARS = re.compile(f"[0-9a-f]{{{FINGERPRINT_CHARS}}}"), 8
# Of a model (:func:`common.artifact.save_model`), and of a link (:func:`_point`).
_DRAFT = re.compile(r"\..+\.[a-z0-9_]{8}")


def current_model(models: Path) -> Path:
    """Return the folder of the model that came home last.

    Raises
    ------
    ConfigError
        If none has.
    """
    pointer = models / CURRENT
    if not pointer.exists():
        raise ConfigError(
            f"there is no {pointer}: no model has come home yet. It does when a run of the "
            "federation ends while this shop's client runs"
        )
    return pointer.resolve()


def keep_model(
    models: Path,
    header: RoundHeader,
    plan: TrainingPlan,
    arrays: Arrays,
    manifest_json: str,
    catalogue: Catalogue,
) -> Path:
    """Write a model that came home, whole or not at all, and make it the current one.

    Parameters
    ----------
    arrays
        Checked against the plan and the catalogue.
    manifest_json
        As it arrived.

    Returns
    -------
    Path
        Its folder: ``<run>``, or ``<run>-<digest>`` where another model has that name.

    Raises
    ------
    ArtifactError, ProtocolError
        If the manifest is not one of this run, plan, catalogue and arrays.
    """
    manifest = _manifest(manifest_json)
    models.mkdir(parents=True, exist_ok=True)
    with in_use(models):
        # While it is written nobody takes its draft for one that was left behind.
        return _keep(models, header, plan, arrays, manifest, catalogue)


def _keep(
    models: Path,
    header: RoundHeader,
    plan: TrainingPlan,
    arrays: Arrays,
    manifest: Manifest,
    catalogue: Catalogue,
) -> Path:
    for what, same in (
        ("run", manifest.version == header.run_id),
        ("round", manifest.server_round == header.server_round == plan.rounds),
        ("plan", manifest.config.get("plan") == plan.model_dump(mode="json")),
        ("catalogue", manifest.catalogue_fingerprint == catalogue.fingerprint),
        # It may become a part of a path below.
        ("digest", _DIGEST.fullmatch(manifest.files.get(MODEL, "")) is not None),
    ):
        if not same:
            raise ArtifactError(f"the manifest of a model that came home is of another {what}")
    digest = manifest.files[MODEL]
    name = check_run_name(header.run_id)
    folder = models / name
    if folder.exists() and _digest_of(folder) != digest:
        folder = models / f"{name}-{digest[:_DIGEST_CHARS]}"
    if folder.exists() and not (folder / MODEL).exists():
        # It was pruned, and comes home once more. What is left of it is swept as a draft is.
        folder.rename(models / f".{folder.name}.{secrets.token_hex(4)}")
    if not folder.exists():
        save_model(folder, arrays, catalogue.item_ids, manifest, model_digest=digest)
    _point(models, CURRENT, folder.name)
    logger.info("model=%s came home", folder.name)
    return folder


@contextmanager
def in_use(models: Path) -> Iterator[None]:
    """Let no model be pruned within the block."""
    with _locked(models, fcntl.LOCK_SH):
        yield


@contextmanager
def adapted_to(models: Path, folder: Path, before: Path | None) -> Iterator[None]:
    """Keep the model in ``folder`` from being pruned, once what is done in the block has succeeded.

    Wherever the block is interrupted, both are kept: this one and the one ``before``, that the
    shop's adaptation was to, if it has one.
    """
    if before is not None:
        _point_inside(models, ADAPTED, before)
    _point_inside(models, _NEXT, folder)
    yield
    if _is_inside(models, folder):
        (models / _NEXT).replace(models / ADAPTED)
    else:
        (models / ADAPTED).unlink(missing_ok=True)
        (models / _NEXT).unlink(missing_ok=True)


def prune(models: Path, keep: int) -> None:
    """Delete the arrays of old models: all but those of the newest, and of those that are needed.

    The current one is kept, and the one that the shop adapted to. What a process that was killed
    left half written goes, too. While one is in use, or written, nothing is deleted: the next model
    that comes home sees to it.

    Parameters
    ----------
    keep
        How many of the newest; 0: all.
    """
    try:
        with _locked(models, fcntl.LOCK_EX | fcntl.LOCK_NB):
            _sweep(models)
            if not keep:
                return
            needed = {(models / link).resolve() for link in (CURRENT, ADAPTED, _NEXT)}
            arrived = sorted(
                (path.stat().st_mtime_ns, path.parent)
                for path in models.resolve().glob(f"*/{MANIFEST}")
                if not path.parent.is_symlink() and not path.parent.name.startswith(".")
            )
            for _, folder in arrived[:-keep]:
                if folder not in needed:
                    _strip(folder)
    except BlockingIOError:
        logger.info("models=in use, none pruned")
    except OSError as error:
        logger.warning("models=not pruned: %s", error)


def _sweep(models: Path) -> None:
    """Delete drafts that were left behind: nobody writes one while the folder is locked."""
    for path in models.iterdir() if models.is_dir() else ():
        if not _DRAFT.fullmatch(path.name):
            continue
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():
            for name in (MODEL, ITEMS, MANIFEST):
                (path / name).unlink(missing_ok=True)
            try:
                path.rmdir()
            except OSError as error:
                # It holds something else, then, and is no reason to keep all old models.
                logger.warning("draft=%s not swept: %s", path.name, error.strerror)
                continue
        logger.info("draft=%s swept", path.name)


def _strip(folder: Path) -> None:
    """Leave nothing of a model but its manifest; an interruption is made good at the next time."""
    large = [folder / name for name in (MODEL, ITEMS) if (folder / name).exists()]
    for path in large:
        path.unlink()
    if large:
        sync(folder)
        logger.info("model=%s pruned", folder.name)


@contextmanager
def _locked(models: Path, how: int) -> Iterator[None]:
    """Hold a lock of the folder; where there is no folder, there is nothing to hold."""
    try:
        descriptor = os.open(models, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        yield
        return
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _digest_of(folder: Path) -> str:
    """Return the digest of a model's arrays, and check them, unless they were pruned."""
    if (folder / MODEL).exists():
        return load_model(folder).manifest.files[MODEL]
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes()).files[MODEL]
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{folder} holds no model: delete it") from error


def _is_inside(models: Path, folder: Path) -> bool:
    return folder.resolve().parent == models.resolve()


def _point_inside(models: Path, link: str, folder: Path) -> None:
    """Point a link at one of the shop's models; what lies elsewhere is never pruned."""
    if _is_inside(models, folder):
        _point(models, link, folder.name)


def _manifest(text: str) -> Manifest:
    try:
        return Manifest.model_validate_json(text)
    except ValueError as error:
        raise ArtifactError("the manifest of a model that came home is not valid") from error


def _point(models: Path, link: str, name: str) -> None:
    """Point a link at a folder: a reader finds this one or the one before, never none."""
    draft = models / f".{link}.{secrets.token_hex(4)}"
    draft.symlink_to(name)
    draft.replace(models / link)
