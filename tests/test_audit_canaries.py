import numpy as np
import pytest
import torch

from audit_support import shops, world
from client.privacy.noise import SeededNoise
from client.privacy.step import ExactDPStep, Tensors, UnitBatch
from common.rng import derive
from simulations.audit.broken import BROKEN
from simulations.audit.canaries import audit_step, audit_training, plant
from simulations.audit.settings import AuditSection

SETTINGS = AuditSection(canaries=2_000, guesses=200, claims=(2.0,))


def stepped(kind: type[ExactDPStep], noise: float) -> tuple[Tensors, Tensors]:
    """Two tables of four rows; one unit reads the first row of each, gradients 30 and 40."""
    start = {"a": torch.zeros(4, 1), "b": torch.zeros(4, 1)}
    step = kind(
        start,
        ["a", "b"],
        max_grad_norm=1.0,
        noise_multiplier=noise,
        batch_normalizer=1.0,
        learning_rate=1.0,
        noise=SeededNoise(derive(0, purpose="noise")) if noise else None,
    )
    first = torch.zeros(1, 1, dtype=torch.int64)

    def loss(rows: Tensors, _: Tensors, __: UnitBatch) -> torch.Tensor:
        return 30 * rows["a"].sum(dim=(1, 2)) + 40 * rows["b"].sum(dim=(1, 2))

    step.accumulate(loss, UnitBatch(1, {"a": first, "b": first}))
    step.step()
    return start, step.state()


def test_each_broken_step_has_just_its_mistake() -> None:
    clipped = {name: -float(stepped(kind, 0.0)[1]["a"][0]) for name, kind in BROKEN.items()}
    assert clipped["clipping-per-table"] == pytest.approx(1.0)
    assert clipped["half-noise"] == clipped["table-without-noise"] == pytest.approx(0.6, rel=1e-4)
    _, exact = stepped(ExactDPStep, 5.0)
    _, half = stepped(BROKEN["half-noise"], 5.0)
    # Rows that nobody read hold noise alone, of the same stream.
    assert torch.allclose(2 * half["a"][1:], exact["a"][1:], rtol=1e-4)
    _, silent = stepped(BROKEN["table-without-noise"], 5.0)
    assert not silent["a"][1:].any()
    assert silent["b"][1:].abs().min() > 0


@pytest.mark.parametrize("name", ["exact", *BROKEN])
def test_records_say_what_was_guessed(name: str) -> None:
    record = audit_step(name, 2.0, SETTINGS, 3)
    assert (record["canaries"], record["guesses"], record["step"]) == (2_000, 200, name)
    assert record["claimed_epsilon"] == pytest.approx(2.0, rel=0.003)
    assert record["refuted"] == (record["lower_bound"] > record["claimed_epsilon"])
    assert record == audit_step(name, 2.0, SETTINGS, 3)
    assert record["refuted"] == (name in ("clipping-per-table", "table-without-noise"))


def test_planted_customers_buy_what_nobody_else_does() -> None:
    shop = shops()[0]
    free = np.setdiff1d(np.arange(world().catalogue.size), shop.items)[:50]
    planted = plant(shop, free)
    before = len(shop.user_ids)
    assert planted.user_ids.tolist() == sorted(planted.user_ids.tolist())
    assert planted.user_ids[:before].tolist() == shop.user_ids.tolist()
    matrix = planted.matrix(world().catalogue.size)
    assert (np.diff(matrix.indptr)[before:] == 1).all()
    assert np.asarray(matrix[:, free].sum(axis=0)).ravel().tolist() == [1.0] * 50
    assert planted.before(int(shop.timestamps.max())).users.max() == len(planted.user_ids) - 1


def test_canaries_are_alone_where_customers_buy_everything() -> None:
    settings = SETTINGS.model_copy(update={"canaries": 600, "guesses": 600})
    everything = plant(shops()[0], np.arange(world().catalogue.size - 100))
    record = audit_training(2.0, everything, world().catalogue, settings, 0)
    assert (record["canaries"], record["guesses"]) == (600, 600)
    assert record["lower_bound"] < record["claimed_epsilon"]
