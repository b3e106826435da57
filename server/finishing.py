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
from server.rounds.exchange import weakest
from server.starting import Start


def finished_model(
    folder: Path, job: Job, catalogue: Catalogue, state: Arrays, noise: Noise, start: Start
) -> Manifest:
    """Write the model of a run's last round, unless it is there already; return its manifest.

    Parameters
    ----------
    noise
        The weakest source of noise of the shops whose updates of this run are in the state.
    start
        Where the run started: what its earlier runs learned is in the state too.

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
    plans = [run.plan for run in start.earlier]
    privacy = statement(plan, noise=weakest((noise, start.noise)), earlier=plans)
    manifest = Manifest(
        version=job.run_name,
        server_round=plan.rounds,
        data_columns=tuple(map(str, catalogue.products.columns)),
        config={
            "plan": plan.model_dump(mode="json"),
            "content": catalogue.spec.model_dump(mode="json"),
            "settings": json.loads(job.settings.identity()),
            **({"earlier": start.facts} if start.earlier else {}),
        },
        code_digest=code_digest(),
        privacy=privacy if privacy["private"] else None,
        catalogue_fingerprint=catalogue.fingerprint,
    )
    return save_model(folder, state, catalogue.item_ids, manifest)
