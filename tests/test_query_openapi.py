"""The service keeps the word of its OpenAPI document, whatever is generated from it."""

import subprocess
import sys
from pathlib import Path

import pytest

from hostile_support import unharmed
from query_support import make_place, running
from server.query.security import Keys

pytestmark = pytest.mark.e2e


def attack(folder: Path, *options: str, keys: bool) -> None:
    """Let schemathesis loose on a service; it may find nothing."""
    place = make_place(folder)
    key, settings = "none", ["--rate", "1e6", "--burst", "1e6"]
    command = [sys.executable, "-m", "schemathesis.cli", "run"]
    # What there is in the catalogue no schema can say: a product or a category that is well-formed
    # and unknown is refused.
    command += ["--exclude-checks", "positive_data_acceptance", "--continue-on-failure"]
    command += ["--no-color", "--seed", "5", "--suppress-health-check", "all", *options]
    # A machine that is busy with other things is no fault of the service.
    command += ["--request-timeout", "120"]
    if keys:
        key = Keys(folder / "keys.json").add("tester")
        settings += ["--keys", str(folder / "keys.json")]
        command += ["--header", f"Authorization: Bearer {key}"]
    with running(place, *settings) as service:
        with unharmed(service, key):
            done = subprocess.run(
                [*command, f"{service.rest}/openapi.json"],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=1200,
                check=False,
            )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert " passed" in done.stdout
        asked = "".join(service.log).count("interface=rest")
        assert asked > 100


def test_what_is_generated_from_the_document_finds_no_fault(tmp_path: Path) -> None:
    attack(tmp_path, "--max-examples", "10", keys=False)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("keys", [False, True])
def test_much_that_is_generated_finds_no_fault(tmp_path: Path, keys: bool) -> None:
    attack(tmp_path, "--max-examples", "500", keys=keys)
