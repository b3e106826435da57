"""Homomorphic encryption of the same sums: what it weighs and takes beside a secure sum.

Shops encrypt their clipped whole numbers with their share of the noise, a server adds ciphertexts
up, and whoever holds the key decrypts the sum. TenSEAL's BFV (Fan & Vercauteren 2012, IACR ePrint
2012/144) counts in whole numbers; its CKKS (Cheon et al. 2017, ASIACRYPT) in approximate ones.
TenSEAL is of use here alone and no dependency: ``pip install tenseal``.
"""

import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from client.privacy.discrete import discrete_gaussian
from client.privacy.noise import SeededNoise
from common.errors import ConfigError, RunError
from common.rng import derive
from common.secure_sum.encoding import coordinate_bound, from_words, to_words
from common.secure_sum.noise import share_std
from simulations.bench.metered import Meter
from simulations.bench.sum_arms import Cell, plain_exchange, secure_exchange
from simulations.bench.sums import make_cell
from simulations.machine import machine_facts

MEGABYTES = (1.0, 4.0)
SHOPS = (3, 10)
ARMS = ("plain", "secure_sum", "bfv", "ckks")
_REPEATS = 3
_DEGREE = 4096
# The next prime above 2^32 for which _DEGREE numbers fit a ciphertext: 1 modulo 2 _DEGREE. Sums are
# sized for 32 bits and fit it.
_PLAIN_MODULUS = 4294991873
# A modulus for the data and one for keys: 108 of the 109 bits that 4096 allows for 128 of security.
_CKKS_BITS, _CKKS_SCALE = (54, 54), 2.0**20


@dataclass(frozen=True)
class Scheme:
    """One scheme of the library.

    Attributes
    ----------
    slots
        Numbers in one ciphertext.
    keys
        The library's context with the secret key.
    encrypt, read
        From a list of numbers, or serialised bytes, to a ciphertext.
    """

    slots: int
    keys: Any
    encrypt: Callable[[list[int]], Any]
    read: Callable[[bytes], Any]


