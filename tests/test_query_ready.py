"""What both interfaces say while there is no model yet, or none can be read."""

import logging
from pathlib import Path

import pytest

from query_support import make_place
from server.query.answering import RefusedError, Status
from server.query.browsing import evaluations
from server.query.registry_service import ServeSettings, make_service


def test_a_registry_that_cannot_be_read_is_not_the_caller_s_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = make_place(tmp_path)
    where = place.root / "registry"
    service = make_service(ServeSettings(registry=str(where), catalogue=place.root / "catalogue"))
    where.rename(place.root / "elsewhere")
    where.touch()
    for ask in (service.models, lambda: service.privacy(0), lambda: evaluations(service)):
        with pytest.raises(RefusedError) as refused, caplog.at_level(logging.ERROR):
            service.run("rest", "models", ask)
        assert refused.value.status is Status.FAILED
        assert "its log tells more" in str(refused.value)
        assert str(tmp_path) not in str(refused.value)
    assert caplog.text.count(f"cannot read the registry {where}: Not a directory") == 3
