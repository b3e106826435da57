"""The image's Dockerfile, read without an engine."""

import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from compose_support import ROOT, read_compose

DOCKERFILE = ROOT / "deploy/Dockerfile"
TEXT = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text()))
LINES = [line.split(maxsplit=1) for line in TEXT.splitlines() if line.strip()]
SERVICE = read_compose().services["superlink"]


def of(instruction: str) -> list[str]:
    """Return the arguments of every such instruction, in order."""
    return [rest for word, rest in LINES if word == instruction]


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name("hadolint")
    return subprocess.run(
        [tool, str(path)], capture_output=True, text=True, check=False, timeout=60
    )


def test_it_passes_hadolint(tmp_path: Path) -> None:
    done = lint(DOCKERFILE)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.read_text().replace("${PYTHON_IMAGE}", "python:latest"))
    assert "DL3007" in lint(wrong).stdout


def test_it_starts_from_the_pinned_image_that_compose_names() -> None:
    default = next(a for a in of("ARG") if a.startswith("PYTHON_IMAGE="))
    assert default.partition("=")[2] == SERVICE["build"]["args"]["PYTHON_IMAGE"]
    assert {line.split()[0] for line in of("FROM")} == {"${PYTHON_IMAGE}"}
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert requires == ">=3.11,<3.12"
    assert ":3.11." in default


def test_it_runs_as_the_user_that_compose_names() -> None:
    assert of("USER")[-1] == SERVICE["user"] == "10001:10001"


def test_every_version_is_the_locks() -> None:
    install = next(run for run in of("RUN") if "pip install" in run)
    assert "--constraint requirements.lock" in install
    assert "['project']['dependencies']" in install
    locked = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
    }
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in needed:
        name = re.split(r"[\[<>=]", requirement)[0].lower()
        assert name in locked, name
    # Whoever builds names PyTorch's index; no host stands here.
    assert 'TORCH_INDEX=""' in of("ARG")
    assert "://" not in TEXT


def test_all_that_it_copies_is_there_and_let_through() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    passed = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        source
        for line in of("COPY")
        if not line.startswith("--from=")
        for source in line.split()[:-1]
    }
    assert copied == passed
    for source in copied:
        assert (ROOT / source).exists(), source


@pytest.mark.parametrize(
    "path", ["federation/ca/ca.key", "shop/keys/node.key", ".git/config", "runs/x", ".env", "tests"]
)
def test_nothing_private_reaches_the_build(path: str) -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    passed = [line[1:] for line in ignore if line.startswith("!")]
    assert not any(fnmatch(path, p) or path.startswith(f"{p}/") for p in passed)


def test_the_image_holds_what_a_bundle_is_made_of() -> None:
    from common.bundle import FEDERATION

    copied = " ".join(of("COPY"))
    for name in FEDERATION.packages:
        assert f"COPY {name} /app/{name}" in TEXT
    assert "pyproject.toml /app/" in copied
