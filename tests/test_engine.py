"""Opacus' engine for units: from public constants, and its count held against the ledger's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import client.training
from client.privacy.engine import UnitPrivacyEngine
from client.privacy.layers import UnitEmbedding
from client.privacy.noise import SeededNoise
from client.privacy.optimizer import UnitOptimizer
from client.privacy.plan import planned_events
from client.privacy.step import ExactDPStep, UnitBatch
from client.training import train_round
from common.errors import PrivacyError
from common.features import Catalogue
from test_training import catalogue, plan_of, shop, state_of

__all__ = ["catalogue"]


def test_a_data_loader_is_refused() -> None:
    layer = UnitEmbedding(torch.zeros(3, 2))
    optimizer = torch.optim.SGD([{"params": [layer.weight], "name": "item"}], lr=0.1)
    with pytest.raises(PrivacyError, match="how many customers"):
        UnitPrivacyEngine().make_private(
            layers={"item": layer},
            optimizer=optimizer,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            batch_normalizer=1.0,
            sample_rate=0.1,
            noise=None,
            lazy=True,
            data_loader=DataLoader(TensorDataset(torch.zeros(5, 1))),
        )


@given(st.integers(0, 4), st.lists(st.integers(0, 3), max_size=3))
@settings(max_examples=15, deadline=None)
def test_each_step_is_counted_once_at_the_stated_rate(steps: int, sizes: list[int]) -> None:
    step = ExactDPStep(
        {"item": torch.zeros(4, 2)},
        {"item"},
        max_grad_norm=1.0,
        noise_multiplier=1.25,
        batch_normalizer=1.0,
        learning_rate=0.1,
        sample_rate=0.03,
        noise=SeededNoise(np.random.default_rng(0)),
    )
    for _ in range(steps):
        for size in sizes:
            batch = UnitBatch(size, {"item": torch.zeros((size, 2), dtype=torch.int64)})
            step.accumulate(lambda rows, *_: rows["item"].sum((1, 2)), batch)
        step.step()
    assert step.accountant.history == ([(1.25, 0.03, steps)] if steps else [])


@pytest.mark.parametrize("customers", [0, 1, 24])
@pytest.mark.parametrize("changes", [{}, {"local_momentum": 0.5}])
def test_the_engine_counts_what_the_ledger_is_charged(
    customers: int,
    changes: dict[str, float],
    catalogue: Catalogue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[ExactDPStep] = []

    class Kept(ExactDPStep):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(client.training, "ExactDPStep", Kept)
    plan = plan_of("sampled", private=True, rounds=2, **changes)
    noise, stream = SeededNoise(np.random.default_rng(0)), np.random.default_rng(1)
    for server_round in (1, 2):
        train_round(plan, server_round, state_of(plan), shop(customers), catalogue, noise, stream)
    charged = planned_events(plan, "run", first_round=1)
    counted = [entry for step in made for entry in step.accountant.history]
    assert counted == [(e.noise_multiplier, e.sample_rate, e.steps) for e in charged]


def test_a_step_that_clips_otherwise_is_a_few_lines() -> None:
    """What audits swap in: both hooks are used, and nothing else decides."""

    class Broken(UnitOptimizer):
        def clip(self, norms: torch.Tensor) -> torch.Tensor:
            return torch.full_like(norms, 0.5)

        def noise_std(self, name: str) -> float:
            return 0.0 if name == "item" else super().noise_std(name)

    class BrokenStep(ExactDPStep):
        optimizer_class = Broken

    step = BrokenStep(
        {"item": torch.zeros(4, 2), "dense": torch.zeros(3)},
        {"item"},
        max_grad_norm=1e-3,
        noise_multiplier=1.0,
        batch_normalizer=1.0,
        learning_rate=1.0,
        noise=SeededNoise(np.random.default_rng(0)),
    )
    batch = UnitBatch(1, {"item": torch.tensor([[2]])})
    step.accumulate(lambda rows, *_: rows["item"].sum((1, 2)), batch)
    assert step.optimizer.factors.tolist() == [[0.5, 0.5]]
    step.step()
    state = step.state()
    assert state["item"].tolist() == [[0.0, 0.0], [0.0, 0.0], [-0.5, -0.5], [0.0, 0.0]]
    assert state["dense"].all()
