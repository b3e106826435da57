"""A server under load while its registry is meddled with; and that a fault would be seen."""

import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from common.errors import RunError
from server.query.core import ServedModel
from simulations.bench.served import Served
from simulations.bench.serving_models import planted_catalogue, planted_model
from simulations.bench.soak import SoakSettings, _call, _load, _Seen, soak
from simulations.bench.soak_questions import KINDS, Given, Questions

pytestmark = pytest.mark.e2e


def test_no_request_fails_and_no_answer_mixes_versions() -> None:
    settings = SoakSettings(
        seconds=7.0, every=1.0, look_every=0.2, pause=0.05, products=1000, dimension=8
    )
    found = soak(settings)
    assert found["failed"] == found["wrong"] == 0, found["first_failures"]
    assert found["not_followed"] == []
    assert len(found["events"]) == 6
    assert found["switches"] >= 4
    assert len(found["versions"]) >= 3
    assert len(found["asked"]) == 2 * len(KINDS)
    assert found["log"] == {"stack_traces": 0, "products_named": 0}


@pytest.mark.slow
def test_memory_stays_flat_over_many_switches() -> None:
    found = soak(SoakSettings(seconds=90.0, every=2.0, look_every=0.2, products=5000))
    assert found["failed"] == found["wrong"] == 0, found["first_failures"]
    assert found["switches"] >= 15
    assert found["memory_mb"]["growth"] < 1.1


def test_a_mixture_of_two_models_would_be_noticed() -> None:
    draw = np.random.default_rng(1)
    catalogue = planted_catalogue(1000, draw)
    models = {
        name: ServedModel.of(1, planted_model(catalogue, 8, draw, name), catalogue)
        for name in ("a", "b")
    }
    questions = Questions(catalogue, models, 6, draw)
    for number in range(6):
        for kind in KINDS:
            right, other = (questions.right(name, kind, number) for name in ("a", "b"))
            assert right.is_as(right)
            assert not right.is_as(other)
            (ids, figures), (_, others) = right.parts[0], other.parts[0]
            mixed = Given(right.versions, ((ids, figures[:-1] + others[-1:]), *right.parts[1:]))
            assert not mixed.is_as(right)
            assert not questions.any_right(kind, number, mixed)


def test_an_answer_that_cannot_be_read_is_a_failure_and_its_caller_goes_on(tmp_path: Path) -> None:
    class Shape(BaseModel):
        wanted: int

    ended, seen = threading.Event(), _Seen()

    def unreadable(*_: object) -> None:
        if len(seen.failed) == 2:
            ended.set()
        Shape.model_validate({})

    questions: Any = SimpleNamespace(count=1, over_grpc=unreadable)
    operator: Any = None
    _call(SoakSettings(pause=0.001), _gone(tmp_path), operator, questions, seen, ended, 1)
    assert len(seen.failed) == 3


def test_a_server_that_ended_is_told_of_with_its_last_words(tmp_path: Path) -> None:
    def failing(*_: object) -> None:
        raise RunError("nobody is there")

    questions: Any = SimpleNamespace(count=1, over_grpc=failing, over_rest=failing)
    operator: Any = SimpleNamespace(events=lambda: iter(()))
    with pytest.raises(RunError, match="ended while it was asked: out of memory"):
        _load(SoakSettings(seconds=0.2), _gone(tmp_path), operator, questions, lambda _: None)


def _gone(folder: Path) -> Served:
    process = subprocess.Popen(["true"])
    process.wait()
    (folder / "log").write_text("out of memory", encoding="utf-8")
    return Served(process, "http://127.0.0.1:9", "127.0.0.1:9", folder / "log")
