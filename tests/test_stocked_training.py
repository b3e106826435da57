"""What a shop trains and releases of what it stocks: nothing of anything else, by public facts."""

from dataclasses import replace

import numpy as np
import pytest

from client.privacy.noise import SeededNoise
from client.rounds.popularity_release import release_popularity, whole_popularity
from client.training import train_round, whole_gradients
from common.blocks import learned_of
from common.features import Catalogue
from common.grid import delta_step
from common.model import trained_spec
from common.protocol import ITEMS, POPULARITY, Arrays, TrainingPlan
from common.schema import ShopEvents
from common.shop_state import ShopState, Slices, read_slice
from common.stocked_rows import products_of, sent_rows, sent_shapes
from federation_support import same
from test_training import PLANS, N, catalogue, plan_of, shop, state_of

__all__ = ["catalogue"]

STOCKED = np.flatnonzero(np.random.default_rng(7).random(N) < 0.6)
EVERY = pytest.mark.parametrize("name", PLANS)


def train(
    plan: TrainingPlan,
    events: ShopEvents,
    catalogue: Catalogue,
    stocked: np.ndarray | None,
    seed: int = 5,
) -> Arrays:
    noise, stream = SeededNoise(np.random.default_rng(seed)), np.random.default_rng(6)
    state: Arrays | ShopState = state_of(plan)
    if stocked is not None:
        sent = Slices(plan, state_of(plan), catalogue).of(stocked)
        state = read_slice(plan, sent, catalogue, stocked)
    return train_round(plan, 1, state, events, catalogue, noise, stream, stocked)


def release(plan: TrainingPlan, events: ShopEvents, stocked: np.ndarray | None) -> Arrays:
    return release_popularity(plan, events, N, SeededNoise(np.random.default_rng(5)), stocked)


def of_stock(events: ShopEvents) -> ShopEvents:
    """The shop without its records of what it does not stock; its customers stay."""
    return events.select(np.isin(events.items, STOCKED))


@EVERY
@pytest.mark.parametrize("private", [True, False])
def test_a_stock_of_the_whole_catalogue_changes_no_bit(
    name: str, private: bool, catalogue: Catalogue
) -> None:
    plan = plan_of(name, private=private)
    events = shop()
    assert same(train(plan, events, catalogue, np.arange(N)), train(plan, events, catalogue, None))
    assert same(release(plan, events, np.arange(N)), release(plan, events, None))


@EVERY
@pytest.mark.parametrize("private", [True, False])
def test_records_of_what_is_not_stocked_change_no_bit_of_what_leaves(
    name: str, private: bool, catalogue: Catalogue
) -> None:
    plan = plan_of(name, private=private)
    events = shop()
    stocked = of_stock(events)
    assert 0 < len(stocked) < len(events)
    assert len(stocked.user_ids) == len(events.user_ids)
    assert same(train(plan, events, catalogue, STOCKED), train(plan, stocked, catalogue, STOCKED))
    assert same(release(plan, events, STOCKED), release(plan, stocked, STOCKED))
    # Which records those are follows from the table: another one, another release.
    assert not same(release(plan, events, STOCKED[1:]), release(plan, stocked, STOCKED[:-1]))


def test_records_of_what_is_not_stocked_change_no_step_of_a_secure_sum(
    catalogue: Catalogue,
) -> None:
    plan, events = plan_of("features", private=True), shop()
    sent = Slices(plan, state_of(plan), catalogue).of(STOCKED)
    known = read_slice(plan, sent, catalogue, STOCKED)

    def sums(events: ShopEvents) -> Arrays:
        stream = np.random.default_rng(6)
        found = whole_gradients(plan, 1, known, events, catalogue, stream, STOCKED)
        return {**found, POPULARITY: whole_popularity(plan, events, N, STOCKED)}

    assert same(sums(events), sums(of_stock(events)))


def test_baskets_are_units_of_what_is_stocked_too(catalogue: Catalogue) -> None:
    """A basket of other products alone stays a unit, which adds nothing, whatever is in it."""
    plan = plan_of("linear", private=True, unit="basket")
    events = shop()
    unlisted = ~np.isin(events.items, STOCKED)
    items = events.items.copy()
    items[unlisted] = np.setdiff1d(np.arange(N), STOCKED)[0]
    other = replace(events, items=items)
    assert same(train(plan, events, catalogue, STOCKED), train(plan, other, catalogue, STOCKED))
    assert same(release(plan, events, STOCKED), release(plan, other, STOCKED))
    assert not same(release(plan, events, None), release(plan, other, None))


@EVERY
def test_stocked_rows_alone_leave_and_content_whole(name: str, catalogue: Catalogue) -> None:
    plan = plan_of(name, private=True)
    shapes = trained_spec(plan.model, N)
    learned = learned_of(plan.model, state_of(plan)[POPULARITY], catalogue)
    rows = sent_rows(products_of(plan, shapes, learned), STOCKED)
    found = train(plan, shop(), catalogue, STOCKED)
    assert {n: a.shape for n, a in found.items()} == sent_shapes(shapes, rows)
    if plan.model.groups:
        assert found[ITEMS].shape == shapes[ITEMS]
    else:
        assert found[ITEMS].shape == (np.isin(learned, STOCKED).sum(), 5)
        assert len(found[ITEMS]) < len(learned)
    assert release(plan, shop(), STOCKED)[POPULARITY].shape == STOCKED.shape


