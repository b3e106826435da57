import numpy as np
import pytest
from scipy import sparse

from audit_support import plan_of, shops, trial, world
from client.privacy.noise import SeededNoise
from client.rounds.popularity_release import release_popularity
from client.training import train_round
from common.model import initial_state
from common.protocol import ITEMS, POPULARITY, Arrays, TrainingPlan
from common.rng import derive
from simulations.audit.decoding import (
    Candidates,
    Decoder,
    Outer,
    UpdateAttack,
    calibrated,
    decodes_rounds,
    gradients,
    histogram_rows,
)
from simulations.audit.training import Release, only, train


def dense(outer: Outer, row: int) -> np.ndarray:
    found: np.ndarray = np.outer(outer.x[[row]].toarray().ravel(), outer.w[row])
    return found


def state_of(plan: TrainingPlan) -> Arrays:
    state = initial_state(plan.model, world().catalogue.size)
    rates = derive(1, purpose="rates").random(world().catalogue.size).astype(np.float32)
    state[POPULARITY] = rates / rates.sum()
    return state


@pytest.mark.parametrize("arm", ["federated", "federated-dp"])
def test_the_attacker_knows_what_a_customer_adds(arm: str) -> None:
    # The same function that shops run, on a shop of one and without noise, is the reference.
    plan = plan_of(arm).model_copy(
        update={"noise_multiplier": 0.0, "popularity_noise_multiplier": 0.0, "tuning_round": 0}
    )
    catalogue, state = world().catalogue, state_of(plan)
    shop = shops()[0]
    for user in np.flatnonzero(np.diff(shop.offsets) > 2)[:3]:
        alone = only(shop, np.arange(len(shop.user_ids)) == user)
        stream = derive(0, purpose="unused")
        delta = train_round(plan, 1, state, alone, catalogue, SeededNoise(stream), stream)[ITEMS]
        expected = dense(gradients(plan, 1, state, shop, catalogue), user)
        scale = -plan.learning_rate / plan.batch_normalizer
        assert np.abs(delta).max() > 0
        assert delta == pytest.approx(
            scale * expected, rel=1e-3, abs=float(2e-4 * np.abs(delta).max())
        )
        counts = release_popularity(plan, alone, catalogue.size, SeededNoise(stream))[POPULARITY]
        rows = histogram_rows(plan, shop, catalogue)
        assert counts == pytest.approx(dense(rows, user).ravel(), abs=1e-5)


def test_inner_products_are_those_of_the_dense_gradients() -> None:
    stream = np.random.default_rng(0)
    outer = Outer(
        sparse.random_array((4, 9), density=0.5, rng=stream).tocsr(), stream.normal(size=(4, 3))
    )
    array = stream.normal(size=(9, 3))
    whole = np.stack([dense(outer, row).ravel() for row in range(4)])
    assert outer.products(outer) == pytest.approx(whole @ whole.T)
    assert outer.against(array) == pytest.approx(whole @ array.ravel())


def test_bits_are_decoded_exactly_without_noise_and_hardly_through_much() -> None:
    stream = np.random.default_rng(0)

    def outer() -> Outer:
        return Outer(
            sparse.csr_matrix(stream.random((20, 60)) * (stream.random((20, 60)) < 0.2)),
            stream.normal(size=(20, 4)),
        )

    inside, outside, bits = outer(), outer(), stream.random(20) < 0.5
    y = sum(dense(inside if bit else outside, row) for row, bit in enumerate(bits))
    clear, hidden = Decoder(20), Decoder(20)
    clear.see(inside, outside, np.asarray(y), 0.0)
    hidden.see(inside, outside, np.asarray(y) + stream.normal(size=(60, 4)) * 1e4, 1e4)
    assert ((clear.scores() > 0) == bits).all()
    assert np.abs(clear.scores()).min() > 100 * np.abs(hidden.scores()).max()


