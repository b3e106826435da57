"""Which version a service answers by: what the registry decides, one for a whole request."""

from pathlib import Path
from typing import Any, cast

import pytest

from query_support import Place, make_place
from server.query.answering import Metrics, Service
from server.query.host import ModelHost
from server.query.index import ExactIndex
from server.query.requests import BatchRequest
from server.query.security import RateLimit


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def host_of(place: Place) -> ModelHost:
    return ModelHost(place.registry, lambda _: (place.catalogue, {}), ExactIndex)


def version_of(host: ModelHost) -> int:
    host.refresh()
    return host.current().version


def test_an_older_version_that_was_decided_on_is_taken_as_a_newer_one_is(place: Place) -> None:
    """A roll back that is not followed leaves people with the model that was taken away."""
    place.publish(2)
    host = host_of(place)
    assert version_of(host) == 2
    assert host.pinned() is None
    place.registry.roll_back()
    assert version_of(host) == 1
    assert host.pinned() == 1
    place.publish(3)
    assert version_of(host) == 1
    place.registry.pin(2)
    assert (version_of(host), host.pinned()) == (2, 2)
    place.registry.pin(None)
    assert (version_of(host), host.pinned()) == (3, None)
    assert version_of(host) == 3
    assert host.switches == 4
    assert [record.version for record in host.records()] == [3, 2, 1]


def test_what_is_wrong_is_told_once_and_again_where_it_is_something_else(place: Place) -> None:
    host = host_of(place)
    assert version_of(host) == 1
    damaged: list[Path] = []
    for number in (2, 3):
        version = place.publish(number)
        folder = place.root / "registry" / "models" / place.registry.record(version).folder
        damaged.append(folder / "model.safetensors")
        whole = damaged[-1].read_bytes()
        damaged[-1].write_bytes(b"rubbish")
        assert [version_of(host) for _ in range(3)] == [1, 1, 1]
        assert host.refusals == number - 1
    # What is mended is taken; damaged anew, it is told anew.
    damaged[-1].write_bytes(whole)
    assert version_of(host) == 3
    place.registry.pin(1)
    assert version_of(host) == 1
    place.registry.pin(None)
    damaged[-1].write_bytes(b"rubbish")
    assert version_of(host) == 1
    assert host.refusals == 3


def test_a_batch_is_answered_by_the_model_that_it_began_with(place: Place) -> None:
    place.publish(2)
    first, second = host_of(place), host_of(place)
    assert version_of(first) == 2
    place.registry.pin(1)
    assert version_of(second) == 1

    class Switching:
        """Another model is served at each look."""

        ready, switches, refusals, looks = True, 0, 0, 0

        def current(self) -> Any:
            self.looks += 1
            return (first if self.looks % 2 else second).current()

    host = cast(Any, Switching())
    service = Service(host, Metrics(host), RateLimit(100.0, 100.0))
    found = service.batch(BatchRequest.model_validate({"requests": [{"k": 3}] * 3}))
    assert {found.version, *(one.version for one in found.responses)} == {2}
