from dataclasses import replace
from pathlib import Path

import pytest

from client.privacy.ledger import Ledger
from client.settings import read_settings
from common.errors import ConfigError
from experiment_support import BIG, SMALL, Silent, write_folder
from simulations.experiment import read_experiment
from simulations.federating import Federator, ledger_name, who_declined
from simulations.world import build_world

JOIN = {"event": "join", "shops": {"a": "ok", "b": "over-budget", "c": "ok", "d": "ok"}}


def test_who_declined_or_never_answered_took_no_part() -> None:
    release = {"event": "release", "shops": {"c": "data-error", "d": "failed"}}
    first = {"event": "round", "shops": {"c": "data-error"}}
    assert who_declined([{"event": "start"}, JOIN], "abcd") == {"b": "over-budget"}
    assert who_declined([JOIN, release, first], "abcd") == {"b": "over-budget", "c": "data-error"}


def test_a_shop_that_was_never_heard_took_no_part() -> None:
    # Whoever can't read its settings answers without a name: the events don't tell of it.
    assert who_declined([JOIN], "abcde") == {"b": "over-budget", "e": "unheard"}


def test_a_resumed_run_asks_again_and_the_later_answer_counts() -> None:
    again = {"event": "join", "shops": {"b": "ok", "c": "ledger-error"}}
    events = [JOIN, {"event": "release", "shops": {}}, again]
    assert who_declined(events, "abcd") == {"c": "ledger-error"}


def federator(tmp_path: Path, *changes: str) -> Federator:
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    data = f"data.path={write_folder(tmp_path / 'tables')}"
    experiment = read_experiment(tmp_path / "small.toml", [data, *changes])
    return Federator(experiment, build_world(experiment), tmp_path, Silent())


def test_a_plan_that_no_shop_can_pay_for_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    # Else every shop's refusal comes after the other arms are trained, and names no key.
    planned = federator(tmp_path, "privacy.cap_epsilon=1")
    # In three digits it could be said to cost no more than the cap that it is above.
    with pytest.raises(ConfigError, match=r"federated-dp: it costs ε = 7.99\d, .*cap_.* 1 at most"):
        planned.plan("federated-dp")
    planned.plan("federated")  # costs nothing


@pytest.mark.parametrize("unit", ["customer", "basket"])
def test_an_arm_is_not_measured_on_histories_of_another_half_life(
    tmp_path: Path, unit: str
) -> None:
    # A shop weighs histories by its plan's half-life; arms were all measured with that of one.
    section = "basket" if unit == "basket" else "federated-dp"
    changes = ("federated.half_life_days=30", f"privacy.unit={unit}", "basket.rounds=0")
    planned = federator(tmp_path, *changes)
    planned.plan("federated")
    with pytest.raises(ConfigError, match=r"half_life_days of 0, .*\[federated\], 30"):
        planned.plan("federated-dp")
    (tmp_path / "same").mkdir()
    # Baskets are refused later, for want of a session_id.
    wrong = {"customer": "", "basket": "session_id"}[unit]
    alike = federator(tmp_path / "same", *changes, f"{section}.half_life_days=30")
    if wrong:
        with pytest.raises(ConfigError, match=wrong):
            alike.plan("federated-dp")
    else:
        assert alike.plan("federated-dp").half_life_days == 30


def test_one_shop_that_can_pay_is_enough_and_a_large_delta_is_noted(tmp_path: Path) -> None:
    changes = ("privacy.cap_epsilon=1", f"privacy.caps.{BIG}=8", "privacy.target_delta=0.04")
    planned = federator(tmp_path, *changes)
    planned.plan("federated-dp")
    (note,) = planned.notes
    assert "δ = 0.04 promises little: the largest shop has 25 customers" in note


def test_a_shop_whose_ledger_no_file_can_be_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    # Else the ledger cannot be opened, after the arms without privacy are trained.
    planned = federator(tmp_path)
    shops = planned._world.shops

    def rename(name: str) -> None:
        renamed = (replace(shops[0], merchant_id=name), *shops[1:])
        planned._world = replace(planned._world, shops=renamed)

    rename("Я" * 40)
    planned.plan("federated-dp")
    Ledger.open(planned.ledgers / ledger_name("Я" * 40)).close()
    rename("Я" * 41)
    with pytest.raises(ConfigError, match=r"ЯЯ' is too long: percent-encoded.*246 .* room for 240"):
        planned.plan("federated-dp")
    # Of an arm without privacy there is a note alone, in a file of another name.
    folders = planned._write_shops("federated", planned.plan("federated"))
    settings = read_settings(folders / "0" / "shop.toml")
    assert settings.merchant_id == "Я" * 41
    Ledger.open(settings.ledger).close()


def test_a_shop_weighs_ratings_by_the_experiment_s_scale(tmp_path: Path) -> None:
    # The analyst's arms and the shops' training would else read one rating as two weights.
    planned = federator(tmp_path, "data.rating_scale=10")
    folders = planned._write_shops("federated", planned.plan("federated"))
    assert read_settings(folders / "0" / "shop.toml").rating_scale == 10


@pytest.mark.parametrize("target", ["1e4", "1e30"])
def test_noise_that_float32_rounds_away_is_refused_before_anything_is_trained(
    tmp_path: Path, target: str
) -> None:
    # Else the server ends the run, and speaks of a round that nobody has asked for.
    (tmp_path / "other").mkdir()
    planned = federator(tmp_path, f"privacy.target_epsilon={target}")
    words = r"privacy\.target_epsilon = 1(0000|e\+30) is too large .* Lower target_epsilon.*norm"
    with pytest.raises(ConfigError, match=words):
        planned.plan("federated-dp")
    planned.plan("federated")
    if target == "1e4":  # Whole-number noise is never lost beside weights.
        whole = ("privacy.target_epsilon=1e4", "privacy.trust=federation")
        federator(tmp_path / "other", *whole).plan("federated-dp")
