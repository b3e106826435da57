"""Debian packages that tests need, installed where that can be done."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


def install(*packages: str) -> bool:
    """Install packages; return whether that can be done here."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    # apt refuses a second one at once, and each worker of the suite may come to need something.
    with (Path(tempfile.gettempdir()) / "fedtail-tests-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["apt-get", "update", "-q"], check=False, capture_output=True)
        subprocess.run(command, check=True, capture_output=True, env=environment)
    return True
