"""Seeded randomness for simulations: one independent stream for each purpose."""

import hashlib

import numpy as np


def derive(
    seed: int, *, purpose: str, merchant_id: str = "", server_round: int = 0
) -> np.random.Generator:
    """Return the generator of one (seed, merchant, round, purpose).

    Streams of different arguments are independent: the arguments are hashed with
    SHA-256 (fields separated by their lengths, so none can run into the next) and
    the digest seeds an SFC64 generator.
    """
    parts = (str(seed), merchant_id, str(server_round), purpose)
    text = "".join(f"{len(part)}:{part}" for part in parts)
    digest = hashlib.sha256(text.encode()).digest()
    entropy = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4)]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))
