"""The models that a shop has: what the federation brought home, each in a folder of its own.

::

    models/
    ├── <run>/      the model of one run: see common.artifact
    └── current     a link to the folder of the one that came last
"""

import logging
import secrets
from pathlib import Path

from common.artifact import MODEL, Manifest, load_model, save_model
from common.errors import ArtifactError, ConfigError
from common.features import Catalogue
from common.protocol import Arrays, RoundHeader, TrainingPlan, check_run_name

logger = logging.getLogger(__name__)

CURRENT = "current"
_DIGEST_CHARS = 8


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
    for what, same in (
        ("run", manifest.version == header.run_id),
        ("round", manifest.server_round == header.server_round == plan.rounds),
        ("plan", manifest.config.get("plan") == plan.model_dump(mode="json")),
        ("catalogue", manifest.catalogue_fingerprint == catalogue.fingerprint),
        ("digest", MODEL in manifest.files),
    ):
        if not same:
            raise ArtifactError(f"the manifest of a model that came home is of another {what}")
    digest = manifest.files[MODEL]
    name = check_run_name(header.run_id)
    folder = models / name
    if folder.exists() and load_model(folder).manifest.files[MODEL] != digest:
        folder = models / f"{name}-{digest[:_DIGEST_CHARS]}"
    if not folder.exists():
        save_model(folder, arrays, catalogue.item_ids, manifest, model_digest=digest)
    _point(models, folder.name)
    logger.info("model=%s came home", folder.name)
    return folder


def _manifest(text: str) -> Manifest:
    try:
        return Manifest.model_validate_json(text)
    except ValueError as error:
        raise ArtifactError("the manifest of a model that came home is not valid") from error


def _point(models: Path, name: str) -> None:
    """Make a folder the current one: a reader finds this one or the one before, never none."""
    link = models / f".{CURRENT}.{secrets.token_hex(4)}"
    link.symlink_to(name)
    link.replace(models / CURRENT)
