"""What a run was measured on."""

import os
import platform
from importlib.metadata import version
from typing import Any

import psutil

_PACKAGES = ("flwr", "opacus", "torch", "numpy")


def machine_facts() -> dict[str, Any]:
    """Return processors, memory in GB, system and the versions that matter."""
    return {
        "cpus": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }
