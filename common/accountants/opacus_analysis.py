"""Opacus' accountants without Opacus' training.

``import opacus`` loads torch and much beside it: some three CPU seconds and 300 MB, in every
process that only asks what a plan costs. The files that compute it need numpy and scipy alone, so
they are loaded here under a package of their own, whose ``__init__`` files are left out.
"""

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

_PACKAGE = "_opacus_accountants"
# Its accountant class needs torch; what is loaded here names it, and never uses it.
_STAND_IN = f"{_PACKAGE}.rdp"


@cache
def rdp_module() -> ModuleType:
    """Return ``opacus.accountants.analysis.rdp``."""
    return _load("analysis.rdp")


@cache
def domain_module() -> ModuleType:
    """Return ``opacus.accountants.analysis.prv.domain``."""
    return _load("analysis.prv.domain")


@cache
def prv_module() -> ModuleType:
    """Return ``opacus.accountants.analysis.prv.prvs``."""
    return _load("analysis.prv.prvs")


def _load(name: str) -> ModuleType:
    found = importlib.util.find_spec("opacus")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "accountants"
    for package, path in (
        (_PACKAGE, folder),
        (f"{_PACKAGE}.analysis", folder / "analysis"),
        (f"{_PACKAGE}.analysis.prv", folder / "analysis" / "prv"),
    ):
        if package not in sys.modules:
            module = ModuleType(package)
            module.__path__ = [str(path)]
            sys.modules[package] = module
    if _STAND_IN not in sys.modules:
        stand_in = ModuleType(_STAND_IN)
        stand_in.RDPAccountant = None  # type: ignore[attr-defined]
        sys.modules[_STAND_IN] = stand_in
    return importlib.import_module(f"{_PACKAGE}.{name}")