def bench_homomorphic(
    megabytes: Sequence[float] = MEGABYTES,
    shops: Sequence[int] = SHOPS,
    progress: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Measure both schemes beside a secure sum and a plain exchange, in turns.

    Returns
    -------
    dict
        ``cells``: for each size and number of shops ``plain``, ``secure_sum``, ``bfv`` and ``ckks``
        with bytes and processor seconds, and how far each sum is off; and the machine.

    Raises
    ------
    ConfigError
        If TenSEAL is not installed.
    """
    schemes = _schemes()
    cells = []
    for size in sorted(megabytes):
        for count in sorted(shops):
            progress(f"{size:g} MB, {count} shops")
            cell = make_cell(size, count)
            runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
            for repeat in range(_REPEATS):
                progress(f"  {repeat + 1} of {_REPEATS}")
                plain = _exchange(cell, plain_exchange(cell))
                runs["plain"].append(plain)
                with tempfile.TemporaryDirectory(prefix="ft-homomorphic-") as name:
                    secure = secure_exchange(cell, Path(name) / "shops", noisy=False).meter
                # It is held against the right sum there.
                runs["secure_sum"].append(_exchange(cell, secure) | {"largest_error": 0.0})
                for scheme, made in schemes.items():
                    runs[scheme].append(_encrypted(cell, made, plain["bytes_to_shop"]))
            medians = {
                arm: {key: statistics.median(run[key] for run in found) for key in found[0]}
                for arm, found in runs.items()
            }
            cells.append({"megabytes": size, "shops": count, "numbers": cell.length, **medians})
    return {"cells": cells, "machine": machine_facts()}


def lines(result: dict[str, Any]) -> list[str]:
    """Return what was measured for people."""
    return [
        f"{cell['megabytes']:g} MB, {cell['shops']} shops, {arm}: {cell[arm]}"
        for cell in result["cells"]
        for arm in ARMS
    ]


def _schemes() -> dict[str, Scheme]:
    try:
        tenseal = importlib.import_module("tenseal")
    except ImportError as error:
        raise ConfigError(
            "TenSEAL is not installed, and this bench measures it: pip install tenseal"
        ) from error
    bfv = tenseal.context(
        tenseal.SCHEME_TYPE.BFV,
        poly_modulus_degree=_DEGREE,
        plain_modulus=_PLAIN_MODULUS,
        n_threads=1,
    )
    ckks = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        poly_modulus_degree=_DEGREE,
        coeff_mod_bit_sizes=list(_CKKS_BITS),
        n_threads=1,
    )
    ckks.global_scale = _CKKS_SCALE
    return {
        "bfv": Scheme(
            _DEGREE,
            bfv,
            lambda part: tenseal.bfv_vector(bfv, part),
            lambda text: tenseal.bfv_vector_from(bfv, text),
        ),
        "ckks": Scheme(
            _DEGREE // 2,
            ckks,
            lambda part: tenseal.ckks_vector(ckks, part),
            lambda text: tenseal.ckks_vector_from(ckks, text),
        ),
    }


def _encrypted(cell: Cell, scheme: Scheme, down: float) -> dict[str, float]:
    """Return what one sum takes: each shop encrypts, the server adds, the key's holder decrypts.

    Parameters
    ----------
    down
        Bytes of the model on its way to a shop: nobody encrypts what is public.
    """
    std = share_std(cell.plan, cell.plan.noise_multiplier)
    bound = coordinate_bound(cell.shops, cell.length, std, cell.plan.noise_steps)
    total: list[Any] = []
    right = np.zeros(cell.length, np.int64)
    shop_seconds, server_seconds, sent = [], 0.0, 0
    for shop in range(cell.shops):
        source = SeededNoise(derive(0, purpose="homomorphic", merchant_id=str(shop)))
        noise = discrete_gaussian(source, cell.length, std)
        started = time.process_time()
        numbers = from_words(to_words(cell.whole, noise, bound))
        texts = [scheme.encrypt(part).serialize() for part in _parts(numbers, scheme.slots)]
        shop_seconds.append(time.process_time() - started)
        right += numbers
        sent += sum(len(text) for text in texts)
        started = time.process_time()
        read = [scheme.read(text) for text in texts]
        total = [one + other for one, other in zip(total, read, strict=True)] if total else read
        server_seconds += time.process_time() - started
    started = time.process_time()
    texts = [one.serialize() for one in total]
    server_seconds += time.process_time() - started
    started = time.process_time()
    opened = np.concatenate([scheme.read(text).decrypt() for text in texts])
    key_seconds = time.process_time() - started
    error = float(np.abs(opened - right).max())
    # An approximate sum is off by less than half, or it is no sum.
    if not np.array_equal(np.rint(opened), right):
        raise RunError("the encrypted sum does not add up")
    up = sent / cell.shops
    return {
        "bytes": down + up,
        "bytes_to_shop": down,
        "bytes_from_shop": up,
        "shop_seconds": statistics.fmean(shop_seconds),
        "server_seconds": server_seconds,
        "key_holder_bytes": float(sum(len(text) for text in texts)),
        "key_holder_seconds": key_seconds,
        "public_key_bytes": float(len(scheme.keys.serialize(save_secret_key=False))),
        "largest_error": error,
    }


def _parts(numbers: np.ndarray, slots: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), slots):
        part: list[int] = numbers[start : start + slots].tolist()
        yield part


def _exchange(cell: Cell, meter: Meter) -> dict[str, float]:
    down = sum(meter.to_shops.values()) / cell.shops
    up = sum(meter.from_shops.values()) / cell.shops
    timed = [meter.shops[node] for node, shop in cell.nodes.items() if shop < cell.timed]
    return {
        "bytes": down + up,
        "bytes_to_shop": down,
        "bytes_from_shop": up,
        "shop_seconds": statistics.fmean(sum(stages.values()) for stages in timed),
        "server_seconds": meter.server_seconds,
    }
