import numpy as np
import pytest
from scipy import stats

from client.privacy.noise import NoiseSource, SeededNoise, SystemNoise

SOURCES = [SeededNoise(np.random.default_rng(7)), SystemNoise()]


@pytest.fixture(params=SOURCES, ids=lambda source: source.name)
def source(request: pytest.FixtureRequest) -> NoiseSource:
    found: NoiseSource = request.param
    return found


def test_normals_are_normal(source: NoiseSource) -> None:
    values = source.normal((501, 999), 3.0)
    assert values.dtype == np.float64
    assert values.shape == (501, 999)
    n = values.size
    assert abs(values.mean()) < 6 * 3.0 / n**0.5
    # Standard error of a standard deviation is σ/√(2n): a 1% error of the noise is seen.
    assert abs(values.std() / 3.0 - 1) < 6 / (2 * n) ** 0.5
    assert stats.kstest(values.ravel()[:100_000] / 3.0, "norm").pvalue > 1e-6


def test_an_array_is_filled_with_standard_normals(source: NoiseSource) -> None:
    values = np.full((400, 250), np.nan)
    source.fill(values)
    assert abs(values.std() - 1) < 6 / (2 * values.size) ** 0.5
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-6


def test_normals_are_independent_of_their_neighbours(source: NoiseSource) -> None:
    values = source.normal(200_000, 1.0)
    for lag in (1, 2, 100_000):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 6 / (200_000 - lag) ** 0.5


@pytest.mark.parametrize("shape", [(), 0, 1, 7, (0, 4), (3, 1), 262_145])
def test_any_shape_is_filled(source: NoiseSource, shape: tuple[int, ...] | int) -> None:
    values = source.normal(shape, 1.0)
    assert values.shape == ((shape,) if isinstance(shape, int) else shape)
    assert np.isfinite(values).all()
    assert np.unique(values).size == values.size


def test_no_noise_where_none_is_asked_for(source: NoiseSource) -> None:
    assert not source.normal((3, 4), 0.0).any()


def test_poisson_samples_hold_each_unit_with_the_rate(source: NoiseSource) -> None:
    n, rate = 200_000, 0.05
    mask = source.poisson_sample(n, rate)
    assert mask.dtype == np.bool_
    assert abs(mask.mean() - rate) < 6 * (rate * (1 - rate) / n) ** 0.5
    assert source.poisson_sample(100, 1.0).all()
    assert source.poisson_sample(0, 0.5).shape == (0,)


def test_seeded_noise_replays_and_system_noise_does_not() -> None:
    one, two = (SeededNoise(np.random.default_rng(3)).normal(9, 1.0) for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.intersect1d(SystemNoise().normal(99, 1.0), SystemNoise().normal(99, 1.0)).size


def test_every_bit_of_the_systems_noise_comes_of_256_that_were_drawn_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = bytes(range(32))

    def noise(drawn: bytes) -> bytes:
        monkeypatch.setattr("os.urandom", lambda n: drawn[:n].ljust(n, b"\0"))
        return SystemNoise().normal(9, 1.0).tobytes()

    others = [bytes([*key[:k], key[k] ^ 1, *key[k + 1 :]]) for k in range(32)]
    assert len({noise(key), *map(noise, others)}) == 33
    assert noise(key) == noise(key)
