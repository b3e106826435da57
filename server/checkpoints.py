"""A run on disk: one checkpoint a round, written so that a crash leaves only whole ones.

``round-00003.safetensors`` holds the state (``state/<name>``) and the optimiser's memory
(``memory/<name>``); ``round-00003.json`` its round, plan, catalogue and the SHA-256 of the
tensors. The JSON file is renamed into place last: a round without it was never finished.
"""

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from safetensors.numpy import load, save

from common.disk import sync
from common.errors import ArtifactError, RunError
from common.protocol import Arrays, Noise, TrainingPlan

_POLL = 0.2
_FORMAT = 2
_NAME = re.compile(r"round-([0-9]{5,})\.json")
_NOISE: TypeAdapter[Noise] = TypeAdapter(Noise)
_WAY_OUT = (
    ". Restore both files, or remove the .json: the run then goes on from the round before, and "
    "shops pay again for what came after it"
)


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on after ``server_round``.

    ``settings_json`` is the server's own part of the run (optimiser, seed, quorum): a run that is
    resumed under other settings would be neither the old run nor a new one. ``noise`` is the
    weakest of the shops whose updates are in the state.
    """

    server_round: int
    run_name: str
    plan: TrainingPlan
    settings_json: str
    catalogue_fingerprint: str
    noise: Noise
    state: Arrays
    memory: Arrays


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write one checkpoint atomically and return the path of its JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"state/{name}": np.ascontiguousarray(a) for name, a in checkpoint.state.items()}
    tensors |= {f"memory/{name}": np.ascontiguousarray(a) for name, a in checkpoint.memory.items()}
    data = save(tensors)
    facts = {
        "format": _FORMAT,
        "server_round": checkpoint.server_round,
        "run_name": checkpoint.run_name,
        "plan": checkpoint.plan.model_dump_json(),
        "settings": checkpoint.settings_json,
        "catalogue_fingerprint": checkpoint.catalogue_fingerprint,
        "noise": checkpoint.noise,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    path = _path(folder, checkpoint.server_round)
    _write(path.with_suffix(".safetensors"), data)
    _write(path, json.dumps(facts, indent=1).encode())
    return path


def rounds(folder: Path) -> list[int]:
    """Return the finished rounds in ``folder``, ascending; round 0 is before any training."""
    # A copy that somebody keeps beside them, such as round-00003-kept.json, is none of them.
    names = (_NAME.fullmatch(path.name) for path in folder.glob("round-*.json"))
    return sorted(int(name[1]) for name in names if name)


def read_checkpoint(folder: Path, server_round: int) -> Checkpoint:
    """Read and check the checkpoint of one round.

    Raises
    ------
    ArtifactError
        If it is missing, damaged, or another round's under this one's name.
    """
    path = _path(folder, server_round)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        data = path.with_suffix(".safetensors").read_bytes()
        if facts["format"] != _FORMAT:
            raise ArtifactError(f"{path} has format {facts['format']}, this code reads {_FORMAT}")
        if facts["server_round"] != server_round:
            raise ArtifactError(
                f"{path} holds round {facts['server_round']}: a copy or a renamed file{_WAY_OUT}"
            )
        if hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise ArtifactError(
                f"{path}: the tensors beside it are damaged (SHA-256 differs){_WAY_OUT}"
            )
        tensors = load(data)
        return Checkpoint(
            server_round=server_round,
            run_name=str(facts["run_name"]),
            plan=TrainingPlan.model_validate_json(facts["plan"]),
            settings_json=str(facts["settings"]),
            catalogue_fingerprint=str(facts["catalogue_fingerprint"]),
            noise=_NOISE.validate_python(facts["noise"]),
            state=_part(tensors, "state/"),
            memory=_part(tensors, "memory/"),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"cannot read the checkpoint {path}: {error}{_WAY_OUT}") from error


def trained_on(folder: Path) -> str | None:
    """Return the fingerprint of the catalogue that the run in ``folder`` trains on, if it began."""
    finished = rounds(folder)
    return read_checkpoint(folder, finished[-1]).catalogue_fingerprint if finished else None


def last_checkpoint(
    folder: Path, *, plan: TrainingPlan, settings_json: str, catalogue_fingerprint: str
) -> Checkpoint | None:
    """Return the newest checkpoint to go on from, or None in a fresh folder.

    Raises
    ------
    ArtifactError
        If the folder holds another run: of another plan, other settings, another catalogue.
    """
    finished = rounds(folder)
    if not finished:
        return None
    checkpoint = read_checkpoint(folder, finished[-1])
    for what, same in (
        ("plan", checkpoint.plan == plan),
        ("server settings", checkpoint.settings_json == settings_json),
        ("catalogue", checkpoint.catalogue_fingerprint == catalogue_fingerprint),
    ):
        if not same:
            raise ArtifactError(
                f"{folder} holds a run with another {what}: resume it as it was, or name an "
                "empty checkpoint folder"
            )
    return checkpoint


@contextmanager
def alone(folder: Path, *, patience: float = 120.0) -> Iterator[None]:
    """Keep a run's folder to one attempt at a time: a stopped one takes some seconds to end.

    Raises
    ------
    RunError
        If another attempt does not end within ``patience`` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with (folder / ".lock").open("wb") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise RunError(
                        f"another attempt at the run in {folder} still works: stop it first"
                    ) from error
            time.sleep(_POLL)
        yield


def _part(tensors: Arrays, prefix: str) -> Arrays:
    return {k.removeprefix(prefix): a for k, a in tensors.items() if k.startswith(prefix)}


def _path(folder: Path, server_round: int) -> Path:
    return folder / f"round-{server_round:05d}.json"


def _write(path: Path, data: bytes) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync(path.parent)
