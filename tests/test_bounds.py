"""No reply and no sum of replies makes a state that shops would refuse, for good."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message
from hypothesis import given
from hypothesis import strategies as st

from client.app import app
from client.privacy.plan import check_state
from common.errors import PrivacyError, RunError
from common.model import initial_state, state_spec, trained_names
from common.protocol import (
    EVALUATE,
    ITEMS,
    POPULARITY,
    RELEASE,
    TRAIN,
    UPDATE,
    ModelPlan,
    TrainingPlan,
)
from federation_support import (
    Fault,
    FaultyGrid,
    make_job,
    make_settings,
    same,
    start_state,
    toy_app,
    write_federation,
)
from server.checkpoints import Checkpoint
from server.job import Event, Job
from server.rounds import messenger
from server.rounds.bounds import largest, refusal
from server.strategy import Federation

#: As of a new federation: the noisy power method, with memory that never ends.
PLAN = TrainingPlan(
    rounds=3,
    noise_multiplier=4.0,
    popularity_noise_multiplier=4.0,
    max_grad_norm=0.2,
    batch_normalizer=100.0,
    learning_rate=1.0,
    model=ModelPlan(dimension=4),
)


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Four real shops, of which the last one's budget is too small."""
    catalogue = write_federation(tmp_path)
    monkeypatch.setenv("FEDTAIL_SHOPS", str(tmp_path / "shops"))
    settings = make_settings(
        max_update_norm=0.0, timeout_seconds=60.0, server_optimizer="subspace", server_momentum=1.0
    )
    spec = state_spec(PLAN.model, catalogue.size)
    return Job("r", PLAN, settings, catalogue.fingerprint, spec, trained_names(PLAN))


def huge(exchange: str, value: float, at: int = 1) -> Fault:
    """Let the first shop send numbers of this size in one round."""

    def spoil(shop: int, kind: str, server_round: int, reply: Message) -> Message:
        if (shop, kind, server_round) == (0, exchange, at):
            signs = np.random.default_rng(1)
            sent = reply.content.array_records[UPDATE]
            reply.content[UPDATE] = ArrayRecord(
                {
                    name: Array(signs.choice([-value, value], array.shape).astype(np.float32))
                    for name, array in sent.items()
                }
            )
        return reply

    return spoil


def run(grid: FaultyGrid, job: Job) -> tuple[list[Event], list[Checkpoint]]:
    events: list[Event] = []
    saved: list[Checkpoint] = []
    items = job.shapes[POPULARITY][0]
    start = initial_state(PLAN.model, items) if job.plan is PLAN else start_state()
    Federation(grid, job, save=saved.append, report=events.append).run(start)
    return events, saved


def rounds(events: list[Event], fact: str) -> list[object]:
    return [event.get(fact) for event in events if event["event"] == "round"]


def test_a_reply_of_finite_but_huge_numbers_is_its_senders_rubbish(town: Job) -> None:
    """Its squares and their spectrum are beyond float32: every shop would refuse the next state."""
    events, saved = run(FaultyGrid(app, 4, fault=huge("update", 3e38)), town)
    assert rounds(events, "accepted") == [2, 3, 3]
    assert rounds(events, "declined") == [{"rubbish": 1}, {}, {}]
    assert rounds(events, "kept_old_model") == [False] * 3
    assert all(np.isfinite(array).all() for c in saved for array in c.state.values())


def test_counts_beyond_any_customers_are_their_senders_rubbish(town: Job) -> None:
    events, _ = run(FaultyGrid(app, 4, fault=huge("release", 3e38, at=0)), town)
    release = next(event for event in events if event["event"] == "release")
    assert (release["accepted"], release["declined"]) == (2, {"rubbish": 1})


