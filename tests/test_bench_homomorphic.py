"""The bench of homomorphic encryption, with a library that stands in for TenSEAL."""

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from common.errors import ConfigError, RunError
from simulations.__main__ import app
from simulations.bench import homomorphic as bench

TINY = 32_768 / 2**20


class Vector:
    """Numbers in the clear, eight bytes each; off by so much once they are decrypted."""

    def __init__(self, numbers: list[int], off: float) -> None:
        self.numbers, self.off = numbers, off

    def serialize(self) -> bytes:
        return b"".join(int(n).to_bytes(8, "little", signed=True) for n in self.numbers)

    def __add__(self, other: "Vector") -> "Vector":
        pairs = zip(self.numbers, other.numbers, strict=True)
        return Vector([a + b for a, b in pairs], self.off)

    def decrypt(self) -> list[float]:
        return [n + self.off for n in self.numbers]


def library(off: float) -> SimpleNamespace:
    def made(error: float) -> tuple[Callable[..., Vector], Callable[..., Vector]]:
        def read(_: object, text: bytes) -> Vector:
            parts = [text[k : k + 8] for k in range(0, len(text), 8)]
            return Vector([int.from_bytes(p, "little", signed=True) for p in parts], error)

        return (lambda _, part: Vector(part, error)), read

    class Context:
        def serialize(self, *, save_secret_key: bool) -> bytes:
            return b"secret" if save_secret_key else b"key"

    def context(_: str, *, n_threads: int, **settings: Any) -> Context:
        assert n_threads == 1
        assert settings["poly_modulus_degree"] == 4096
        return Context()

    bfv, read_bfv = made(0.0)
    ckks, read_ckks = made(off)
    return SimpleNamespace(
        context=context,
        SCHEME_TYPE=SimpleNamespace(BFV="bfv", CKKS="ckks"),
        bfv_vector=bfv,
        bfv_vector_from=read_bfv,
        ckks_vector=ckks,
        ckks_vector_from=read_ckks,
    )


def test_it_weighs_ciphertexts_and_says_how_far_sums_are_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tenseal", library(0.25))
    arguments = ["bench", "homomorphic", "--json", "--sizes", str(TINY), "--shops", "3"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    (cell,) = json.loads(result.stdout)["cells"]
    numbers = cell["numbers"]
    assert numbers == TINY * 2**18
    for scheme, error in (("bfv", 0.0), ("ckks", 0.25)):
        one = cell[scheme]
        # Eight bytes a number up, and what is public comes down as in a plain exchange.
        assert one["bytes_from_shop"] == one["key_holder_bytes"] == 8 * numbers
        assert one["bytes_to_shop"] == cell["plain"]["bytes_to_shop"] > 4 * numbers
        assert one["bytes"] == one["bytes_to_shop"] + one["bytes_from_shop"]
        assert one["largest_error"] == pytest.approx(error)
        assert one["public_key_bytes"] == 3
        assert min(one["shop_seconds"], one["server_seconds"], one["key_holder_seconds"]) > 0
    assert cell["secure_sum"]["largest_error"] == 0
    assert cell["secure_sum"]["bytes"] < cell["bfv"]["bytes"]


def test_a_sum_that_is_off_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tenseal", library(0.75))
    with pytest.raises(RunError, match="does not add up"):
        bench.bench_homomorphic([TINY], [3])


def test_without_the_library_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(ConfigError, match="pip install tenseal"):
        bench.bench_homomorphic()


def test_the_plain_modulus_holds_a_sum_and_fits_the_slots() -> None:
    modulus = bench._PLAIN_MODULUS
    assert modulus > 2**32
    assert modulus % (2 * bench._DEGREE) == 1
    assert all(modulus % k for k in range(2, int(modulus**0.5) + 1))
