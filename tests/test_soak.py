"""A server under load while its registry is meddled with; and that a fault would be seen."""

import numpy as np
import pytest

from server.query.core import ServedModel
from simulations.bench.serving_models import planted_catalogue, planted_model
from simulations.bench.soak import SoakSettings, soak
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
