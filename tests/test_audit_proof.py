"""The claims held against attacks, with fixed seeds: refuted for mistakes, and for nothing else."""

import numpy as np
import pandas as pd
import pytest

from audit_support import shops, trial, world
from common.features import Catalogue
from common.schema import ShopEvents
from simulations.audit.broken import BROKEN
from simulations.audit.canaries import audit_step, audit_training
from simulations.audit.membership import LEVELS, Level, membership
from simulations.audit.recovery import recovery
from simulations.audit.settings import AuditSection
from simulations.audit.sums import SHARES, audit_sums
from simulations.audit.training import only

pytestmark = [pytest.mark.statistical, pytest.mark.timeout(600)]

SETTINGS = AuditSection()
CLAIMS = SETTINGS.claims
MODELS = 8


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_canaries_do_not_refute_the_exact_step(claim: float, seed: int) -> None:
    record = audit_step("exact", claim, SETTINGS, seed)
    assert record["claimed_epsilon"] == pytest.approx(claim, rel=0.003)
    assert record["lower_bound"] < record["claimed_epsilon"]
    # In a regime with power: what can be refuted is no triviality.
    if claim >= 1:
        assert record["lower_bound"] > 0.2 * claim


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("name", ["clipping-per-table", "table-without-noise"])
@pytest.mark.parametrize("seed", [0, 1])
def test_canaries_refute_a_step_with_a_mistake(name: str, claim: float, seed: int) -> None:
    record = audit_step(name, claim, SETTINGS, seed)
    assert record["lower_bound"] > 1.3 * record["claimed_epsilon"]
    assert record["refuted"]


@pytest.mark.parametrize("claim", [1.0, 2.0])
def test_canaries_refute_noise_too_small_by_half(claim: float) -> None:
    # Twice the canaries: at ε = 1 this mistake is near what 20,000 can tell.
    settings = SETTINGS.model_copy(update={"canaries": 40_000})
    assert audit_step("half-noise", claim, settings, 0)["refuted"]


def test_every_mistake_is_audited() -> None:
    assert set(BROKEN) == {"clipping-per-table", "table-without-noise", "half-noise"}


@pytest.mark.parametrize("claim", CLAIMS)
def test_canaries_among_customers_do_not_refute_the_deployed_round(claim: float) -> None:
    record = audit_training(claim, shops()[0], world().catalogue, SETTINGS, 0)
    assert record["canaries"] >= 400
    assert record["lower_bound"] < record["claimed_epsilon"]


def canary_town(count: int) -> tuple[ShopEvents, Catalogue]:
    """A shop without customers, and a catalogue with a product for each canary."""
    items = [f"i{number:05}" for number in range(count)]
    catalogue = Catalogue.of(pd.DataFrame({"item_id": items, "category": "c"}))
    shop = shops()[0]
    return only(shop, np.zeros(len(shop.user_ids), dtype=bool)), catalogue


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_canaries_do_not_refute_sums_with_shared_noise(claim: float, seed: int) -> None:
    record = audit_sums("shared", claim, *canary_town(20_000), SETTINGS, seed)
    assert 0.998 * claim <= record["claimed_epsilon"] <= claim
    assert record["canaries"] == 20_000
    assert record["lower_bound"] < record["claimed_epsilon"]
    if claim >= 1:
        assert record["lower_bound"] > 0.2 * claim


@pytest.mark.parametrize("claim", [1.0, 2.0])
@pytest.mark.parametrize("way", [way for way in SHARES if way != "shared"])
@pytest.mark.parametrize("seed", [0, 1])
def test_canaries_refute_sums_with_a_mistake_in_the_noise(
    way: str, claim: float, seed: int
) -> None:
    settings = SETTINGS.model_copy(update={"canaries": 40_000})
    record = audit_sums(way, claim, *canary_town(40_000), settings, seed)
    assert record["refuted"], record


@pytest.mark.parametrize("claim", CLAIMS)
def test_canaries_among_customers_do_not_refute_sums(claim: float) -> None:
    record = audit_sums("shared", claim, shops()[0], world().catalogue, SETTINGS, 0)
    assert record["canaries"] >= 400
    assert record["lower_bound"] < record["claimed_epsilon"]


@pytest.mark.parametrize("level", LEVELS)
def test_without_privacy_what_leaves_tells_who_is_in(level: Level) -> None:
    records = membership(
        trial("federated"), level, shops(), world().catalogue, models=MODELS, seed=0
    )
    for record in records:
        assert record["models"] == MODELS
        assert record["auc_low"] > 0.75, record["surface"]
        assert record["tpr_at_1_fpr_low"] > 0.2, record["surface"]
        assert record["epsilon"] is None


@pytest.mark.parametrize("epsilon", [8.0, 1.0])
@pytest.mark.parametrize("level", LEVELS)
def test_with_privacy_every_point_keeps_to_the_promise(level: Level, epsilon: float) -> None:
    records = membership(
        trial("federated-dp", epsilon), level, shops(), world().catalogue, models=MODELS, seed=0
    )
    for record in records:
        assert record["models"] == MODELS
        assert record["bound_violations"] == 0, record["surface"]
        assert record["curve_violations"] == 0, record["surface"]
        if epsilon == 8.0:
            assert record["bound_crossings"] == 0, record["surface"]
    if level == "customer" and epsilon == 8.0:
        # The same attack, still with power: what it finds is what the promise leaves.
        assert records[0]["surface"] == "updates"
        assert records[0]["auc_low"] > 0.6


def test_one_update_tells_a_lone_customers_products_only_without_privacy() -> None:
    arguments = {"customers": 1, "trials": 12, "seed": 0}
    plain = trial("federated").plan.model_copy(update={"tuning_round": 0})
    open_ = recovery("federated", plain, shops(), world().catalogue, **arguments)  # type: ignore[arg-type]
    assert open_["precision"] == open_["recall"] == 1.0
    private = trial("federated-dp").plan.model_copy(update={"tuning_round": 0})
    kept = recovery("federated-dp", private, shops(), world().catalogue, **arguments)  # type: ignore[arg-type]
    assert kept["prior_precision"] == open_["prior_precision"]
    assert abs(kept["gain_precision"]) < 0.05
    assert np.isfinite(kept["recall_high"])


def test_membership_finds_a_round_whose_table_has_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.training.ExactDPStep", BROKEN["table-without-noise"])
    updates, _ = membership(
        trial("federated-dp", 1.0), "customer", shops(), world().catalogue, models=4, seed=0
    )
    assert updates["bound_violations"] > 0
    assert updates["curve_violations"] >= updates["bound_violations"]
