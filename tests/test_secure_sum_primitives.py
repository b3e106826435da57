import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, SecureSumError
from common.secure_sum import primitives
from common.secure_sum.encoding import WRAP_BITS, coordinate_bound, from_words, to_words
from common.secure_sum.primitives import (
    add_keystream,
    agree,
    derive,
    digest,
    is_signed,
    public_key,
    seal,
    sign,
    unseal,
)
from common.secure_sum.sharing import combine, split
from secure_sum_support import node_key


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


def test_key_agreement_gives_the_answers_of_rfc_7748_section_6_1() -> None:
    alice = unhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = unhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    shared = unhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    theirs = unhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    ours = unhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert public_key(alice) == ours
    assert public_key(bob) == theirs
    assert agree(alice, theirs) == agree(bob, ours) == shared


def test_a_key_of_small_order_is_no_key_to_agree_with() -> None:
    with pytest.raises(SecureSumError, match="agree"):
        agree(primitives.fresh(), bytes(32))


def test_derivation_gives_the_answer_of_rfc_5869_case_1() -> None:
    secret, salt = b"\x0b" * 22, bytes(range(13))
    info = bytes(range(0xF0, 0xFA))
    known = unhex(
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    assert derive(secret, salt, info) == known[:32]
    assert HKDF(hashes.SHA256(), 42, salt, info).derive(secret) == known


def test_the_keystream_is_aes_256_in_counter_mode() -> None:
    """NIST SP 800-38A, F.5.5 for the cipher; ours is the same from counter 0, as 32-bit words."""
    key = unhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = modes.CTR(unhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))
    plain = unhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    known = unhex("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5")
    assert Cipher(algorithms.AES256(key), counter).encryptor().update(plain) == known
    # From counter f0...ff on, as words: the stream is what the blocks' encryptions say.
    blocks = b"".join(k.to_bytes(16, "big") for k in range(20_000))
    stream = Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(blocks)
    total = np.zeros(80_000, np.uint32)
    add_keystream(total, key)
    assert np.array_equal(total, np.frombuffer(stream, "<u4"))
    first = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    block = first.update(unhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))
    assert bytes(a ^ b for a, b in zip(block, plain[:16], strict=True)) == known[:16]


@given(st.integers(0, 70_000), st.binary(min_size=32, max_size=32))
@settings(max_examples=30, deadline=None)
def test_what_was_added_can_be_taken_off(length: int, key: bytes) -> None:
    start = np.arange(length, dtype=np.uint32) * np.uint32(2**31 - 1)
    total = start.copy()
    add_keystream(total, key)
    assert length < 4 or not np.array_equal(total, start)
    add_keystream(total, key, subtract=True)
    assert np.array_equal(total, start)


def test_sealed_texts_open_only_for_their_key_and_what_they_are_bound_to() -> None:
    key, other = primitives.fresh(), primitives.fresh()
    sealed = seal(key, b"shares", b"session")
    assert unseal(key, sealed, b"session") == b"shares"
    damaged = bytes([*sealed[:-1], sealed[-1] ^ 1])
    for wrong in (
        (other, sealed, b"session"),
        (key, sealed, b"another"),
        (key, damaged, b"session"),
        (key, b"", b"session"),
    ):
        with pytest.raises(SecureSumError, match="sealed"):
            unseal(*wrong)
    # A shop set back within a session would seal another text with the same key.
    assert seal(key, b"shares", b"session")[:12] != sealed[:12]


def test_signatures_hold_for_one_key_one_purpose_and_one_text() -> None:
    key, text = node_key(0), digest("view", b"x")
    signature = sign(key, "consistency", text)
    assert is_signed(key.public_key(), signature, "consistency", text)
    assert not is_signed(node_key(1).public_key(), signature, "consistency", text)
    assert not is_signed(key.public_key(), signature, "advertisement", text)
    assert not is_signed(key.public_key(), signature, "consistency", digest("view", b"y"))
    assert not is_signed(key.public_key(), b"", "consistency", text)


def test_what_is_signed_of_a_sum_is_no_text_that_is_signed_of_anything_else() -> None:
    """Flower has the same key sign the time of each request, and sends it as it is."""
    key = node_key(0)
    signature = sign(key, "consistency", b"2026-11-30T12:00:00")
    whole = b"fedtail secure sum\0consistency\x002026-11-30T12:00:00"
    key.public_key().verify(signature, whole, ec.ECDSA(hashes.SHA384()))
    assert not is_signed(key.public_key(), key.sign(b"t", ec.ECDSA(hashes.SHA384())), "", b"t")


def test_no_two_lists_of_parts_have_one_digest() -> None:
    found = {digest("l", b"ab", b"c"), digest("l", b"a", b"bc"), digest("l", b"abc"), digest("la")}
    assert len(found) == 4


@given(st.binary(min_size=32, max_size=32), st.integers(1, 8), st.integers(0, 6), st.randoms())
@settings(max_examples=40, deadline=None)
def test_any_threshold_of_shares_gives_the_secret_back(
    secret: bytes,
    threshold: int,
    more: int,
    random: "st.random.Random",  # type: ignore[name-defined]
) -> None:
    shares = dict(enumerate(split(secret, threshold, threshold + more)))
    assert all(len(share) == 32 for share in shares.values())
    kept = random.sample(sorted(shares), threshold)
    assert combine({place: shares[place] for place in kept}, threshold) == secret
    with pytest.raises(SecureSumError, match="takes"):
        combine({place: shares[place] for place in kept[1:]}, threshold)


