"""A day of a served model in small: mixed load, while models are published, damaged, rolled back.

Every model is planted, so that each answer can be held against what the version that it names must
say. A mixture of two versions would match neither.
"""

import logging
import shutil
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from pydantic import ValidationError

from common.artifact import MODEL, ModelArtifact
from common.errors import FedtailError, RunError
from common.features import Catalogue, write_catalogue
from server.query.client import Client
from server.query.core import ServedModel
from server.registry.versions import Registry
from simulations.bench.asking import GrpcClient
from simulations.bench.served import Served, served
from simulations.bench.serving_models import planted_catalogue, planted_model, publish
from simulations.bench.soak_questions import KINDS, Given, Questions
from simulations.machine import machine_facts

_MODELS = 4
_QUESTIONS = 12
_CALLERS = 3
_PATIENCE_SECONDS = 30.0
_EVERY_MEMORY = 0.5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SoakSettings:
    """How long, how often something is done to the registry, and how large all is.

    Attributes
    ----------
    every
        Seconds between two events at the registry.
    look_every
        Seconds between the server's looks at it.
    pause
        Seconds that a caller waits after an answer.
    """

    seconds: float = 600.0
    every: float = 30.0
    look_every: float = 2.0
    pause: float = 0.05
    products: int = 20_000
    dimension: int = 32
    seed: int = 0


@dataclass
class _Seen:
    """What callers saw; appended to by several threads."""

    asked: Counter[str] = field(default_factory=Counter)
    versions: Counter[int] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def soak(
    settings: SoakSettings | None = None, *, progress: Callable[[str], None] = logger.info
) -> dict[str, Any]:
    """Serve, ask and meddle for a while.

    Returns
    -------
    dict
        ``asked`` (by interface and kind), ``failed`` and ``wrong`` answers with their first few,
        ``events`` at the registry and those that the server followed ``late`` or not at all,
        ``switches``, ``milliseconds``, ``memory_mb``, ``log`` (stack traces and content found in
        it), ``settings`` and ``machine``.
    """
    settings = settings or SoakSettings()
    draw = np.random.default_rng(settings.seed)
    with tempfile.TemporaryDirectory(prefix="ft-soak-") as name:
        folder = Path(name)
        progress("planting models and their answers")
        catalogue = planted_catalogue(settings.products, draw)
        write_catalogue(catalogue, folder / "catalogue")
        models = {
            f"model-{n}": planted_model(catalogue, settings.dimension, draw, f"model-{n}")
            for n in range(_MODELS)
        }
        ready = {name: ServedModel.of(1, model, catalogue) for name, model in models.items()}
        questions = Questions(catalogue, ready, _QUESTIONS, draw)
        operator = _Operator(folder, catalogue, models)
        operator.publish()
        look = ("--look-every", str(settings.look_every))
        with served(folder, *look) as service:
            progress(f"{settings.seconds:.0f} s of load, an event every {settings.every:.0f} s")
            found = _load(settings, service, operator, questions, progress)
            log = service.log.read_text(encoding="utf-8", errors="replace")
        found["log"] = {
            "stack_traces": log.count("Traceback"),
            "products_named": sum(f"p{row:07d}" in log for row in range(0, settings.products, 7)),
        }
    return {**found, "settings": vars(settings), "machine": machine_facts()}


