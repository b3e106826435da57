"""The end of a run: its last state becomes a model on disk, with its privacy statement."""

import json
from pathlib import Path

import numpy as np

from common.artifact import Manifest, load_model, save_model
from common.code import code_digest
from common.errors import ArtifactError
from common.features import Catalogue
from common.protocol import Arrays, Noise
from common.statement import statement
from server.job import Job


def finished_model(
    folder: Path, job: Job, catalogue: Catalogue, state: Arrays, noise: Noise
) -> Manifest:
    """Write the model of a run's last round, unless it is there already; return its manifest.

    Parameters
    ----------
    noise
        The weakest source of noise of the shops whose updates are in the state.

    Raises
    ------
    ArtifactError
        If the folder holds another model than this run's.
    """
    plan = job.plan
    if folder.exists():  # An earlier attempt came as far as here.
        found = load_model(folder, catalogue_fingerprint=catalogue.fingerprint, spec=job.shapes)
        same = all(np.array_equal(found.arrays[name], array) for name, array in state.items())
        if not same or found.manifest.version != job.run_name:
            raise ArtifactError(
                f"{folder} holds another model than that of run {job.run_name}: move it away"
            )
        return found.manifest
    manifest = Manifest(
        version=job.run_name,
        server_round=plan.rounds,
        data_columns=tuple(map(str, catalogue.products.columns)),
        config={
            "plan": plan.model_dump(mode="json"),
            "content": catalogue.spec.model_dump(mode="json"),
            "settings": json.loads(job.settings.identity()),
        },
        code_digest=code_digest(),
        privacy=statement(plan, noise=noise) if plan.private else None,
        catalogue_fingerprint=catalogue.fingerprint,
    )
    return save_model(folder, state, catalogue.item_ids, manifest)