def test_a_state_that_shops_would_refuse_is_not_made_of_any_sum(
    town: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of many rounds, or of a secure sum: there no bound on a reply is one on the state."""
    monkeypatch.setattr(messenger, "largest", lambda *_: 0.0)
    events, saved = run(FaultyGrid(app, 4, fault=huge("update", 3e38)), town)
    assert rounds(events, "accepted") == [3, 3, 3]
    assert rounds(events, "kept_old_model") == [True, False, False]
    assert "not finite" in str(rounds(events, "reason")[0])
    assert same(saved[0].state, saved[1].state)
    assert same(saved[0].memory, saved[1].memory)
    # The next rounds go on from what was kept.
    assert not same(saved[1].state, saved[2].state)
    assert all(np.isfinite(array).all() for c in saved for array in c.state.values())


@pytest.mark.parametrize("optimizer", ["none", "momentum", "adam", "yogi"])
def test_every_optimizer_keeps_the_old_model_where_float32_ends(optimizer: str) -> None:
    job = make_job(
        rounds=2,
        max_update_norm=0.0,
        server_optimizer=optimizer,
        # Adam and Yogi divide what is too large away again: no update is, the step may be.
        server_learning_rate=1e39 if optimizer in ("adam", "yogi") else 1e30,
    )
    events, saved = run(FaultyGrid(toy_app(), 4, fault=huge("update", 1e12)), job)
    assert rounds(events, "accepted") == [4, 4]
    assert rounds(events, "kept_old_model")[0] is True
    assert same(saved[0].state, saved[1].state)
    assert same(saved[0].memory, saved[1].memory)
    assert all(np.isfinite(array).all() for array in saved[-1].state.values())


def test_a_run_does_not_go_on_from_a_state_that_shops_would_refuse(town: Job) -> None:
    """Nor begins with one: a release that cannot be trained on would be paid for nothing."""
    for name, value in ((ITEMS, np.inf), (POPULARITY, np.nan), (ITEMS, 1e20)):
        state = initial_state(PLAN.model, town.shapes[POPULARITY][0])
        state[name] = np.full_like(state[name], value)
        grid = FaultyGrid(app, 4)
        federation = Federation(grid, town, save=lambda _: None, report=lambda _: None)
        with pytest.raises(RunError, match="nothing to go on from after round 0"):
            federation.run(state)
        assert grid.sent == []


@given(
    st.integers(0, 3),
    st.floats(-20, 20).map(lambda exponent: 2.0**exponent),
    st.floats(0.01, 30.0),
    st.lists(st.floats(1e-4, 10.0), max_size=3).map(tuple),
)
def test_the_server_refuses_what_a_shop_would_refuse_in_any_round_to_come(
    done: int, value: float, noise: float, norms: tuple[float, ...]
) -> None:
    plan = PLAN.model_copy(update={"noise_multiplier": noise, "first_norms": norms, "rounds": 4})
    job = Job("r", plan, make_settings(), "f" * 64, {}, (ITEMS,))
    state = {ITEMS: np.full((3, 2), value, np.float32)}

    def refuses(server_round: int) -> bool:
        try:
            check_state(plan, server_round, state)
        except PrivacyError:
            return True
        return False

    assert bool(refusal(job, done, state, {})) == any(map(refuses, range(done + 1, 5)))
    assert refusal(job, 4, state, {}) == ""


def test_no_shop_comes_near_the_bound_on_a_reply() -> None:
    """A million customers who all move one number one way, and ten times the noise."""
    customers, plan = 1e6, PLAN
    unit = plan.max_grad_norm * plan.learning_rate / plan.batch_normalizer
    honest = unit * (customers + 10 * plan.noise_multiplier)
    assert 1000 * honest < largest(plan, TRAIN, 1) < 1e9
    counts = customers + 10 * plan.popularity_noise_multiplier
    assert 1000 * counts < largest(plan, RELEASE, 0) < 1e10
    assert largest(plan, EVALUATE, 3) == 0.0
    open_plan = plan.model_copy(update={"private": False})
    assert largest(open_plan, TRAIN, 1) == largest(open_plan, RELEASE, 0) == 2.0**40