class _Operator:
    """Publishes, damages and rolls back, and knows which version is which model."""

    def __init__(
        self, folder: Path, catalogue: Catalogue, models: dict[str, ModelArtifact]
    ) -> None:
        self._folder, self._catalogue = folder, catalogue
        self._registry = Registry(folder / "registry")
        self._next = cycle(models.values())
        self._damages = cycle((self._overwrite, self._cut, self._remove, self._record))
        self._good: list[int] = []
        self.models: dict[int, str] = {}
        self.served: set[int] = set()

    def events(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield what happens, one after the other, without end."""
        return cycle(
            (
                ("publish", self.publish),
                ("publish, then damage it", self.publish_damaged),
                ("roll back from what is damaged", self.roll_back),
                ("roll back to an earlier one", self.pin_earlier),
                ("publish, and follow the newest", self.follow),
                ("damage what is served", self.damage_served),
            )
        )

    def publish(self) -> None:
        """Publish a good model."""
        artifact = next(self._next)
        # Written down first: an answer may name the version before this call returns.
        version = 1 + max(self._registry.versions(), default=0)
        self.models[version] = artifact.manifest.version
        shutil.rmtree(self._folder / artifact.manifest.version, ignore_errors=True)
        publish(self._folder, self._catalogue, artifact)
        self._good.append(version)
        if self._registry.served() == version:
            self.served = {version}

    def publish_damaged(self) -> None:
        """Publish a model and damage it; the server may just have read it whole."""
        before = set(self.served)
        self.publish()
        newest = self._good.pop()
        next(self._damages)(newest)
        self.served = before | {newest}

    def roll_back(self) -> None:
        """Decide for the version before the newest."""
        pin = self._registry.roll_back()
        self.served = {pin.version or 0}

    def pin_earlier(self) -> None:
        """Decide for the good version before the last one."""
        self._registry.pin(self._good[-2] if len(self._good) > 1 else self._good[-1])
        self.served = {self._good[-2] if len(self._good) > 1 else self._good[-1]}

    def follow(self) -> None:
        """Publish a good model, and serve whichever is newest from now on."""
        self.publish()
        self._registry.pin(None)
        self.served = {self._good[-1]}

    def damage_served(self) -> None:
        """Damage the files of what is served: it is answered from memory."""
        self._overwrite(self._good.pop())

    def _files(self, version: int) -> Path:
        return self._folder / "registry" / "models" / self._registry.record(version).folder

    def _overwrite(self, version: int) -> None:
        path = self._files(version) / MODEL
        path.write_bytes(b"\x00" * path.stat().st_size)

    def _cut(self, version: int) -> None:
        path = self._files(version) / MODEL
        path.write_bytes(path.read_bytes()[:1000])

    def _remove(self, version: int) -> None:
        shutil.rmtree(self._files(version))

    def _record(self, version: int) -> None:
        path = self._folder / "registry" / "versions" / f"{version}.json"
        path.write_bytes(path.read_bytes().replace(b"model-", b"other-"))


def _load(
    settings: SoakSettings,
    service: Served,
    operator: _Operator,
    questions: Questions,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    seen, ended = _Seen(), threading.Event()
    memory: list[tuple[float, float]] = []
    callers = [
        threading.Thread(
            target=_call, args=(settings, service, operator, questions, seen, ended, n)
        )
        for n in range(2 * _CALLERS)
    ]
    threads = [*callers, threading.Thread(target=_watch, args=(service, memory, ended))]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    events: list[str] = []
    late: list[str] = []
    try:
        for name, act in operator.events():
            due = started + settings.every * (len(events) + 1)
            if due > started + settings.seconds - settings.every / 2:
                break
            time.sleep(max(0.0, due - time.monotonic()))
            progress(name)
            act()
            events.append(name)
            if not _follows(service, operator):
                late.append(name)
        time.sleep(max(0.0, started + settings.seconds - time.monotonic()))
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    if service.process.poll() is not None:
        text = service.log.read_text(encoding="utf-8", errors="replace")
        raise RunError(f"the server ended while it was asked: {text[-1000:]}")
    milliseconds = np.array(seen.seconds) * 1e3
    return {
        "asked": dict(sorted(seen.asked.items())),
        "requests": sum(seen.asked.values()),
        "failed": len(seen.failed),
        "wrong": len(seen.wrong),
        "first_failures": [*seen.failed[:3], *seen.wrong[:3]],
        "versions": {str(version): n for version, n in sorted(seen.versions.items())},
        "events": dict(Counter(events)),
        "not_followed": late,
        "switches": _metric(service, "fedtail_model_switches"),
        "refusals": _metric(service, "fedtail_model_refusals"),
        "milliseconds": {
            f"p{level:g}": float(np.percentile(milliseconds, level)) for level in (50, 99, 99.9)
        },
        "memory_mb": _memory(memory),
    }


def _call(
    settings: SoakSettings,
    service: Served,
    operator: _Operator,
    questions: Questions,
    seen: _Seen,
    ended: threading.Event,
    number: int,
) -> None:
    draw = np.random.default_rng((settings.seed, number))
    interface = "grpc" if number % 2 else "rest"
    with ExitStack() as stack:
        ask: Callable[[str, int], Given]
        if interface == "grpc":
            caller = stack.enter_context(GrpcClient(service.grpc))
            ask = lambda kind, n: questions.over_grpc(caller, kind, n)  # noqa: E731
        else:
            client = stack.enter_context(Client(service.rest, timeout=_PATIENCE_SECONDS))
            ask = lambda kind, n: questions.over_rest(client, kind, n)  # noqa: E731
        while not ended.wait(settings.pause):
            kind, question = KINDS[draw.integers(len(KINDS))], int(draw.integers(questions.count))
            started = time.monotonic()
            try:
                given = ask(kind, question)
            except (FedtailError, GrpcClient.Error, ValidationError) as error:
                with seen.lock:
                    seen.failed.append(f"{interface} {kind}: {error}")
                continue
            seconds = time.monotonic() - started
            right = _is_right(given, operator, questions, kind, question)
            with seen.lock:
                seen.asked[f"{interface} {kind}"] += 1
                seen.versions.update(given.versions)
                seen.seconds.append(seconds)
                if not right:
                    seen.wrong.append(f"{interface} {kind} {question}: {given}"[:300])


def _is_right(
    given: Given, operator: _Operator, questions: Questions, kind: str, number: int
) -> bool:
    if kind == "explain":  # Names no version: it must be one and the same model's, whichever.
        return questions.any_right(kind, number, given)
    if len(given.versions) != 1:
        return False
    model = operator.models.get(next(iter(given.versions)))
    return model is not None and given.is_as(questions.right(model, kind, number))


def _follows(service: Served, operator: _Operator) -> bool:
    """Return whether the server comes to serve what it should."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until:
        # One that is too busy to say so is late, and will be asked again.
        with suppress(httpx.HTTPError):
            if int(_metric(service, "fedtail_model_version")) in operator.served:
                return True
        time.sleep(0.1)
    return False


def _metric(service: Served, name: str) -> float:
    text = httpx.get(f"{service.rest}/metrics", timeout=_PATIENCE_SECONDS).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def _watch(service: Served, memory: list[tuple[float, float]], ended: threading.Event) -> None:
    started = time.monotonic()
    with suppress(psutil.NoSuchProcess):  # It has ended: that is told in the end.
        process = psutil.Process(service.process.pid)
        while not ended.wait(_EVERY_MEMORY):
            memory.append((time.monotonic() - started, process.memory_info().rss / 2**20))


def _memory(points: list[tuple[float, float]]) -> dict[str, Any]:
    """Return the resident memory over time: its slope after the first third, while all warmed up.

    ``growth`` is the last sixth's median over that of the third sixth.
    """
    seconds, megabytes = (np.array(values) for values in zip(*points, strict=True))
    sixths = np.array_split(megabytes, 6)
    later = seconds > seconds[-1] / 3
    slope = np.polyfit(seconds[later], megabytes[later], 1)[0] if later.sum() > 1 else 0.0
    return {
        "start": float(megabytes[0]),
        "largest": float(megabytes.max()),
        "median_of_sixths": [statistics.median(part.tolist()) for part in sixths if part.size],
        "growth": float(np.median(sixths[-1]) / np.median(sixths[2])),
        "slope_mb_per_minute": float(slope) * 60,
    }