def test_a_candidate_without_a_trace_has_no_score() -> None:
    rows = sparse.csr_matrix(np.array([[1.0, 0.0], [0.0, 0.0]]))
    nothing = Outer(sparse.csr_matrix((2, 2)), np.ones((2, 1)))
    decoder = Decoder(2)
    decoder.see(Outer(rows, np.ones((2, 1))), nothing, np.array([[1.0], [0.0]]), 0.1)
    assert decoder.scores()[0] > 0
    assert np.isnan(decoder.scores()[1])
    empty = Decoder(0)
    none = Outer(sparse.csr_matrix((0, 2)), np.ones((0, 1)))
    empty.see(none, none, np.zeros((2, 1)), 1.0)
    assert empty.scores().shape == (0,)


def test_every_bit_is_decoded_from_updates_without_noise() -> None:
    plan, catalogue = trial("federated").plan, world().catalogue
    candidates = [Candidates(shop, np.ones(len(shop), dtype=bool)) for shop in shops()]
    bits = [np.random.default_rng(k).random(len(s.user_ids)) < 0.5 for k, s in enumerate(shops())]
    data = [only(c.events, b) for c, b in zip(candidates, bits, strict=True)]
    attacks = [UpdateAttack(plan, catalogue, c) for c in candidates]
    rounds = []

    def show(release: Release) -> None:
        rounds.append(release.server_round)
        for attack in attacks:
            attack.see(release)

    train(plan, trial("federated").optimizer, data, catalogue, 0, show)
    assert rounds == list(range(plan.rounds + 1))
    for attack, found in zip(attacks, bits, strict=True):
        scores = attack.decoder.scores()
        known = np.isfinite(scores)
        assert ((scores > 0) == found)[known].mean() > 0.98


def test_a_shop_with_some_customers_never_had_the_others() -> None:
    shop = shops()[0]
    kept = np.arange(len(shop.user_ids)) % 3 == 0
    some = only(shop, kept)
    assert some.user_ids.tolist() == shop.user_ids[kept].tolist()
    assert (some.matrix(2_000) != shop.matrix(2_000)[kept]).nnz == 0
    assert (np.diff(some.users) >= 0).all()


def test_candidates_are_in_by_their_bits() -> None:
    shop = shops()[0]
    questioned = shop.items == shop.items[0]
    candidates = Candidates(shop, questioned)
    assert len(candidates.data(np.ones(len(shop.user_ids), dtype=bool))) == len(shop)
    assert len(candidates.without) == np.count_nonzero(~questioned)
    bits = np.arange(len(shop.user_ids)) == shop.users[0]
    left = candidates.data(bits)
    assert (left.users[left.items == shop.items[0]] == shop.users[0]).all()
    assert len(left) > len(candidates.without)


def test_calibration_finds_what_only_differs_within_a_candidate() -> None:
    stream = np.random.default_rng(0)
    inside = stream.random((12, 200)) < 0.5
    level = 100 * stream.normal(size=200)
    useful = level + inside + 0.3 * stream.normal(size=(12, 200))
    useless = stream.normal(size=(12, 200))
    scores = calibrated(np.stack([useful, useless], axis=1), inside)
    assert np.mean((scores > np.median(scores)) == inside) > 0.85
    nothing = calibrated(np.stack([useless, level + useless], axis=1), inside)
    assert abs(np.mean((nothing > np.median(nothing)) == inside) - 0.5) < 0.05


def test_only_plans_with_a_known_gradient_are_decoded_by_rounds() -> None:
    plan = plan_of("federated")
    assert decodes_rounds(plan)
    assert not decodes_rounds(plan.model_copy(update={"loss": "softmax"}))
    tower = plan.model.model_copy(update={"tower": "mlp"})
    assert not decodes_rounds(plan.model_copy(update={"model": tower}))
    attack = UpdateAttack(
        plan.model_copy(update={"loss": "softmax"}),
        world().catalogue,
        Candidates(shops()[0], np.ones(len(shops()[0]), dtype=bool)),
    )
    attack.see(Release(1, {}, {shops()[0].merchant_id: {}}))
    assert not attack.decoder.evidence.any()
