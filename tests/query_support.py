"""A small served model in a registry of its own, and a running service."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.artifact import Manifest, save_model
from common.features import Catalogue, ContentSpec, write_catalogue
from common.model import initial_state
from common.protocol import ModelPlan, TrainingPlan
from common.statement import statement
from server.registry.versions import Registry

SIZE = 400


def products(size: int = SIZE) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "item_id": [f"p{i:04d}" for i in range(size)],
            "title": [f"Product {i}" for i in range(size)],
            "category": rng.choice(["tea", "coffee", "bread"], size),
            "brand": rng.choice(["A", "B"], size),
            "price": rng.gamma(2.0, 5.0, size).round(2),
        }
    )


def write_model(folder: Path, catalogue: Catalogue, seed: int = 1) -> Path:
    """Write a private model on a catalogue whose popularity rises with the row, seed apart."""
    rng = np.random.default_rng(seed)
    model = ModelPlan(dimension=8, content_scale=0.7)
    plan = TrainingPlan(
        model=model, rounds=2, noise_multiplier=5.0, popularity_noise_multiplier=5.0
    )
    state = initial_state(model, catalogue.size)
    state = {name: rng.normal(size=a.shape).astype(np.float32) for name, a in state.items()}
    counts = rng.pareto(1.2, catalogue.size) + 0.01
    state["popularity"] = (counts / counts.sum()).astype(np.float32)
    manifest = Manifest(
        version=f"m{seed}",
        server_round=2,
        data_columns=tuple(map(str, catalogue.products.columns)),
        config={"plan": plan.model_dump(mode="json")},
        code_digest="0" * 64,
        privacy=statement(plan),
        catalogue_fingerprint=catalogue.fingerprint,
    )
    save_model(folder, state, catalogue.item_ids, manifest)
    return folder


@dataclass(frozen=True)
class Place:
    """A folder with a registry of one version and its catalogue."""

    root: Path
    catalogue: Catalogue

    @property
    def registry(self) -> Registry:
        return Registry(self.root / "registry")

    def publish(self, seed: int) -> int:
        model = write_model(self.root / f"model-{seed}", self.catalogue, seed)
        return self.registry.publish(model).version


def make_place(root: Path, size: int = SIZE, frame: pd.DataFrame | None = None) -> Place:
    spec = ContentSpec(features=("category", "brand"))
    catalogue = Catalogue.of(products(size) if frame is None else frame, spec)
    write_catalogue(catalogue, root / "catalogue")
    place = Place(root, catalogue)
    place.publish(1)
    return place


@dataclass(frozen=True)
class Running:
    """A service in a process of its own."""

    process: subprocess.Popen[str]
    rest: str
    grpc: str
    log: list[str]


@contextlib.contextmanager
def running(place: Place, *arguments: str) -> Iterator[Running]:
    """Start ``python -m server serve`` on free ports; end it on leaving."""
    command = [sys.executable, "-m", "server", "serve", str(place.root / "registry")]
    command += ["--catalogue", str(place.root / "catalogue"), *arguments]
    with started(command) as found:
        yield found


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[Running]:
    """Start a command that serves, on free ports, and wait until it does."""
    process = subprocess.Popen(
        [*command, "--port", "0", "--grpc-port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines: queue.Queue[str] = queue.Queue()
    log: list[str] = []

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            lines.put(line)
        lines.put("")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        while not (line := lines.get(timeout=180)).startswith("serving"):
            assert line, "".join(log)
        words = line.split()
        yield Running(process, words[1], words[3], log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        finally:
            process.kill()
            reader.join()
            if process.stderr is not None:
                process.stderr.close()
