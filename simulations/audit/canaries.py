"""One-run audits: many strong canaries in one release, and the ε that the guesses refute.

Each canary is a customer whose gradient is as large as clipping allows, in rows that nobody else
reads, and is in by a fair coin of its own (Steinke, Nasr & Jagielski 2023, arXiv 2305.08846,
algorithm 1). No customer could be easier to see, so a step that hides these hides all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from client.privacy.noise import SeededNoise
from client.privacy.step import ExactDPStep, Tensors, UnitBatch
from common.accounting import Spend, calibrate, epsilon, plan_spends
from common.features import Catalogue
from common.protocol import ITEMS, POPULARITY, ModelPlan, TrainingPlan
from common.rng import derive
from common.schema import ShopEvents
from server.aggregation import ServerOptimizer
from simulations.audit.broken import BROKEN
from simulations.audit.decoding import gradients, histogram_rows
from simulations.audit.settings import AuditSection
from simulations.audit.statistics import guess, one_run_lower_bound
from simulations.audit.training import Release, only, train
from simulations.documents import Document

#: The audited steps: the one that shops run, then those with a mistake.
STEPS: dict[str, type[ExactDPStep]] = {"exact": ExactDPStep, **BROKEN}
#: The deployed round, histogram included, on a shop with planted customers.
TRAINING = "training"

# Clipping each by itself lets a unit that is in all of them weigh three times as much.
_TABLES = 9
_STEPS = 4
_CLIP = 1.0
_PHYSICAL = 4096
_ROUNDS = 3
# Below any canary's gradient, so that all are clipped.
_TRAINING_CLIP = 1e-5


@dataclass(frozen=True)
class Claim:
    """What a mechanism says of itself."""

    epsilon: float
    delta: float


def audit_step(name: str, claimed: float, settings: AuditSection, seed: int) -> Document:
    """Audit one of :data:`STEPS` with canaries that have a row of their own in each of its tables.

    Parameters
    ----------
    claimed
        The noise is what this ε needs over the audit's local steps; what is claimed is what the
        accountant says of them.
    """
    count, stream = settings.canaries, derive(seed, purpose=f"audit-coins-{claimed}-{name}")
    inside = stream.random(count) < 0.5
    sigma = calibrate(claimed, settings.claimed_delta, 1.0, 1.0, 0)[0] * _STEPS**0.5
    names = [f"table-{number}" for number in range(_TABLES)]
    step = STEPS[name](
        {table: torch.zeros(count, 1) for table in names},
        names,
        max_grad_norm=_CLIP,
        noise_multiplier=sigma,
        batch_normalizer=1.0,
        learning_rate=1.0,
        noise=SeededNoise(derive(seed, purpose=f"audit-noise-{claimed}-{name}")),
    )
    present = np.flatnonzero(inside)
    for _ in range(_STEPS):
        for start in range(0, len(present), _PHYSICAL):
            members = torch.from_numpy(present[start : start + _PHYSICAL]).unsqueeze(1)
            step.accumulate(_loss, UnitBatch(len(members), dict.fromkeys(names, members)))
        step.step()
    state = step.state()
    released = -np.stack([state[table].squeeze(1).double().numpy() for table in names])
    # Tables count by how little they vary: a function of what was released, so the theorem allows
    # it, and it finds a table that has less noise than the others.
    weights = 1.0 / np.maximum(released.var(axis=1), 1e-12)
    claim = Claim(
        epsilon([Spend(sigma, 1.0, _STEPS)], settings.claimed_delta).value, settings.claimed_delta
    )
    return canary_record(name, claim, weights @ released, inside, settings)


def audit_training(
    claimed: float,
    shop: ShopEvents,
    catalogue: Catalogue,
    settings: AuditSection,
    seed: int,
    progress: Callable[[str], object] = lambda _: None,
) -> Document:
    """Audit all releases of one plan by the deployed round, with canaries planted among customers.

    Each canary buys one product that no customer of the shop has bought. Where there are fewer of
    them than guesses, the shop has no other customers.
    """
    shop, free = with_room(shop, catalogue, settings)
    stream = derive(seed, purpose=f"audit-coins-{claimed}-{TRAINING}")
    inside = stream.random(len(free)) < 0.5
    plan = audited_plan(claimed, settings.claimed_delta)
    planted = plant(shop, free)
    everyone = np.concatenate([np.ones(len(shop.user_ids), dtype=bool), inside])
    scores = np.zeros(len(everyone))

    def look(release: Release) -> None:
        update = release.updates[shop.merchant_id]
        if release.server_round == 0:
            found = histogram_rows(plan, planted, catalogue).against(update[POPULARITY][:, None])
            scores[:] += found / plan.popularity_noise_multiplier**2
            return
        expected = gradients(plan, release.server_round, release.state, planted, catalogue)
        y = update[ITEMS].astype(np.float64) * (-plan.batch_normalizer / plan.learning_rate)
        scores[:] += expected.against(y) / (plan.noise_multiplier * plan.max_grad_norm) ** 2
        progress(f"round {release.server_round} of {plan.rounds}")

    noise_seed = int(derive(seed, purpose=f"audit-noise-{claimed}-{TRAINING}").integers(2**31))
    train(plan, ServerOptimizer(), [only(planted, everyone)], catalogue, noise_seed, look)
    claim = Claim(epsilon(plan_spends(plan), settings.claimed_delta).value, settings.claimed_delta)
    return canary_record(TRAINING, claim, scores[len(shop.user_ids) :], inside, settings)


def with_room(
    shop: ShopEvents, catalogue: Catalogue, settings: AuditSection
) -> tuple[ShopEvents, np.ndarray]:
    """Return a shop, and products of which none of its customers has bought one.

    Where there are fewer of them than guesses, the shop has no customers.
    """
    free = np.setdiff1d(np.arange(catalogue.size), shop.items)[: settings.canaries]
    if len(free) >= settings.guesses:
        return shop, free
    nobody = only(shop, np.zeros(len(shop.user_ids), dtype=bool))
    return nobody, np.arange(min(catalogue.size, settings.canaries))


def plant(shop: ShopEvents, items: np.ndarray) -> ShopEvents:
    """Return the shop with one more customer for each of the products ``items``, who bought it."""
    count, before = len(items), len(shop.user_ids)
    # Sorts after every id that begins with a character of its own.
    names = np.array([f"\U0010ffff{number:08d}" for number in range(count)], dtype=object)
    sessions = shop.sessions
    if sessions is not None:
        sessions = np.concatenate(
            [sessions, np.arange(count, dtype=np.int32) + sessions.max(initial=-1) + 1]
        )
    earliest = shop.timestamps.min() if len(shop) else 0
    return replace(
        shop,
        user_ids=np.concatenate([shop.user_ids, names]),
        users=np.concatenate([shop.users, np.arange(before, before + count, dtype=np.int32)]),
        items=np.concatenate([shop.items, items.astype(np.int32)]),
        timestamps=np.concatenate([shop.timestamps, np.full(count, earliest)]),
        weights=np.concatenate([shop.weights, np.ones(count, np.float32)]),
        sessions=sessions,
        attributes={
            name: np.concatenate([values, np.full(count, "", dtype=object)])
            for name, values in shop.attributes.items()
        },
    )


def _loss(rows: Tensors, _: Tensors, __: UnitBatch) -> torch.Tensor:
    """Return losses whose gradients are far above the bound, and the same in every table."""
    return sum((1000.0 * values.sum(dim=(1, 2)) for values in rows.values()), torch.zeros(1))


def audited_plan(claimed: float, delta: float) -> TrainingPlan:
    """Return a plan that clips every canary, with the noise that ``claimed`` needs."""
    plan = TrainingPlan(
        target_epsilon=claimed,
        target_delta=delta,
        rounds=_ROUNDS,
        max_grad_norm=_TRAINING_CLIP,
        model=ModelPlan(dimension=2, centred=False),
    )
    histogram, steps = calibrate(claimed, delta, plan.popularity_share, 1.0, _ROUNDS)
    return plan.model_copy(
        update={"popularity_noise_multiplier": histogram, "noise_multiplier": steps}
    )


def canary_record(
    name: str, claim: Claim, scores: np.ndarray, inside: np.ndarray, settings: AuditSection
) -> Document:
    """Return what guesses by ``scores`` about the coins ``inside``, both (C,), say of a claim."""
    correct, guesses = guess(scores, inside, settings.guesses)
    bound = one_run_lower_bound(len(inside), guesses, correct, claim.delta, settings.confidence)
    return {
        "step": name,
        "claimed_epsilon": claim.epsilon,
        "delta": claim.delta,
        "lower_bound": bound,
        "confidence": settings.confidence,
        "canaries": len(inside),
        "guesses": guesses,
        "correct": correct,
        "refuted": bound > claim.epsilon,
    }
