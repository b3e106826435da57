"""The folder of a sweep: what is finished stays, and only the same sweep may go on with it."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import ConfigError
from common.metrics import MetricSums
from simulations.documents import to_json, write_text
from simulations.finished_parts import LOCK, finished_parts
from simulations.report.building import ArmResult, ShopPart, ShopResult

_IDENTITY = "sweep-identity.json"
_WORK = "work"
_COUNTS = ("tail_recommended",)


class SweepFolder:
    """Finished pieces of one sweep, each written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fresh_work(self, name: str) -> Path:
        """Return an empty folder for what a piece needs while it is made."""
        work = self.folder / _WORK / name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        return work

    def end_work(self) -> None:
        """Remove what pieces needed while they were made."""
        shutil.rmtree(self.folder / _WORK, ignore_errors=True)

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a finished document; None where there is none."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def write(self, name: str, document: Mapping[str, Any]) -> None:
        """Keep a finished document."""
        write_text(self.folder / f"{name}.json", to_json(dict(document)))

    def read_arm(self, name: str, arm: str) -> ArmResult | None:
        """Return an arm without privacy that was measured before; None where it was not."""
        path = self.folder / f"{name}-{arm}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            facts = json.loads(str(arrays["facts"]))
            shops = {
                merchant_id: ShopResult(
                    MetricSums(
                        **{
                            field.name: _restored(field.name, arrays[f"{number}/{field.name}"])
                            for field in fields(MetricSums)
                        }
                    ),
                    ShopPart(took_part=shop["took_part"], reason=shop["reason"]),
                    shop["home_weights"],
                )
                for number, (merchant_id, shop) in enumerate(facts["shops"].items())
            }
        others = {key: ShopPart(**shop) for key, shop in facts["others"].items()}
        return ArmResult(arm, shops, None, facts["seconds"], facts["peak_mb"], others=others)

    def write_arm(self, name: str, result: ArmResult) -> None:
        """Keep an arm without privacy: later points are compared with it, customer by customer."""
        arrays: dict[str, Any] = {}
        for number, shop in enumerate(result.shops.values()):
            for field in fields(MetricSums):
                arrays[f"{number}/{field.name}"] = getattr(shop.sums, field.name)
        facts = {
            "seconds": result.seconds,
            "peak_mb": result.peak_mb,
            "shops": {
                key: {
                    "home_weights": dict(shop.home_weights) if shop.home_weights else None,
                    "took_part": shop.part.took_part,
                    "reason": shop.part.reason,
                }
                for key, shop in result.shops.items()
            },
            "others": {key: asdict(shop) for key, shop in result.others.items()},
        }
        path = self.folder / f"{name}-{result.name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}")
        with draft.open("wb") as file:
            np.savez_compressed(file, facts=np.array(json.dumps(facts)), **arrays)
        draft.replace(path)


def _restored(name: str, array: np.ndarray) -> Any:  # noqa: ANN401 - an array or a count
    return int(array) if name in _COUNTS else array


def _is_empty(folder: Path) -> bool:
    # A sweep that was killed in its first instant left no more than its lock.
    return folder.is_dir() and all(path.name == LOCK for path in folder.iterdir())


def _is_begun(folder: Path) -> bool:
    return any(path.name not in (LOCK, _IDENTITY, _WORK) for path in folder.iterdir())


@contextmanager
def sweep_folder(facts: Mapping[str, Any], out: Path) -> Iterator[SweepFolder]:
    """Give the folder of a sweep, ours alone while it is open.

    Raises
    ------
    ConfigError
        If the folder is in use, or holds another sweep or one of other code.
    """
    if out.exists() and not (out / _IDENTITY).exists() and not _is_empty(out):
        raise ConfigError(f"{out} is in use: give a folder that is new or empty, or move it away")
    with finished_parts(out, "sweep", facts, identity=_IDENTITY, out=out, begun=_is_begun):
        yield SweepFolder(out)
