"""Where a run starts: from the plan's seed, or from the model of an earlier run.

A later run goes on from the last model with what is new (``train_from`` in its plan). What the
earlier one learned stays in the new model, so its plan counts in the new model's privacy statement
too, and its noise is no better than the weaker of both.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from common.artifact import Manifest, load_model
from common.catalogue.catalogue_versions import carry_over, with_popularity
from common.errors import ArtifactError
from common.features import Catalogue
from common.model import initial_state
from common.protocol import POPULARITY, Arrays, Noise, TrainingPlan

logger = logging.getLogger(__name__)

# What of a plan's model says which row is of what, and how many there are.
_SHAPE = (
    *("dimension", "learned_items", "feature_rows", "customer_rows", "groups"),
    *("tower", "hidden"),
)


@dataclass(frozen=True)
class Earlier:
    """One run that a model was trained in before: its name and plan."""

    version: str
    plan: TrainingPlan


_CHAIN: TypeAdapter[tuple[Earlier, ...]] = TypeAdapter(tuple[Earlier, ...])


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes
    ----------
    state
        Before the popularity release, on the run's own catalogue.
    settle
        Returns the state of round 0, given the state before and the released popularity (n,).
    earlier
        The runs that are in the state, the first one first.
    noise
        The weakest noise in it.
    """

    state: Arrays
    settle: Callable[[Arrays, np.ndarray], Arrays]
    earlier: tuple[Earlier, ...] = ()
    noise: Noise = "system"

    @property
    def facts(self) -> list[dict[str, Any]]:
        """``earlier`` as plain JSON values, for a manifest."""
        found: list[dict[str, Any]] = _CHAIN.dump_python(self.earlier, mode="json")
        return found


def from_seed(plan: TrainingPlan, catalogue: Catalogue) -> Start:
    """Return the start of a run that knows nothing yet."""
    return Start(initial_state(plan.model, catalogue.size), with_popularity_alone)


def with_popularity_alone(state: Arrays, popularity: np.ndarray) -> Arrays:
    """Return a state on a released popularity, its rows as they are."""
    return {**state, POPULARITY: popularity}


def from_model(
    folder: Path,
    plan: TrainingPlan,
    catalogue: Catalogue,
    published: Callable[[str], Catalogue],
) -> Start:
    """Return the start of a run that goes on from an earlier model.

    Parameters
    ----------
    published
        Returns the catalogue of a fingerprint; asked where the model is of another one and its
        rows are of groups.

    Raises
    ------
    ArtifactError
        If the model is damaged, of another shape, or protects another unit than the plan.
    """
    model = load_model(folder)
    before = _plan(model.manifest, folder)
    _check_fits(before, plan, folder)
    arrays = model.arrays
    if model.manifest.catalogue_fingerprint != catalogue.fingerprint:
        named = plan.model.groups
        old = published(model.manifest.catalogue_fingerprint) if named else None
        arrays = carry_over(arrays, model.item_ids, catalogue, plan.model, before=old)
    logger.info("starts from model=%s", model.manifest.version)
    return Start(
        arrays,
        lambda state, popularity: with_popularity(state, popularity, catalogue, plan.model),
        (*_chain(model.manifest, folder), Earlier(model.manifest.version, before)),
        _noise(model.manifest.privacy),
    )


def _plan(manifest: Manifest, folder: Path) -> TrainingPlan:
    values = manifest.config.get("plan")
    # The shape of the wire may have changed since; the model's own shape is what counts here.
    fields = {k: v for k, v in values.items() if k != "version"} if isinstance(values, dict) else {}
    try:
        return TrainingPlan.model_validate(fields or None)
    except ValidationError as error:
        raise ArtifactError(
            f"the manifest of {folder} holds no plan of this version: start without it"
        ) from error


def _chain(manifest: Manifest, folder: Path) -> tuple[Earlier, ...]:
    try:
        return _CHAIN.validate_python(manifest.config.get("earlier", ()))
    except ValidationError as error:
        raise ArtifactError(
            f"the manifest of {folder} does not say which runs were before it: start without it"
        ) from error


def _noise(privacy: Mapping[str, Any] | None) -> Noise:
    """Return the noise that a statement names; one that names none is taken for the weakest."""
    return "system" if privacy is not None and privacy.get("noise") == "system" else "seeded"


def _check_fits(before: TrainingPlan, plan: TrainingPlan, folder: Path) -> None:
    differ = [n for n in _SHAPE if getattr(before.model, n) != getattr(plan.model, n)]
    if differ:
        was = ", ".join(f"{name} = {getattr(before.model, name)!r}" for name in differ)
        raise ArtifactError(
            f"{folder} is a model of another shape than the plan's: it has {was}. Give the plan "
            "the same, or start without it"
        )
    if before.private and plan.private and before.unit != plan.unit:
        raise ArtifactError(
            f"{folder} protects a {before.unit}, the plan a {plan.unit}: one statement cannot "
            "speak for both; start without it"
        )
