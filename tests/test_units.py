"""Privacy units: who one is, what it holds, and what it may not depend on."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from client.units import (
    Units,
    event_weights,
    of_round,
    tell_if_none,
    uniforms,
    unit_digests,
    unit_histories,
    unit_rows,
)
from common.protocol import TrainingPlan, Unit
from common.schema import ShopEvents

DAY = 86_400
N = 6


def events_of(rows: list[tuple[int, int, float, int]], users: int = 3) -> ShopEvents:
    """Return events of (user, item, weight, session), one a day."""
    table = np.array(rows, dtype=float).reshape(len(rows), 4)
    return ShopEvents(
        merchant_id="m",
        user_ids=np.array([f"u{k}" for k in range(users)], dtype=object),
        users=table[:, 0].astype(np.int32),
        items=table[:, 1].astype(np.int32),
        timestamps=np.arange(len(rows)) * DAY,
        weights=table[:, 2].astype(np.float32),
        sessions=table[:, 3].astype(np.int32),
    )


ROWS = [(0, 1, 0.1, 0), (0, 1, 1.0, 1), (0, 2, 0.5, 1), (2, 1, 0.5, 2), (2, 1, 0.1, 2)]


def test_a_product_counts_once_with_its_largest_weight() -> None:
    units = unit_histories(events_of(ROWS), "customer", N)
    expected = np.zeros((3, N))
    expected[0, 1], expected[0, 2], expected[2, 1] = 1.0, 0.5, 0.5
    np.testing.assert_array_equal(units.history.toarray(), expected.astype(np.float32))
    assert units.history.nnz == 3
    assert units.owners.tolist() == [0, 1, 2]


def test_a_basket_is_one_unit_of_one_customer() -> None:
    units = unit_histories(events_of(ROWS), "basket", N)
    assert units.owners.tolist() == [0, 0, 2]
    assert units.history.toarray()[:, 1].tolist() == [np.float32(0.1), 1.0, 0.5]
    assert units.history.toarray()[:, 2].tolist() == [0.0, 0.5, 0.0]


def test_an_empty_shop_without_sessions_has_no_baskets_rather_than_an_error() -> None:
    # An error would be a reply that tells the empty shop from all others.
    empty = replace(events_of([], users=0), sessions=None)
    units = unit_histories(empty, "basket", N)
    assert units.history.shape == (0, N)
    assert units.owners.size == 0


def test_an_interaction_is_one_record() -> None:
    units = unit_histories(events_of(ROWS), "interaction", N)
    assert units.history.shape == (5, N)
    assert np.diff(units.history.indptr).tolist() == [1] * 5
    assert units.owners.tolist() == [0, 0, 0, 2, 2]


record = st.tuples(
    st.integers(0, 2), st.integers(0, N - 1), st.sampled_from([0.1, 0.5, 1.0]), st.integers(0, 1)
)


@given(st.lists(record, max_size=25), st.sampled_from(["customer", "basket"]))
@settings(max_examples=60, deadline=None)
def test_units_are_the_brute_force_maximum(
    rows: list[tuple[int, int, float, int]], unit: Unit
) -> None:
    # A session is a pair of user and number, as the encoder makes it.
    rows = sorted((u, i, w, 2 * u + s) for u, i, w, s in rows)
    found = unit_histories(events_of(rows), unit, N)
    keys = [0, 1, 2] if unit == "customer" else sorted({row[3] for row in rows})
    place = 0 if unit == "customer" else 3
    expected = np.zeros((len(keys), N), np.float32)
    for row in rows:
        k = keys.index(int(row[place]))
        expected[k, row[1]] = max(expected[k, row[1]], np.float32(row[2]))
    np.testing.assert_array_equal(found.history.toarray(), expected)
    assert found.owners.tolist() == [k if unit == "customer" else k // 2 for k in keys]


@pytest.mark.parametrize("unit", ["customer", "basket", "interaction"])
def test_a_shop_without_records_has_units_without_records(unit: Unit) -> None:
    empty = events_of([], users=0)
    found: Units = unit_histories(empty, unit, N)
    assert found.history.shape == (0, N)
    assert len(found.owners) == 0


def test_weight_halves_with_every_half_life_before_the_plans_date() -> None:
    events = events_of([(0, 1, 1.0, 0), (0, 2, 0.5, 0), (0, 3, 1.0, 0)])
    np.testing.assert_allclose(event_weights(events, 1.0, 2 * DAY), [0.25, 0.25, 1.0])
    # Nothing grows, not even what came after the plan's date.
    np.testing.assert_allclose(event_weights(events, 1.0, DAY), [0.5, 0.5, 1.0])
    np.testing.assert_array_equal(event_weights(events, 0.0, 2 * DAY), events.weights)


def test_rows_have_norm_one_and_empty_rows_stay_empty() -> None:
    units = unit_histories(events_of(ROWS), "customer", N)
    norms = np.linalg.norm(unit_rows(units.history).toarray(), axis=1)
    np.testing.assert_allclose(norms, [1, 0, 1], rtol=1e-6)


def test_rows_of_forgotten_weights_have_norm_one_too() -> None:
    # 75 half-lives ago: float32 rounds most of these squares to 0, and one up; by such a norm the
    # row would have length 49, and its unit 49 times the histogram's sensitivity.
    history = np.full((1, 5000), 2.6e-23, np.float32)
    history[0, 0] = 3.9e-23
    norm = np.linalg.norm(unit_rows(sparse.csr_matrix(history)).toarray())
    assert norm == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("unit", ["customer", "basket"])
def test_a_units_digest_is_the_same_whoever_else_is_there(unit: Unit) -> None:
    stream = np.random.default_rng(3)
    count, users, size = 400, 60, 50
    weights = stream.choice([0.5, 1.0], count).astype(np.float32)
    owners, items = np.sort(stream.integers(0, users, count)), stream.integers(0, size, count)
    names = np.array([f"u{k:02}" for k in range(users)], dtype=object)
    baskets = owners * 10 + stream.integers(0, 4, count)

    def found(kept: np.ndarray) -> list[int]:
        present, codes = np.unique(owners[kept], return_inverse=True)
        events = ShopEvents(
            merchant_id="m",
            user_ids=names[present],
            users=codes.astype(np.int32),
            items=items[kept].astype(np.int32),
            timestamps=np.zeros(len(codes), np.int64),
            weights=weights[kept],
            sessions=np.unique(baskets[kept], return_inverse=True)[1].astype(np.int32),
        )
        return [int(d) for d in unit_digests(unit_histories(events, unit, size), events.user_ids)]

    whole = found(np.ones(count, dtype=bool))
    assert len(set(whole)) > 0.9 * len(whole)
    for gone in (0, 17, users - 1):
        rest = found(owners != gone)
        assert set(rest) < set(whole)
    assert found(np.zeros(count, dtype=bool)) == []


def test_a_units_draws_depend_on_nothing_but_key_and_number() -> None:
    whole = uniforms(42, np.arange(100), 8)
    np.testing.assert_array_equal(uniforms(42, np.array([7, 93]), 8), whole[[7, 93]])
    np.testing.assert_array_equal(uniforms(42, np.array([7]), 3), whole[7:8, :3])
    assert not np.isin(uniforms(43, np.arange(100), 8), whole).any()


@pytest.mark.statistical
@pytest.mark.parametrize("key", [0, 1, 2**62 + 12345])
def test_draws_look_uniform_and_independent(key: int) -> None:
    draws = uniforms(key, np.arange(20_000), 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert len(np.unique(draws)) == draws.size
    counts, _ = np.histogram(draws, bins=50, range=(0, 1))
    expected = draws.size / 50
    # χ² of 49 degrees of freedom is below 100 but for one time in 30,000.
    assert ((counts - expected) ** 2 / expected).sum() < 100
    correlation = np.corrcoef(np.concatenate([draws.T, draws[1:].T[:, :0]], axis=1))
    assert np.abs(correlation - np.eye(4)).max() < 0.04
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.04


def test_another_units_records_do_not_move_a_unit() -> None:
    events = events_of(ROWS)
    changed = replace(events, items=np.where(events.users == 2, 5, events.items))
    a, b = (unit_histories(e, "customer", N).history for e in (events, changed))
    assert (a[0] != b[0]).nnz == 0
    assert (a[2] != b[2]).nnz


@pytest.mark.parametrize(("since", "told"), [(4 * DAY, False), (5 * DAY, True)])
def test_a_shop_whose_records_are_all_too_old_hears_that_it_sends_noise_alone(
    since: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # A run went on from an earlier model, and nobody had brought the shop's tables up to date.
    plan = TrainingPlan(
        rounds=1, noise_multiplier=5.0, popularity_noise_multiplier=5.0, train_from=since
    )
    tell_if_none(plan, 0, events_of(ROWS))  # The popularity release counts them.
    tell_if_none(plan, 1, events_of([]))  # Of an empty shop its check tells.
    assert caplog.messages == []
    tell_if_none(plan, 1, events_of(ROWS))
    assert len(caplog.messages) == told
    assert all(text.startswith("data=read records=none: ") for text in caplog.messages)


def test_a_shop_newer_than_the_first_rounds_records_is_not_told_to_bring_its_tables_up_to_date(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Its engineer, and whoever ran a simulation, read so at each round until the last third.
    plan = TrainingPlan(
        rounds=4,
        noise_multiplier=5.0,
        popularity_noise_multiplier=5.0,
        tuning_round=3,
        validation_from=DAY,
    )
    events = events_of(ROWS)
    events = replace(events, timestamps=events.timestamps + DAY)
    assert [of_round(plan, events, number).any() for number in (0, 3, 4)] == [False, False, True]
    for number in range(5):
        tell_if_none(plan, number, events)
    assert caplog.messages == []
