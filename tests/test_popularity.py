import numpy as np
import pandas as pd
import pytest

from common.features import Catalogue, ContentSpec
from common.popularity import rates


def _catalogue(size: int) -> Catalogue:
    types = [f"t{i % 40:02}" for i in range(size)]
    frame = pd.DataFrame({"item_id": [f"i{i:05}" for i in range(size)], "type": types})
    return Catalogue.of(frame, ContentSpec(features=("type",)))


def _truth(size: int) -> np.ndarray:
    """Popularity that mostly follows the type."""
    rng = np.random.default_rng(3)
    by_type = rng.lognormal(1.0, 1.0, 40)
    return by_type[np.arange(size) % 40] * rng.lognormal(0.0, 0.5, size)


def test_without_noise_rates_are_the_counts() -> None:
    counts = np.array([4.0, 0.0, 6.0])
    assert rates(counts, 0.0, ()) == pytest.approx([0.4, 0.0, 0.6])


def test_content_groups_bring_back_what_noise_hides() -> None:
    catalogue, truth = _catalogue(4000), _truth(4000)
    noise = 6.0
    noisy = truth + np.random.default_rng(4).normal(0.0, noise, len(truth))
    share = truth / truth.sum()
    cut = np.where(noisy > 1.5 * noise, noisy, 0.0)

    def error(estimate: np.ndarray) -> float:
        return float(np.abs(estimate - share).sum())

    shrunk = rates(noisy, noise, catalogue.features)
    assert error(shrunk) < 0.6 * error(cut / cut.sum())
    assert error(shrunk) < error(rates(noisy, noise, ()))


def test_rates_are_defined_for_every_input() -> None:
    catalogue = _catalogue(50)
    for counts in (np.zeros(50), np.full(50, -3.0), np.random.default_rng(1).normal(size=50)):
        found = rates(counts, 2.0, catalogue.features)
        assert np.isfinite(found).all()
        assert found.min() >= 0
        assert found.sum() == pytest.approx(1.0, abs=1e-5)
    assert not rates(np.zeros(3), 0.0, ()).any()


def test_noise_may_differ_from_product_to_product_and_where_nothing_came_the_rate_is_zero() -> None:
    catalogue = Catalogue.of(
        pd.DataFrame({"item_id": [f"i{k}" for k in range(6)], "type": list("aabbab")})
    )
    counts = np.array([9.0, 4.0, 1.0, 7.0, 0.5, 3.0])
    even = rates(counts, np.full(6, 2.0), catalogue.features)
    assert even == pytest.approx(rates(counts, 2.0, catalogue.features))
    # A count that is surer is shrunk less.
    noise = np.array([0.1, 2.0, 2.0, 2.0, 2.0, 2.0])
    surer = rates(counts, noise, catalogue.features)
    assert surer[0] / surer[1:].sum() > even[0] / even[1:].sum()
    # What was not released says nothing of anything else, whatever stands in its place.
    noise[[2, 4]] = np.inf
    found = rates(counts, noise, catalogue.features)
    others = np.where(np.isinf(noise), 1e6, counts)
    assert np.array_equal(found, rates(others, noise, catalogue.features))
    assert found[[2, 4]].tolist() == [0, 0]
    assert found.sum() == pytest.approx(1)
    assert not rates(counts, np.full(6, np.inf), catalogue.features).any()


def _by_hand(counts: np.ndarray, noise: np.ndarray, *groupings: np.ndarray) -> np.ndarray:
    """Empirical Bayes group by group, from the coarsest grouping to the finest, then by product."""
    estimate = np.full(len(counts), max(counts.mean(), 0.0))
    for group in groupings:
        inside = [group == value for value in np.unique(group)]
        mean = np.array([counts[own].mean() for own in inside])
        prior = np.array([estimate[own].mean() for own in inside])
        variance = np.array([(noise[own] ** 2).sum() / own.sum() ** 2 for own in inside])
        size = np.array([own.sum() for own in inside])
        spread = max(float(size @ ((mean - prior) ** 2 - variance)) / len(counts), 0.0)
        for own, m, p, v in zip(inside, mean, prior, variance, strict=True):
            estimate[own] = p + spread / (spread + v) * (m - p)
    estimate = np.maximum(estimate, 1e-6)
    relative = np.mean((counts - estimate) ** 2 - noise**2) / np.mean(estimate**2)
    spreads = max(relative, 1e-6) * estimate**2
    posterior = estimate + spreads / (spreads + noise**2) * (counts - estimate)
    kept = np.maximum(posterior, 0.02 * estimate)
    shares: np.ndarray = kept / kept.sum()
    return shares


@pytest.mark.parametrize("truth", ["uneven", "flat"])
def test_each_step_of_the_shrinkage_is_what_the_noise_leaves_to_believe(truth: str) -> None:
    """Two nested kinds of groups of unlike sizes; where nothing differs, next to nothing is left.

    A variance that is not taken off makes noise of the groups' popularity, and nothing is seen.
    """
    stream = np.random.default_rng(8)
    brand = np.sort(stream.integers(0, 30, 400))
    kind = brand // 6
    frame = pd.DataFrame(
        {
            "item_id": [f"i{k:03}" for k in range(400)],
            "brand": [f"b{k:02}" for k in brand],
            "type": [f"t{k}" for k in kind],
        }
    )
    # Named finest first: the order is that of their sizes.
    features = Catalogue.of(frame, ContentSpec(features=("brand", "type"))).features
    rate = np.full(400, 20.0) if truth == "flat" else stream.lognormal(3.0, 0.8, 30)[brand]
    noise = stream.uniform(5.0, 15.0, 400)
    counts = rate + stream.normal(0.0, noise)
    expected = _by_hand(counts, noise, kind, brand)
    assert rates(counts, noise, features) == pytest.approx(expected, rel=1e-4)
    even = np.full(400, 9.0)
    assert rates(counts, 9.0, features) == pytest.approx(
        _by_hand(counts, even, kind, brand), rel=1e-4
    )
    # Where nothing was released of a third of the products, the others keep their groups.
    out = stream.random(400) < 1 / 3
    found = rates(counts, np.where(out, np.inf, noise), features)
    rest = _by_hand(counts[~out], noise[~out], kind[~out], brand[~out])
    assert found[~out] == pytest.approx(rest, rel=1e-4)
