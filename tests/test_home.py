"""The global model at a shop: adapted, measured and asked, on the shop's own machine."""

import json
import re
import resource
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from typer.testing import CliRunner

from cli_support import status_of
from client.__main__ import app
from client.home import adapted_state, adapting
from client.home.adapted_state import CURRENT, FACTS, STATE, read_facts
from client.home.adapting import adapt
from client.home.customers import read_customer
from client.home.evaluation import evaluate_shop
from client.home.recommending import Request, get_ready, recommend
from client.home_settings import ALONE, MIXED, HomeSection
from client.shop_folder import ShopFolder
from common.errors import ArtifactError, ConfigError, DataError, InputError
from home_support import DAY, START, HomeShop, N, purchases
from simulations.experiment import read_experiment


@pytest.fixture
def shop(tmp_path: Path) -> HomeShop:
    shop = HomeShop(tmp_path)
    shop.model()
    shop.sell(purchases())
    return shop


def ask(shop: HomeShop, **changes: Any) -> dict[str, Any]:
    request = Request(**{"user_id": "u03", "count": 10, **changes})
    return recommend(shop.path, shop.settings, request)


def items(document: dict[str, Any]) -> list[str]:
    return [entry["item_id"] for entry in document["recommendations"]]


def bought_by(shop: HomeShop, user: str) -> set[str]:
    return {item for name, item, _ in purchases() if name == user}


def test_the_defaults_are_those_of_the_demo() -> None:
    demo = read_experiment(Path("simulations/experiments/demo.toml")).home
    assert demo.federated_dp == MIXED
    assert demo.local == ALONE


def test_a_section_that_names_one_key_keeps_the_others(shop: HomeShop) -> None:
    shop.configure("[home.mixed]\nmax_customers = 7\n[home]\nvalidation_share = 0.3\n")
    found = shop.settings.home
    assert found.mixed == MIXED.model_copy(update={"max_customers": 7})
    assert found == HomeSection(validation_share=0.3, mixed=found.mixed)


# --- adapting --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        # An adaptation with it could be kept, and not be read again.
        ("confidence = inf", "confidence: Input should be a finite number"),
        ("shared_lambda = inf", "shared_lambda: Input should be a finite number"),
        ('reference = { "ndcg@20" = nan }', "reference.ndcg@20: Input should be"),
        ('reference = { "ndcg@20" = 0.0 }', "reference.ndcg@20: Input should be greater than 0"),
        ("start = { own_ease = 1e300 }", "start.own_ease: Input should be less than or equal to"),
        ("prior_strength = 1e300", "prior_strength: Input should be less than or equal to"),
    ],
)
def test_a_mixture_of_numbers_that_are_none_is_refused(
    shop: HomeShop, setting: str, words: str
) -> None:
    shop.configure(f"[home.mixed]\n{setting}\n")
    with pytest.raises(ConfigError, match=re.escape(words)):
        adapt(shop.path, shop.settings)


def test_a_rating_scale_without_end_is_refused(shop: HomeShop) -> None:
    shop.configure("rating_scale = inf")
    with pytest.raises(ConfigError, match="rating_scale: Input should be a finite number"):
        adapt(shop.path, shop.settings)


def test_a_mixture_of_nothing_is_refused(shop: HomeShop) -> None:
    shop.configure("[home.mixed]\nstart = {}\n")
    with pytest.raises(ConfigError, match="start gives no part a weight"):
        adapt(shop.path, shop.settings)
    # What is compared with has no part that only a federation can give.
    shop.configure("[home.own]\nstart = { learned = 1.0 }\n")
    with pytest.raises(ConfigError, match="start gives no part a weight"):
        evaluate_shop(shop.settings)


