"""What stands before the clients' app: replies given again are those that the app would give."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message
from scipy import sparse

from client.app import app as client_app
from common.protocol import ITEMS, POPULARITY, ModelPlan, TrainingPlan
from federation_support import same, write_federation
from server.checkpoints import read_checkpoint
from simulations.attack.attackers import Conspiracy
from simulations.attack.poisoned import Poisoned, Remembered
from simulations.engine.in_process import Answers, run_in_process

OPEN = TrainingPlan(
    rounds=2,
    tuning_round=1,
    validation_from=1_700_000_036,
    private=False,
    model=ModelPlan(dimension=4),
)
PRIVATE = TrainingPlan(
    rounds=1,
    noise_multiplier=4.0,
    popularity_noise_multiplier=2.0,
    model=ModelPlan(dimension=4),
)
SHOPS, TARGET = 4, 7


class Counting:
    """The clients' app, and what it was asked."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def __call__(self, message: Message, context: Context) -> Message:
        self.asked[message.metadata.message_type] += 1
        return client_app(message, context)


def run(folder: Path, server: str, clients: Answers, plan: TrainingPlan = OPEN) -> None:
    run_in_process(
        plan,
        shops_folder=folder / "shops",
        shops=SHOPS,
        server_folder=folder / server,
        catalogue_folder=folder / "catalogue",
        run_config={"server-optimizer": "subspace", "seed": 5},
        clients=clients,
        keep=True,
    )


def states(folder: Path, server: str) -> list[dict[str, np.ndarray]]:
    checkpoints = folder / server / "checkpoints"
    return [read_checkpoint(checkpoints, number).state for number in range(3)]


def level(left: list[dict[str, np.ndarray]], right: list[dict[str, np.ndarray]]) -> list[bool]:
    return [same(a, b) for a, b in zip(left, right, strict=True)]


def test_a_run_that_asks_the_same_again_trains_nobody_and_comes_to_the_same(
    tmp_path: Path,
) -> None:
    write_federation(tmp_path, allow_unprotected=True)
    run(tmp_path, "plain", client_app)
    counting = Counting()
    remembered = Remembered(counting)
    for server in ("first", "second"):
        run(tmp_path, server, remembered)
        assert all(level(states(tmp_path, server), states(tmp_path, "plain")))
    asked = {kind: counting.asked[kind] for kind in ("train.release", "train.update")}
    assert asked == {"train.release": SHOPS, "train.update": OPEN.rounds * SHOPS}
    assert counting.asked["query.join"] == 2 * SHOPS


@pytest.mark.parametrize("room", [1, 2**30])
def test_a_bad_shop_does_not_speak_for_its_honest_self_in_later_runs(
    tmp_path: Path, room: int
) -> None:
    """However little is kept: with room for one reply all others are given anew."""
    catalogue = write_federation(tmp_path, allow_unprotected=True)
    run(tmp_path, "plain", client_app)
    history = sparse.csr_matrix(np.eye(1, catalogue.size, 3, dtype=np.float32))
    loud = Conspiracy("push-row", OPEN, catalogue, TARGET, history)
    remembered = Remembered(room=room)
    run(tmp_path, "clean", remembered)
    run(tmp_path, "bad", Poisoned(loud, {1}, 0, remembered))
    run(tmp_path, "alone", Poisoned(loud, {1}, 0))
    run(tmp_path, "again", remembered)
    plain, bad = states(tmp_path, "plain"), states(tmp_path, "bad")
    assert all(level(states(tmp_path, "clean"), plain))
    assert all(level(states(tmp_path, "again"), plain))
    assert all(level(states(tmp_path, "alone"), bad))
    assert bad[0][POPULARITY][TARGET] > 2 * plain[0][POPULARITY][TARGET]
    assert not np.array_equal(bad[2][ITEMS], plain[2][ITEMS])


def test_private_replies_are_made_and_paid_for_each_time(tmp_path: Path) -> None:
    write_federation(tmp_path)
    counting = Counting()
    remembered = Remembered(counting)
    for server in ("first", "second"):
        run(tmp_path, server, remembered, PRIVATE)
    # The cap of one of the four is too low for the plan.
    assert counting.asked["train.release"] == counting.asked["train.update"] == 2 * (SHOPS - 1)