@given(
    st.dictionaries(
        st.integers(0, 120), st.binary(min_size=32, max_size=32), min_size=1, max_size=9
    )
)
@settings(max_examples=40, deadline=None)
def test_any_shares_are_put_together_as_the_library_does(shares: dict[int, bytes]) -> None:
    theirs = b"".join(
        Shamir.combine([(p + 1, s[start : start + 16]) for p, s in shares.items()], ssss=False)
        for start in (0, 16)
    )
    assert combine(shares, len(shares)) == theirs


def test_too_few_shares_are_consistent_with_every_secret() -> None:
    """For two shares of a threshold of 3 and *any* secret there is a third that gives it.

    The third share is computed: with two given values, the value at x = 3 is an affine function of
    the secret, one to one in each block. So each of the secrets is as likely as before.
    """
    secret = primitives.fresh()
    shares = split(secret, 3, 5)
    for wanted in (bytes(32), b"\xff" * 32, primitives.fresh(), secret):
        third = b""
        for start in (0, 16):
            # Lagrange: the polynomial through (0, wanted), (1, s1), (2, s2) at 3. PyCryptodome
            # interpolates at 0, so the points are moved by 3: addition is xor in GF(2^128).
            points = [(0, wanted), (1, shares[0]), (2, shares[1])]
            moved = [(x ^ 3, text[start : start + 16]) for x, text in points]
            third += Shamir.combine(moved, ssss=False)
        assert combine({0: shares[0], 1: shares[1], 2: third}, 3) == wanted
        assert (third == shares[2]) == (wanted == secret)


def test_the_two_halves_of_a_secret_have_polynomials_of_their_own() -> None:
    """Equal halves of a secret do not make equal halves of a share."""
    half = primitives.fresh()[:16]
    for share in split(half + half, 2, 4):
        assert share[:16] != share[16:]


def test_shares_of_a_secret_look_like_any_other_bytes() -> None:
    """Single shares of one secret, drawn anew: each bit is set half of the time."""
    shares = [split(b"\xff" * 32, 2, 2)[0] for _ in range(400)]
    bits = np.unpackbits(np.frombuffer(b"".join(shares), np.uint8)).reshape(400, 256).mean(axis=0)
    # 256 means of 400 fair coins: beyond 6 standard deviations once in 2 million such tests.
    assert np.abs(bits - 0.5).max() < 6 * 0.5 / math.sqrt(400)


@given(st.integers(1, 100), st.integers(1, 10**7), st.floats(8, 1e5), st.integers(1, 2**14))
@settings(max_examples=200, deadline=None)
def test_the_largest_clipped_sum_and_the_likeliest_large_noise_fit(
    shops: int, length: int, std: float, steps: int
) -> None:
    try:
        bound = coordinate_bound(shops, length, std, steps)
    except ConfigError:
        assert shops * (steps + 1) + 12 * std * math.sqrt(shops) > 2**31 - 1
        return
    assert bound >= steps
    room = 2**31 - 1 - shops * bound
    # Gaussian tail over all coordinates, by its logarithm: at most 2^-40.
    log_chance = math.log(2 * length) - room**2 / (2 * shops * std**2)
    assert log_chance <= -WRAP_BITS * math.log(2) + 1e-6


def test_what_cannot_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="fewer steps"):
        coordinate_bound(100, 1000, 3000.0, 2**26)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20))
def test_signed_numbers_survive_the_words(values: list[int]) -> None:
    noise = np.zeros(len(values), np.int64)
    words = to_words(np.array(values, np.int64), noise, 2**31)
    assert from_words(words).tolist() == values


def test_a_sum_of_shops_is_the_sum_of_their_words() -> None:
    stream = np.random.default_rng(1)
    parts = stream.integers(-(10**6), 10**6, size=(30, 50))
    noise = stream.integers(-(10**6), 10**6, size=(30, 50))
    words = [to_words(x, z, 500_000) for x, z in zip(parts, noise, strict=True)]
    total = from_words(np.asarray(np.sum(words, axis=0, dtype=np.uint32)))
    assert np.array_equal(total, np.clip(parts, -500_000, 500_000).sum(axis=0) + noise.sum(axis=0))


def test_holding_to_a_box_moves_no_two_points_further_apart() -> None:
    stream = np.random.default_rng(2)
    left = stream.integers(-1000, 1000, size=(500, 12))
    right = left + stream.integers(-50, 50, size=left.shape)
    zero = np.zeros(12, np.int64)
    for a, b in zip(left, right, strict=True):
        held = from_words(to_words(a, zero, 300)) - from_words(to_words(b, zero, 300))
        assert (held**2).sum() <= ((a - b) ** 2).sum()


def test_all_secrets_that_are_drawn_differ() -> None:
    drawn = [primitives.fresh() for _ in range(1000)]
    assert {len(secret) for secret in drawn} == {32}
    assert not any(a == b for a, b in combinations(drawn, 2))
    # Each byte value comes 125 times in 32,000 on average.
    counts = Counter(b"".join(drawn))
    assert len(counts) == 256
    assert max(counts.values()) < 125 + 8 * math.sqrt(125)