def test_what_is_adapted_is_kept_for_the_owner_alone_and_answers(shop: HomeShop) -> None:
    document = adapt(shop.path, shop.settings)
    assert document["customers"] == 40
    assert document["validated"] > 20
    adapted = ShopFolder.of(shop.path).adapted
    for path in (adapted, *adapted.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    answer = ask(shop)
    assert answer["model"] == {
        "version": "run-1",
        "adapted": True,
        "fitted_at": answer["model"]["fitted_at"],
    }
    assert answer["notes"] == []
    assert len(items(answer)) == 10
    assert not bought_by(shop, "u03") & set(items(answer))


def test_the_stored_mixture_scores_as_the_one_that_was_fitted(
    shop: HomeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.configure(
        "[home.mixed.start]\ncontent = 0.4\nshared_ease = 1.0\nown_learned = 0.5\n"
        "kin = 0.6\nlearned = 0.3\npopularity = 0.1\nown_popularity = 0.2\n"
    )
    fitted = []
    real = adapted_state.save_adapted

    def save(folder: Path, home: Any, facts: Any) -> Any:
        fitted.append(home)
        return real(folder, home, facts)

    monkeypatch.setattr(adapting, "save_adapted", save)
    adapt(shop.path, shop.settings)
    stored = get_ready(shop.path, shop.settings)
    assert stored.home is not None
    from client.data.periods import histories
    from client.home.shop import read_records

    history = histories(read_records(shop.settings, shop.catalogue).events, N, 0.0, 0)
    np.testing.assert_array_equal(stored.home.scores(history), fitted[0].scores(history))


def test_weights_are_chosen_on_the_last_part_and_fitted_on_everything(shop: HomeShop) -> None:
    document = adapt(shop.path, shop.settings)
    times = [time for _, _, time in purchases()]
    found = read_facts(ShopFolder.of(shop.path).adapted)
    assert found is not None
    facts = found[1]
    assert (facts.first, facts.last) == (min(times), max(times))
    span = max(times) + 1 - min(times)
    assert facts.validation_from == max(times) + 1 - round(0.2 * span)
    assert facts.records == len(purchases()) == document["records"]


def test_an_interrupted_adaptation_leaves_the_one_before(
    shop: HomeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt(shop.path, shop.settings)
    before = ask(shop)
    for step in ("sync", "sha256", "arrays_of"):
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(adapted_state, step, fail)
            with pytest.raises(KeyboardInterrupt):
                adapt(shop.path, shop.settings)
        adapted = ShopFolder.of(shop.path).adapted
        assert not list(adapted.glob(".draft*"))
        assert ask(shop) == before


def test_an_adaptation_is_on_the_disk_before_it_is_the_current_one(
    shop: HomeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = ShopFolder.of(shop.path).adapted
    safe: set[int] = set()

    def sync(path: Path) -> None:
        if path == adapted / f".draft-{CURRENT}":
            (folder,) = (one for one in adapted.iterdir() if one.is_dir())
            # A file of which the folder's own list of names is lost is lost with it.
            assert {p.stat().st_ino for p in (folder, *folder.iterdir())} <= safe
        safe.add(path.stat().st_ino)

    monkeypatch.setattr(adapted_state, "sync", sync)
    adapt(shop.path, shop.settings)
    assert adapted.stat().st_ino in safe


def test_on_a_full_disk_the_adaptation_before_stays_and_the_reason_is_told(
    shop: HomeShop, capsys: pytest.CaptureFixture[str]
) -> None:
    adapt(shop.path, shop.settings)
    before, room = ask(shop), resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python turns the signal into an error, as of a disk that is full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, room[1]))
    try:
        assert status_of(app, "adapt", shop.path) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
    assert "error: File too large: " in capsys.readouterr().err
    assert not list(ShopFolder.of(shop.path).adapted.glob(".draft*"))
    assert ask(shop) == before


def test_a_service_that_is_older_than_the_code_is_told_to_start_again(
    shop: HomeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt(shop.path, shop.settings)
    monkeypatch.setattr(adapted_state, "code_digest", lambda: "what it started with")
    # To adapt anew, which was all that was advised, helps it with nothing.
    with pytest.raises(ArtifactError, match="where that was done, start this service again"):
        ask(shop)


def test_older_adaptations_go(shop: HomeShop) -> None:
    for _ in range(4):
        adapt(shop.path, shop.settings)
    folders = [path for path in ShopFolder.of(shop.path).adapted.iterdir() if path.is_dir()]
    assert len(folders) == 2
    assert ask(shop)["model"]["adapted"]


def _damage_state(shop: HomeShop, folder: Path) -> None:
    data = bytearray((folder / STATE).read_bytes())
    data[-1] ^= 1
    (folder / STATE).write_bytes(data)


def _truncate_facts(shop: HomeShop, folder: Path) -> None:
    text = (folder / FACTS).read_text()
    (folder / FACTS).write_text(text[: len(text) // 2])


def _lose_state(shop: HomeShop, folder: Path) -> None:
    (folder / STATE).unlink()


def _point_outside(shop: HomeShop, folder: Path) -> None:
    (folder.parent / "current").write_text("../models")


def _other_catalogue(shop: HomeShop, folder: Path) -> None:
    shop.publish(kinds=4)


def _other_model(shop: HomeShop, folder: Path) -> None:
    path = shop.folder / "models" / "run-1" / "manifest.json"
    path.write_text(path.read_text().replace('"code_digest": "0"', '"code_digest": "1"'))


def _other_code(shop: HomeShop, folder: Path) -> None:
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps(facts | {"code_digest": "f" * 64}))


def _other_settings(shop: HomeShop, folder: Path) -> None:
    shop.configure("[home.mixed]\nown_expectation = 0.3\n")


def _other_weights(shop: HomeShop, folder: Path) -> None:
    shop.configure("[behavior_weights]\npurchase = 0.5\n")


@pytest.mark.parametrize(
    "change",
    [
        _damage_state,
        _truncate_facts,
        _lose_state,
        _point_outside,
        _other_catalogue,
        _other_model,
        _other_code,
        _other_settings,
        _other_weights,
    ],
)
def test_what_is_damaged_or_fitted_to_something_else_is_refused(
    shop: HomeShop, change: Any
) -> None:
    adapt(shop.path, shop.settings)
    found = read_facts(ShopFolder.of(shop.path).adapted)
    assert found is not None
    change(shop, found[0])
    with pytest.raises(ArtifactError, match="python -m client adapt"):
        ask(shop)


def test_a_newer_model_is_told_of_and_the_old_one_still_answers(shop: HomeShop) -> None:
    adapt(shop.path, shop.settings)
    before = ask(shop)
    shop.model("run-22")
    after = ask(shop)
    assert items(after) == items(before)
    assert any("another model has come home" in note for note in after["notes"])


def test_without_a_model_there_is_nothing_to_adapt_or_to_ask(tmp_path: Path) -> None:
    shop = HomeShop(tmp_path)
    shop.sell(purchases())
    acts: list[Callable[[], object]] = [
        lambda: adapt(shop.path, shop.settings),
        lambda: ask(shop),
        lambda: evaluate_shop(shop.settings),
    ]
    for act in acts:
        with pytest.raises(ConfigError, match="no model has come home"):
            act()


def test_a_model_of_another_catalogue_is_refused(shop: HomeShop) -> None:
    shop.publish(kinds=7)
    acts: list[Callable[[], object]] = [
        lambda: adapt(shop.path, shop.settings),
        lambda: ask(shop),
        lambda: evaluate_shop(shop.settings),
    ]
    for act in acts:
        with pytest.raises(ArtifactError, match="belongs to catalogue"):
            act()


def test_an_empty_shop_is_told_that_the_model_serves_as_it_came(shop: HomeShop) -> None:
    shop.sell([])
    with pytest.raises(DataError, match="nothing to adapt to"):
        adapt(shop.path, shop.settings)
    with pytest.raises(DataError, match="nothing to measure"):
        evaluate_shop(shop.settings)
    answer = ask(shop)
    assert not answer["model"]["adapted"]
    assert len(items(answer)) == 10


@pytest.mark.parametrize(
    "records",
    [
        [("one", "i01", START)],
        [("one", "i01", START), ("one", "i02", START)],
        [("one", f"i{k:02}", START + k * DAY) for k in range(10)],
        [("a", "i01", START), ("b", "i02", START + 99 * DAY)],
    ],
)
def test_the_smallest_shops_adapt(shop: HomeShop, records: list[Any]) -> None:
    shop.sell(records)
    adapt(shop.path, shop.settings)
    answer = ask(shop, user_id=records[0][0])
    assert answer["known"]
    assert len(items(answer)) == 10
    assert all(np.isfinite(entry["score"]) for entry in answer["recommendations"])


def test_a_model_without_a_trained_round_brings_content_and_popularity(tmp_path: Path) -> None:
    shop = HomeShop(tmp_path)
    shop.sell(purchases())
    shop.model(rounds=0)
    document = adapt(shop.path, shop.settings)
    assert "shared_ease" not in document["weights"]
    assert "no trained round" in document["notes"][0]
    assert ask(shop)["model"]["adapted"]


# --- recommending ----------------------------------------------------------------------------


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("user", ["u03", "nobody"])
def test_reasons_add_up_to_the_score(shop: HomeShop, user: str, *, adapted: bool) -> None:
    if adapted:
        adapt(shop.path, shop.settings)
    for entry in ask(shop, user_id=user, why=True)["recommendations"]:
        values = [reason["value"] for reason in entry["reasons"]]
        size = sum(map(abs, values))
        assert sum(values) == pytest.approx(entry["score"], abs=2e-5 * size)


def test_reasons_of_every_part_add_up(shop: HomeShop) -> None:
    shop.configure(
        "[home.mixed]\nown_expectation = 0.5\n[home.mixed.start]\ncontent = 0.4\n"
        "shared_ease = 1.0\nown_ease = 0.3\nown_learned = 0.5\nlearned = 0.3\nkin = 0.6\n"
        "popularity = 0.1\nown_popularity = 0.2\n"
    )
    adapt(shop.path, shop.settings)
    for entry in ask(shop, why=True)["recommendations"]:
        values = [reason["value"] for reason in entry["reasons"]]
        assert sum(values) == pytest.approx(entry["score"], abs=2e-5 * sum(map(abs, values)))
        assert {reason["kind"] for reason in entry["reasons"]} >= {
            "history-content",
            "history-learned",
            "neighbours",
            "popularity",
        }


@pytest.mark.parametrize("alike", ["products", "customers"])
def test_content_that_is_all_expected_moves_no_product(shop: HomeShop, alike: str) -> None:
    if alike == "products":
        shop.publish(kinds=1)
        shop.model("of-one-kind")
    else:
        # The only customer's basket is the expected one.
        shop.sell([("u03", f"i{item:02}", START + item * DAY) for item in range(N - 3)])
    adapt(shop.path, shop.settings)
    home = get_ready(shop.path, shop.settings).home
    assert home is not None
    history = sparse.csr_matrix(np.arange(N) < N - 3, dtype=np.float32)
    told = {n: w for n, w in home.mixing_weights.items() if n not in ("content", "kin")}
    bare = replace(home, mixing_weights=told)
    np.testing.assert_allclose(home.scores(history), bare.scores(history), atol=1e-4)
    for entry in ask(shop, why=True)["recommendations"]:
        assert sum(part["value"] for part in entry["reasons"]) == pytest.approx(entry["score"])


def test_a_new_record_counts_at_once(shop: HomeShop) -> None:
    adapt(shop.path, shop.settings)
    before = items(ask(shop))
    shop.sell([*purchases(), ("u03", before[0], START)])
    after = items(ask(shop))
    assert before[0] not in after
    assert after != before[1:]


def test_an_unknown_customer_gets_what_sells_and_is_told(shop: HomeShop) -> None:
    plain = ask(shop, user_id="nobody")
    assert not plain["known"]
    assert any("no records of a customer 'nobody'" in note for note in plain["notes"])
    adapt(shop.path, shop.settings)
    answer = ask(shop, user_id="nobody")
    assert len(items(answer)) == 10
    scores = [entry["score"] for entry in answer["recommendations"]]
    assert scores == sorted(scores, reverse=True)


def test_a_customer_of_products_outside_the_catalogue_is_told(shop: HomeShop) -> None:
    shop.sell([*purchases(), ("odd", "x1", START), ("odd", "x2", START)])
    adapt(shop.path, shop.settings)
    answer = ask(shop, user_id="odd")
    assert answer["known"]
    assert answer["history"] == {"products": 0, "outside_catalogue": 2}
    assert any("none of the customer's records" in note for note in answer["notes"])
    assert len(items(answer)) == 10


def test_only_what_is_stocked_and_offered_is_listed(shop: HomeShop) -> None:
    stock = [f"i{k:02}" for k in range(30)]
    shop.sell(purchases(), stock)
    adapt(shop.path, shop.settings)
    assert set(items(ask(shop, count=60))) == set(stock) - bought_by(shop, "u03")
    retired = HomeShop(shop.folder / "other")
    retired.publish(retired=range(40))
    retired.model()
    retired.sell(purchases())
    assert min(items(ask(retired, count=60))) >= "i40"


def test_a_guest_is_answered_from_what_they_name(shop: HomeShop) -> None:
    adapt(shop.path, shop.settings)
    answer = ask(shop, user_id="", history=("i03", "i08", "what"))
    assert answer["user_id"] is None
    assert answer["history"] == {"products": 2, "outside_catalogue": 1}
    assert not {"i03", "i08"} & set(items(answer))
    # Products of the guest's kind come first.
    assert all(int(item[1:]) % 5 == 3 for item in items(answer)[:3])
    with pytest.raises(InputError, match="holds none of the products"):
        ask(shop, user_id="", history=("what",))


def test_a_shop_s_own_numbers_are_understood_and_shown(shop: HomeShop) -> None:
    renamed = [(user, item.replace("i", "own-"), at) for user, item, at in purchases()]
    plain = items(ask(shop))
    shop.sell(renamed)
    mapping = [f"own-{k:02},i{k:02}" for k in range(N)]
    (shop.folder / "map.csv").write_text("\n".join(["item_id,catalogue_item_id", *mapping]))
    shop.configure('[catalogue_mapping]\ntable = "map.csv"\n')
    answer = ask(shop)
    assert items(answer) == plain
    assert [entry["own_item_ids"] for entry in answer["recommendations"]] == [
        [item.replace("i", "own-")] for item in plain
    ]
    guest = ask(shop, user_id="", history=("own-03",))
    assert guest["history"]["products"] == 1
    with pytest.raises(InputError, match="such as own-"):
        ask(shop, user_id="", history=("i03",))


def test_the_tail_dial_turns_towards_what_is_rarely_bought(shop: HomeShop) -> None:
    adapt(shop.path, shop.settings)
    ready = get_ready(shop.path, shop.settings)
    row = {item: k for k, item in enumerate(ready.catalogue.item_ids)}
    exposure = [
        float(np.mean([ready.exposure[row[item]] for item in items(ask(shop, tail_dial=dial))]))
        for dial in (0.0, 0.5, 1.0)
    ]
    assert exposure[0] > exposure[2]
    assert exposure[1] >= exposure[2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"user_id": ""}, "either --user"),
        ({"history": ("i01",)}, "either --user"),
        ({"count": 0}, "1 to 1000"),
        ({"tail_dial": 1.5}, "from 0 to 1"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Request(**{"user_id": "u", **changes})


@pytest.mark.parametrize(
    "words",
    [
        ("recommend", "--user", "\udce9va"),
        ("recommend", "--history", "i01,\udce9va"),
        ("recommend", "--attribute", "age=\udce9va"),
        ("approve", "--own-code", "--note", "\udce9va"),
    ],
)
def test_what_is_typed_in_another_encoding_is_told(
    shop: HomeShop, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Python gives bytes that are no UTF-8 as surrogates, which nothing can encode."""
    assert status_of(app, words[0], shop.path, *words[1:]) == 2
    assert "is not UTF-8: set the terminal to it" in capsys.readouterr().err


# --- from a database -------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["INTEGER", "TEXT", ""])
@pytest.mark.parametrize("by_query", [False, True])
def test_a_database_is_asked_for_one_customer_alone(
    shop: HomeShop, typed: str, *, by_query: bool
) -> None:
    path = shop.folder / "shop.db"
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE orders (who {typed}, item TEXT, at INTEGER)")
        rows = [(int(user[1:]), item, at) for user, item, at in purchases()]
        as_stored = [(str(u) if typed == "TEXT" else u, i, a) for u, i, a in rows]
        database.executemany("INSERT INTO orders VALUES (?, ?, ?)", as_stored)
    source = (
        "query = \"SELECT who, item, at, 'a:b%' AS x FROM orders\""
        if by_query
        else 'table = "orders"'
    )
    shop.configure(
        f'[database]\nurl = "sqlite:///shop.db"\n[database.interactions]\n{source}\n'
        'columns = { user_id = "who", item_id = "item", timestamp = "at" }\n'
        'constants = { behavior = "purchase" }\n',
        data=None,
    )
    whole = HomeShop(shop.folder / "same")
    whole.model()
    whole.sell([(str(int(user[1:])), item, at) for user, item, at in purchases()])
    answer = ask(shop, user_id="3")
    assert answer["known"]
    assert items(answer) == items(ask(whole, user_id="3"))
    for stranger in ("abc", "03", "3 ", "3' OR 1=1 --", "9" * 40):
        assert not ask(shop, user_id=stranger)["known"]
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO orders VALUES (?, ?, ?)", (3, items(answer)[0], START))
    assert items(answer)[0] not in items(ask(shop, user_id="3"))
    path.unlink()
    with pytest.raises(DataError, match="no SQLite database"):
        ask(shop, user_id="3")


# --- measuring -------------------------------------------------------------------------------


def test_a_shop_is_measured_on_a_period_that_its_own_parts_have_not_seen(
    shop: HomeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.home import evaluation as home_evaluation

    latest = []
    real = adapting.fit_home

    def fit(model: Any, half_life: float, records: Any, *rest: Any) -> Any:
        latest.append(rest[3])
        return real(model, half_life, records, *rest)

    monkeypatch.setattr(home_evaluation, "fit_home", fit)
    document = evaluate_shop(shop.settings)
    assert set(document["figures"]) == {"global", "own", "mixed"}
    assert document["asked"] > 20
    times = sorted(time for _, _, time in purchases())
    cut = times[-1] + 1 - round(0.2 * (times[-1] + 1 - times[0]))
    assert latest == [cut, cut]
    assert document["figures"]["own"]["ndcg@20"] > 0.15
    for name in ("global", "mixed"):
        compared = document["vs_own"][name]["ndcg@20"]
        gain = document["figures"][name]["ndcg@20"] - document["figures"]["own"]["ndcg@20"]
        assert compared["mean"] == pytest.approx(gain)
        assert compared["low"] <= compared["mean"] <= compared["high"]


def test_changing_what_is_held_back_changes_no_weight_and_no_fit(shop: HomeShop) -> None:
    before = evaluate_shop(shop.settings)
    cut = max(time for _, _, time in purchases())
    records = [r for r in purchases() if r[2] < cut - 19 * DAY]
    stream = np.random.default_rng(1)
    late = [
        (f"u{k:02}", f"i{stream.integers(0, N):02}", cut - int(stream.integers(0, 15)) * DAY)
        for k in range(40)
    ]
    shop.sell([*records, *late, ("u00", "i00", cut)])
    after = evaluate_shop(shop.settings)
    assert after["train_until"] == before["train_until"]
    assert after["weights"] == before["weights"]


@pytest.mark.parametrize(("days", "seen"), [(0, True), (50, False), (70, False), (90, True)])
def test_what_the_global_model_may_have_seen_is_said(
    tmp_path: Path, days: int, *, seen: bool
) -> None:
    shop = HomeShop(tmp_path)
    shop.sell(purchases())
    shop.model(reference_time=START + days * DAY if days else 0)
    document = evaluate_shop(shop.settings)
    assert document["seen"] is seen
    assert any("may have been trained" in note for note in document["notes"]) is seen


def test_customers_who_come_only_at_the_end_are_not_asked(shop: HomeShop) -> None:
    late = [("new", f"i{k:02}", START + 99 * DAY + k) for k in range(10)]
    before = evaluate_shop(shop.settings)
    shop.sell([*purchases(), *late])
    after = evaluate_shop(shop.settings)
    assert after["customers"] == before["customers"]
    shop.sell(late)
    shop.configure("[home]\ntest_share = 0.5\n")
    assert evaluate_shop(shop.settings)["asked"] == 1
    shop.sell([("old", "i01", START), ("new", "i02", START + 9 * DAY)])
    with pytest.raises(DataError, match="nothing to ask for"):
        evaluate_shop(shop.settings)


def test_fewer_customers_can_be_measured(shop: HomeShop) -> None:
    document = evaluate_shop(shop.settings, customers=15)
    assert document["customers"] == 15
    assert document == evaluate_shop(shop.settings, customers=15)
    assert any("chance alone" in note for note in document["notes"])


# --- the command line ------------------------------------------------------------------------


def test_the_command_line_prints_tables_and_documents(shop: HomeShop) -> None:
    runner, path = CliRunner(), str(shop.path)
    for arguments in (
        ["adapt", path],
        ["recommend", path, "--user", "u03", "--why"],
        ["recommend", path, "--history", "i01, i02"],
        ["recommend", path, "--user", "u03", "--plain", "--tail-dial", "0.5"],
        ["evaluate", path],
    ):
        shown = runner.invoke(app, arguments)
        assert shown.exit_code == 0, shown.output
        document = json.loads(runner.invoke(app, [*arguments, "--json"]).stdout)
        assert document["shop"] == "corner"
        assert "corner" in shown.stdout


def test_a_customer_is_who_the_shops_own_records_say(tmp_path: Path) -> None:
    # Of another merchant's customer of the same name it knows nothing, and counts nothing.
    shop = HomeShop(tmp_path)
    mine = [("u", "i03"), ("u", "i00"), ("u", "gone"), ("u", "gone"), ("u", "lost"), ("u", "i03")]
    rows = [f"corner,{user},{item},{START},purchase" for user, item in mine]
    rows += [f"corner,seen,i05,{START},view", f"other,theirs,i04,{START},purchase"]
    rows += [f"other,u,away,{START},purchase", f"corner,u,,{START},purchase"]
    rows += [f"corner,u,,{START},purchase"]
    header = "merchant_id,user_id,item_id,timestamp,behavior\n"
    data = shop.folder / "data"
    (data / "interactions.csv").write_text(header + "\n".join(rows))
    (data / "customers.csv").write_text("user_id,age\nu,1\nseen,2\ntheirs,3\n")
    shop.configure("[behavior_weights]\npurchase = 1.0\n")
    settings, catalogue = shop.settings, shop.catalogue
    found = read_customer(settings, catalogue, "u", {"i07": 0.5, "i03": 0.5, "what": 1.0})
    assert (found.known, found.outside, found.unknown, found.attributes) == (True, 2, ("what",), {})
    assert found.notes == ("2 bad rows were left out",)
    history = found.history(0.0)
    assert dict(zip(history.indices.tolist(), history.data.tolist(), strict=True)) == {
        0: 1.0,
        3: 1.0,
        7: 0.5,
    }
    assert found.history(30.0)[0, 3] == 0.5  # old by now, and named
    theirs = read_customer(settings, catalogue, "theirs")
    assert (theirs.known, theirs.outside, theirs.history(0.0).nnz) == (False, 0, 0)
    # A customer of whom there are views alone, which weigh nothing here, is known by age.
    seen = read_customer(settings, catalogue, "seen")
    assert (seen.known, seen.history(0.0).nnz, seen.attributes) == (True, 0, {"age": "2"})
    assert any("a product in the catalogue with a weight" in note for note in seen.notes)


def test_what_is_named_by_two_numbers_of_one_product_counts_with_the_larger_weight(
    tmp_path: Path,
) -> None:
    shop = HomeShop(tmp_path)
    (shop.folder / "data" / "map.csv").write_text(
        "item_id,catalogue_item_id\nlarge,i03\nsmall,i03\n"
    )
    shop.configure('[catalogue_mapping]\ntable = "data/map.csv"\n')
    shop.sell(purchases(3))
    named = {"large": 0.5, "small": 0.75, "i03": 1.0}
    found = read_customer(shop.settings, shop.catalogue, items=named)
    assert (found.known, found.unknown) == (False, ("i03",))
    assert (found.named.indices.tolist(), found.named.data.tolist()) == ([3], [0.75])
