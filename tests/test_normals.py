"""The mapping from random words to normal values, under fixed words."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from client.privacy import noise
from client.privacy.noise import Keystream
from client.privacy.normals import _GAPS, Normals, _Tables


def draw(n: int, key: int = 0) -> np.ndarray:
    values = np.empty(n)
    Normals(Keystream(key.to_bytes(32, "big"))).fill(values)
    return values


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    return draw(4_000_000)


def blocks(first: int, count: int) -> bytes:
    """Return AES-256 of successive blocks under the zero key."""
    cipher = Cipher(algorithms.AES256(bytes(32)), modes.ECB()).encryptor()
    return b"".join(cipher.update((first + i).to_bytes(16, "big")) for i in range(count))


def test_the_keystream_is_aes_in_counter_mode() -> None:
    """The GCM specification's test case 14: zero key, nonce and text encrypt to this."""
    words = Keystream(bytes(32))
    assert words(2).tobytes().hex() == "cea7403d4d606b6e074ec5d3baf39d18"
    # It goes on where it stopped, whatever the pieces.
    whole = Keystream(bytes(32))(9).copy()
    assert np.array_equal(words(3), whole[2:5])
    assert np.array_equal(words(4), whole[5:])
    assert Keystream(bytes(32))(1 << 14).tobytes() == blocks(2, 1 << 13)


def test_a_nonce_is_left_before_its_counter_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_STREAM", 8)
    words = Keystream(bytes(32))
    found = [words(n).tobytes() for n in (6, 4, 6)]
    # Each nonce is the upper 96 bits of its blocks: none is ever encrypted twice.
    assert found == [blocks(2, 3), blocks((1 << 32) + 2, 2), blocks((2 << 32) + 2, 3)]


def test_cells_and_remainder_are_the_whole_curve() -> None:
    """By the normal's own integral: whatever is drawn from the remainder has just its mass."""
    tables = _Tables()
    edges, floors = tables.edges[: tables.tail_bin], tables.floors[: tables.tail_bin]
    width = 2.0**-6
    under = stats.norm.cdf(edges + width) - stats.norm.cdf(edges)
    remainder = 2 * ((under - floors * width).sum() + stats.norm.sf(tables.tail_bin * width))
    assert tables.left_out == pytest.approx(remainder, abs=1e-14)
    assert len(tables.lows) == 1 << 15
    # No rectangle rises above the curve, and each has as many cells as its area says.
    assert (floors <= stats.norm.pdf(edges + width)).all()
    lows, cells = np.unique(tables.lows, return_counts=True)
    areas = np.concatenate([floors[::-1], floors]) * width
    assert len(lows) == 2 * tables.tail_bin
    assert cells * (1 - tables.left_out) / 2**15 == pytest.approx(areas, rel=1e-12)


def test_each_value_is_left_out_with_its_chance_alone() -> None:
    normals = Normals(Keystream(bytes(32)))
    sizes = [1, 5, 100, 1 << 14, 3000] * 150
    masks = []
    for n in sizes:
        mask = np.zeros(n, dtype=bool)
        mask[normals._left_out(n)] = True
        masks.append(mask)
    mask, chance = np.concatenate(masks), _Tables().left_out
    assert abs(mask.mean() - chance) < 5 * (chance * (1 - chance) / len(mask)) ** 0.5
    both = (mask[1:] & mask[:-1]).mean()
    assert abs(both - chance**2) < 5 * (chance**2 / len(mask)) ** 0.5
    # The first of each call is as any other.
    first = np.mean([part[0] for part in masks])
    assert abs(first - chance) < 5 * (chance / len(sizes)) ** 0.5


def test_moments_are_those_of_the_normal(many: np.ndarray) -> None:
    n = len(many)
    assert abs(many.mean()) < 5 / n**0.5
    assert abs(many.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs(stats.skew(many)) < 5 * (6 / n) ** 0.5
    assert abs(stats.kurtosis(many)) < 5 * (24 / n) ** 0.5


def test_the_distribution_is_the_normal_one(many: np.ndarray) -> None:
    assert stats.kstest(many, "norm").pvalue > 1e-4


def test_every_stretch_of_a_64th_has_its_share(many: np.ndarray) -> None:
    """Finer than a rectangle: seams between rectangles and wedges would show."""
    edges = np.arange(-4.0, 4.0 + 1e-9, 1 / 256)
    counts, _ = np.histogram(many, edges)
    expected = np.diff(stats.norm.cdf(edges)) * len(many)
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert stats.chi2.sf(chi, len(expected)) > 1e-4


@pytest.mark.parametrize("depth", [2.0, 2.9, 3.0, 3.2, 4.0, 4.5])
def test_tails_hold_what_they_should(many: np.ndarray, depth: float) -> None:
    expected = stats.norm.sf(depth) * len(many)
    for found in ((many > depth).sum(), (many < -depth).sum()):
        assert abs(found - expected) < 5 * expected**0.5


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@settings(max_examples=200, deadline=None)
def test_any_word_gives_a_finite_value(first: int, second: int) -> None:
    random = np.random.default_rng(0)

    def words(n: int) -> np.ndarray:
        found = random.integers(2**64, size=n, dtype=np.uint64)
        found[0], found[-1] = first, second
        return found

    values = np.empty(5)
    Normals(words).fill(values)
    assert np.isfinite(values).all()
    assert np.abs(values).max() < 10


def test_tails_reach_beyond_eight_sigma() -> None:
    """The furthest that words can bring about: the first place of the tail, accepted."""
    tables = _Tables()
    furthest = np.flatnonzero(tables.bins == tables.tail_bin)[0]

    def words(n: int) -> np.ndarray:
        if n in (5, _GAPS):
            # The largest uniform: no gap between the values that are left out.
            return np.full(n, 2**64 - 1, np.uint64)
        return np.concatenate([np.full(n // 2, furthest, np.uint64), np.zeros(n // 2, np.uint64)])

    values = np.empty(5)
    Normals(words).fill(values)
    assert (values > 8.0).all()


def test_words_used_once_give_independent_values(many: np.ndarray) -> None:
    for lag in (1, 2, 1 << 15):
        found = np.corrcoef(many[:-lag], many[lag:])[0, 1]
        assert abs(found) < 5 / (len(many) - lag) ** 0.5
    assert np.unique(many).size == many.size


def test_pieces_are_filled_like_a_whole() -> None:
    normals = Normals(Keystream(bytes(32)))
    parts = [np.empty(n) for n in (1, 7, 1 << 15, 3)]
    for part in parts:
        normals.fill(part)
    values = np.concatenate(parts)
    assert stats.kstest(values, "norm").pvalue > 1e-4
    assert np.unique(values).size == values.size
