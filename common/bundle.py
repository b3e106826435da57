"""The code of a run as the bundle that travels, and the digest by which a shop approves it.

The operator's command line hands Flower a folder and Flower packs it; a shop packs the same folder
to learn the digest beforehand. Both go through :func:`stage`, so neither the checkout's name nor
what else lies in it matters. Packing is left to Flower's own command in a process of its own:
a digest of ours that differed from Flower's would approve nothing.
"""

import hashlib
import io
import lzma
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError, RunError
from common.programs.processes import finished

#: Flower sends no larger ones.
MAX_BYTES = 10 * 1024 * 1024
_MANIFEST = ".info/CONTENT"
_UNPACKED_MAX_BYTES = 20 * MAX_BYTES
_NAME = "fedtail"
_SECONDS = 300.0
# What reading an archive of a stranger's may raise, or one that was damaged.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(ValueError, OSError, RuntimeError, EOFError),
)


@dataclass(frozen=True)
class FlowerApp:
    """A Flower app: its folder, which holds pyproject.toml, and the packages it is made of."""

    folder: Path
    packages: tuple[str, ...]


#: The federation that shops deploy.
FEDERATION = FlowerApp(Path(__file__).resolve().parent.parent, ("client", "common", "server"))


def stage(app: FlowerApp, root: Path) -> Path:
    """Copy the app's code, and only that, below ``root``, under a name that Flower accepts."""
    target = root / _NAME
    target.mkdir()
    shutil.copy(app.folder / "pyproject.toml", target)
    for package in app.packages:
        shutil.copytree(
            app.folder / package,
            target / package,
            ignore=_no_part_of_a_run,
        )
    return target


def _no_part_of_a_run(folder: str, names: list[str]) -> set[str]:
    """Return what of a folder stays behind: all but code, and code that no run calls.

    A shop's engineer approves what is here, so the less the better. Editors and notebooks keep
    copies of code in hidden folders.
    """
    left = shutil.ignore_patterns("__pycache__", "test_*", ".*", "query")(folder, names)
    files = {name for name in names if not (Path(folder) / name).is_dir()}
    return left | {name for name in files if not name.endswith(".py")}


def build(app: FlowerApp = FEDERATION) -> bytes:
    """Return the bundle that Flower would send for ``app``.

    Raises
    ------
    RunError
        If Flower refuses to pack it, or does not get to its end.
    """
    with tempfile.TemporaryDirectory(prefix="ft-bundle-") as name:
        root = Path(name)
        folder, out = stage(app, root), root / "out"
        out.mkdir()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FLWR_")}
        environment |= {
            "FLWR_HOME": str(root / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        done = finished(
            [sys.executable, "-m", "flwr.cli.app", "build", "--app", str(folder)],
            env=environment,
            cwd=out,
            seconds=_SECONDS,
            what=f"packing {app.folder}",
        )
        found = list(out.glob("*.fab"))
        if done.returncode or len(found) != 1:
            raise RunError(f"Flower cannot pack {app.folder}\n{done.stdout}{done.stderr}")
        return found[0].read_bytes()


def digest(bundle: bytes) -> str:
    """Return the SHA-256 by which Flower names a bundle, and a shop approves it."""
    return hashlib.sha256(bundle).hexdigest()


def contents(bundle: bytes) -> dict[str, bytes]:
    """Return the files in a bundle, by name; nothing of it is executed or written anywhere.

    Raises
    ------
    InputError
        If it is not a bundle, or would unpack to more than any bundle of ours.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            names = [entry.filename for entry in entries]
            if len(set(names)) < len(names):
                raise InputError("the bundle holds two files of one name: which would run?")
            if sum(entry.file_size for entry in entries) > _UNPACKED_MAX_BYTES:
                raise InputError("the bundle unpacks to far more than a bundle may hold")
            return {n: archive.read(n) for n in names if n != _MANIFEST}
    except _UNREADABLE as error:
        raise InputError(f"this is not a Flower app bundle: {error}") from error