@pytest.mark.parametrize("name", ["linear", "few items", "features", "customers", "mlp", "split"])
def test_what_is_learned_of_stocked_records_is_what_whole_updates_would_hold(
    name: str, catalogue: Catalogue
) -> None:
    """Without noise, a shop that sells what it stocks sends the rows of its whole update."""
    plan = plan_of(name)
    events = of_stock(shop())
    whole, found = train(plan, events, catalogue, None), train(plan, events, catalogue, STOCKED)
    learned = learned_of(plan.model, state_of(plan)[POPULARITY], catalogue)
    rows = sent_rows(products_of(plan, trained_spec(plan.model, N), learned), STOCKED)[ITEMS]
    assert found[ITEMS] == pytest.approx(whole[ITEMS][rows], rel=1e-5, abs=1e-7)
    assert not whole[ITEMS][~rows].any()
    for other in set(whole) - {ITEMS}:
        assert found[other] == pytest.approx(whole[other], rel=1e-5, abs=1e-7)
    counts = release(plan, events, None)[POPULARITY]
    assert release(plan, events, STOCKED)[POPULARITY] == pytest.approx(counts[STOCKED])


def test_negatives_are_drawn_from_what_is_stocked(catalogue: Catalogue) -> None:
    """A row that a shop does not stock is no parameter: nothing can be learned on it."""
    plan = plan_of("softmax", private=False, negatives=400)
    few = STOCKED[:3]
    events = shop().select(np.isin(shop().items, few))
    found = train(plan, events, catalogue, few)[ITEMS]
    # Each of the three is a target or a negative of somebody.
    assert found.shape == (3, 5)
    assert (np.abs(found).sum(axis=1) > 0).all()


@pytest.mark.parametrize("name", ["linear", "softmax", "features", "momentum", "sampled", "mlp"])
@pytest.mark.parametrize("stocked", [[], [3]])
def test_a_shop_that_stocks_next_to_nothing_takes_part(
    name: str, stocked: list[int], catalogue: Catalogue
) -> None:
    plan = plan_of(name, private=True)
    found = train(plan, shop(), catalogue, np.array(stocked, dtype=np.int64))
    assert found[ITEMS].shape == (len(stocked), 5)
    assert all(np.isfinite(array).all() for array in found.values())
    for other in set(found) - {ITEMS}:
        assert found[other].any()
    assert release(plan, shop(), np.array(stocked, dtype=np.int64))[POPULARITY].shape == (
        len(stocked),
    )


@pytest.mark.parametrize("name", ["linear", "sampled", "momentum", "softmax"])
def test_every_row_that_leaves_has_the_noise_of_the_plan(name: str, catalogue: Catalogue) -> None:
    """A shop without customers sends noise alone: as much in each row as without a table."""
    plan = plan_of(name, private=True, model={"dimension": 400})
    nobody = shop(0)
    noise = train(plan, nobody, catalogue, STOCKED)[ITEMS].astype(np.float64)
    step = plan.learning_rate * plan.noise_multiplier * plan.clipping_norm(1)
    size = step / plan.batch_normalizer
    if name == "momentum":
        # Of three steps the last moves once, the first by 1 + β + β².
        beta = plan.local_momentum
        size *= np.sqrt(sum(sum(beta**k for k in range(n)) ** 2 for n in (1, 2, 3)))
    else:
        size *= plan.local_steps**0.5
    within = 5 * (2 / noise.shape[1]) ** 0.5
    assert (noise**2).mean(axis=1) == pytest.approx(np.full(len(noise), size**2), rel=within)
    assert (noise / delta_step(plan, 1) % 1 == 0).all()


def test_every_count_that_leaves_has_the_noise_of_the_plan() -> None:
    plan = plan_of("linear", private=True)
    sources = [SeededNoise(np.random.default_rng(seed)) for seed in range(200)]
    counts = np.stack(
        [release_popularity(plan, shop(0), N, noise, STOCKED)[POPULARITY] for noise in sources]
    )
    rel = 5 * (2 / len(counts)) ** 0.5
    expected = np.full(len(STOCKED), plan.popularity_noise_multiplier**2)
    assert (counts.astype(float) ** 2).mean(axis=0) == pytest.approx(expected, rel=rel)


def test_one_customer_moves_what_leaves_by_the_clipping_norm_at_most(catalogue: Catalogue) -> None:
    """Also one who bought much that is not stocked, or nothing else."""
    plan = plan_of("features", private=True).model_copy(
        update={
            "noise_multiplier": 1e-4,
            "popularity_noise_multiplier": 1e-4,
            "max_grad_norm": 0.01,
        }
    )
    events = shop(seed=3)
    bound = plan.clipping_norm(1) * plan.learning_rate / plan.batch_normalizer
    whole, counts = train(plan, events, catalogue, STOCKED), release(plan, events, STOCKED)
    moved = []
    for user in range(0, len(events.user_ids), 3):
        # The others keep their numbers, and so their draws.
        without = events.select(events.users != user)
        less = train(plan, without, catalogue, STOCKED)
        square = sum(float(((whole[n] - less[n]).astype(float) ** 2).sum()) for n in whole)
        moved.append(square**0.5 / bound)
        difference = counts[POPULARITY] - release(plan, without, STOCKED)[POPULARITY]
        assert np.linalg.norm(difference) <= 1 + 0.01
    assert max(moved) <= 1 + 0.01
    # The bound is reached: what is not stocked spends nothing of it.
    assert np.median(moved) > 0.99
