"""Models to publish, and a program that publishes them in a process of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from common.artifact import Manifest, save_model
from common.protocol import TrainingPlan
from common.statement import statement

ROOT = Path(__file__).parents[1]
PLAN = TrainingPlan(
    rounds=3, noise_multiplier=4.0, popularity_noise_multiplier=4.0, sample_rate=0.5
)
PRIVACY = statement(PLAN)

#: Publishes each model it is told to; at ``stage`` it says so and waits to be killed.
_PUBLISHER = """
import sys, time
from pathlib import Path
from server.registry import stores
from server.registry import versions as registry

where, stage, go, *models = sys.argv[1:]

def stop(at):
    if at == stage:
        print("here", flush=True)
        time.sleep(600)

put, create, link = stores.FolderStore.put, stores.FolderStore.create, Path.hardlink_to

def stopping_put(self, source, name):
    if name.endswith(stage):
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes()[:100])
        stop(stage)
    put(self, source, name)

def stopping_create(self, name, data):
    stop("before the record")
    create(self, name, data)
    stop("after the record")

def stopping_link(self, target):
    stop("before the link")
    link(self, target)

if stage:
    stores.FolderStore.put = stopping_put
    stores.FolderStore.create = stopping_create
    Path.hardlink_to = stopping_link
found = registry.Registry(where)
print("ready", flush=True)
while go and not Path(go).exists():
    time.sleep(0.01)
for model in models:
    print(found.publish(Path(model)).version, flush=True)
"""


def model(folder: Path, value: float = 1.0, privacy: dict[str, Any] | None = PRIVACY) -> Path:
    """Save a model all of whose values are ``value``."""
    manifest = Manifest(
        version=f"model-{value:g}",
        server_round=3,
        data_columns=("user_id", "item_id"),
        config={"rounds": 3, "rate": 0.1},
        code_digest="c" * 64,
        privacy=privacy,
        catalogue_fingerprint="f" * 64,
    )
    arrays = {"item_embedding": np.full((4, 2), value, np.float32)}
    save_model(folder, arrays, np.array(["a", "b", "c", "d"], object), manifest)
    return folder


def publisher(
    where: Path, *models: Path, stage: str = "", go: Path | str = ""
) -> "subprocess.Popen[str]":
    """Start a process that publishes; returns once it is ready to."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PUBLISHER, where, stage, go, *models],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first == "ready\n", process.communicate()[1]
    return process
