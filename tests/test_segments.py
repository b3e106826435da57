"""Who has no history is served by what customers of their age like, where age tells of it."""

import json
import sqlite3
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

from client.__main__ import app
from client.data.assortment import home_catalogue
from client.data.periods import histories
from client.home import segment_fitting
from client.home.adapted_state import read_facts
from client.home.adapting import adapt, last_part
from client.home.answers import HomeAnswers
from client.home.personalization import HomeModel
from client.home.recommending import Request, attributes_of, get_ready, recommend
from client.home.segment_fitting import (
    LEAST_MEMBERS,
    _segments,
    _strength,
    _Sums,
    fit_segments,
)
from client.home.segments import Segments
from client.home.shop import HomeRecords, load_home_model, read_records
from client.home_settings import HomeSettings
from client.shop_folder import ShopFolder
from common.errors import ConfigError, DataError
from common.model import LOCAL_NAMES
from common.protocol import ModelPlan
from common.queries.asking import Query
from common.schema import ShopEvents
from common.scoring import top_lists
from home_support import DAY, START, HomeShop, N, Record

CUSTOMERS = 160
#: What each age takes more of.
TASTE = {"young": 0, "old": 1, "middle": 2}


def people(*, told: bool = True) -> pd.DataFrame:
    """Return customers whose age says what they like, or says nothing."""
    ages = np.array([list(TASTE)[k % 3] for k in range(CUSTOMERS)])
    stream = np.random.default_rng(4)
    shown = ages if told else stream.permutation(ages)
    frame = pd.DataFrame({"user_id": [f"c{k:03}" for k in range(CUSTOMERS)], "age": shown})
    # Too few to be a segment; a guest to be; somebody of whom nothing is known.
    frame["job"] = ["diver" if k < LEAST_MEMBERS - 1 else "" for k in range(CUSTOMERS)]
    extra = pd.DataFrame({"user_id": ["new-young", "new-old"], "age": ["young", "old"], "job": ""})
    return pd.concat([frame, extra], ignore_index=True)


def records() -> list[Record]:
    """Return what customers bought: mostly what those of their true age like."""
    stream, found = np.random.default_rng(2), list[Record]()
    for k in range(CUSTOMERS):
        liked = np.arange(N) % 3 == k % 3
        for item in np.flatnonzero(stream.random(N) < np.where(liked, 0.25, 0.03)):
            at = START + int(stream.integers(0, 100 * DAY))
            found.append((f"c{k:03}", f"i{item:02}", at))
    return found


def made(root: Path, *, told: bool = True) -> HomeShop:
    shop = HomeShop(root)
    shop.publish(kinds=3)
    shop.model()
    shop.sell(records())
    people(told=told).to_csv(shop.folder / "data" / "customers.csv", index=False)
    return shop


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> HomeShop:
    shop = made(tmp_path_factory.mktemp("segments"))
    document = adapt(shop.path, shop.settings)
    assert set(document["segments"]) == {f"age {age}" for age in TASTE}
    return shop


def ask(shop: HomeShop, **changes: Any) -> dict[str, Any]:
    return recommend(shop.path, shop.settings, Request(**{"count": 10, **changes}))


def kinds(document: dict[str, Any]) -> list[int]:
    return [int(entry["item_id"][1:]) % 3 for entry in document["recommendations"]]


@pytest.mark.parametrize("age", list(TASTE))
def test_a_guest_is_served_by_the_taste_of_their_age(adapted: HomeShop, age: str) -> None:
    found = kinds(ask(adapted, attributes={"age": age}))
    assert found.count(TASTE[age]) >= 8


def test_a_customer_without_records_is_known_by_the_customers_table(adapted: HomeShop) -> None:
    for user, age in (("new-young", "young"), ("new-old", "old")):
        document = ask(adapted, user_id=user)
        assert not document["known"]
        expected = ask(adapted, attributes={"age": age})["recommendations"]
        assert document["recommendations"] == expected
    nobody = ask(adapted, user_id="nobody")["recommendations"]
    assert nobody != ask(adapted, user_id="new-old")["recommendations"]


def test_reasons_add_up_and_name_the_segment(adapted: HomeShop) -> None:
    for entry in ask(adapted, attributes={"age": "old"}, why=True)["recommendations"]:
        values = [reason["value"] for reason in entry["reasons"]]
        assert sum(values) == pytest.approx(entry["score"], abs=2e-5 * sum(map(abs, values)))
        assert {"kind": "attribute", "label": "age old"} in [
            {"kind": r["kind"], "label": r["label"]} for r in entry["reasons"]
        ]


def test_who_has_a_history_is_known_by_that(adapted: HomeShop) -> None:
    plain, told = (ask(adapted, user_id="c003", attributes=a) for a in ({}, {"age": "old"}))
    assert told["recommendations"] == plain["recommendations"]
    assert any("attributes do not count" in note for note in told["notes"])
    assert plain["notes"] == []


def test_what_is_known_of_nobody_is_said(adapted: HomeShop) -> None:
    sells = ask(adapted, user_id="nobody")["recommendations"]
    for attributes in ({"age": "ancient"}, {"job": "diver"}, {"shoe": "44"}):
        document = ask(adapted, attributes=attributes)
        assert document["recommendations"] == sells
        assert any("learned nothing of customers" in note for note in document["notes"])


def test_the_service_answers_alike(adapted: HomeShop) -> None:
    answers = HomeAnswers.of(1, get_ready(adapted.path, adapted.settings), adapted.settings)
    found = answers.recommend(Query(attributes={"age": "young"}, k=10, reasons=True))
    listed = ask(adapted, attributes={"age": "young"})["recommendations"]
    assert list(found.item_ids) == [entry["item_id"] for entry in listed]
    why = answers.explain(found.item_ids[0], {}, {"age": "young"})
    assert why.score == pytest.approx(found.scores[0], rel=1e-5)
    assert why.parts == found.reasons[0].parts
    by_user = answers.recommend(Query(user_id="new-young", k=10))
    assert by_user.item_ids == found.item_ids
    assert "segments" in LOCAL_NAMES


def test_an_age_that_tells_nothing_changes_nothing(tmp_path: Path) -> None:
    shop = made(tmp_path, told=False)
    document = adapt(shop.path, shop.settings)
    assert document["segments"] == []
    found = ask(shop, attributes={"age": "old"})
    assert found["recommendations"] == ask(shop, user_id="nobody")["recommendations"]
    facts = read_facts(ShopFolder.of(shop.path).adapted)
    assert facts is not None
    assert facts[1].segments == ()


def test_a_shop_that_knows_nothing_of_its_customers_is_served_as_before(tmp_path: Path) -> None:
    shop = made(tmp_path)
    (shop.folder / "data" / "customers.csv").unlink()
    assert adapt(shop.path, shop.settings)["segments"] == []
    assert not any("attributes" in note for note in ask(shop, user_id="nobody")["notes"])


# --- how it is fitted ------------------------------------------------------------------------


def fitting(shop: HomeShop) -> tuple[HomeRecords, HomeModel, int]:
    ready = get_ready(shop.path, shop.settings)
    assert ready.home is not None
    found = read_records(shop.settings, ready.catalogue)
    first, last = found.span
    return found, ready.home, last_part(first, last + 1, shop.settings.home.validation_share)


def test_a_customer_is_left_out_of_their_own_segments(adapted: HomeShop) -> None:
    found, home, _ = fitting(adapted)
    history = histories(found.events, N, 0.0, 0)
    sums = _Sums.of(home, found.events, history, 10_000)
    user = 7
    own = home.scores(history[[user]])[0]
    apart = sums.taste_of_others(found.events, user, own)
    # The same with their history, and so their say in it, exchanged for another's.
    other = sparse.vstack([history[:user], history[[20]], history[user + 1 :]]).tocsr()
    changed = _Sums.of(home, found.events, other, 10_000)
    also = changed.taste_of_others(found.events, user, home.scores(history[[20]])[0])
    age = str(found.events.attributes["age"][user])
    others = (found.events.attributes["age"] == age) & (np.arange(len(history.indptr) - 1) != user)
    said = home.scores(history[others])
    count = int(others.sum())
    expected = (said.sum(axis=0) - count * sums.mean) / ((count + 10.0) * sums.spread)
    np.testing.assert_allclose(apart, expected, atol=1e-4)
    # Only the mean of all, of which they are one, has changed.
    assert np.abs(also - apart).max() < 0.05 * np.abs(apart).max()


def test_weights_are_chosen_on_others_than_those_who_are_asked_for(adapted: HomeShop) -> None:
    """Only what was bought from the beginning of the last part on chooses."""
    found, home, begin = fitting(adapted)
    arguments = (home, adapted.settings.home.mixed, 2000, begin)
    kept = fit_segments(home.model, 0.0, found, *arguments)
    assert kept is not None
    assert np.isfinite(kept.tastes).all()
    before = replace(found, events=found.events.before(begin))
    assert fit_segments(home.model, 0.0, before, *arguments) is None


def test_the_mixture_that_is_asked_knows_nothing_of_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It was fitted around a model whose groups all records had dealt to products already, those
    # of the last part among them: its directions told of them.
    shop = made(tmp_path)
    groups = ModelPlan(dimension=2, groups="type", learned_items=3, group_weights="even")
    folder = shop.model("grouped", model=groups)
    how = HomeSettings(start={"shared_learned": 1.0}, own_groups="type", share_prior="even")
    catalogue = home_catalogue(shop.settings)
    model = load_home_model(folder, catalogue).model
    found = read_records(shop.settings, catalogue)
    begin = last_part(found.span[0], found.span[1] + 1, 0.2)
    later = found.events.timestamps >= begin
    # Of each kind the first product alone was bought then.
    other = replace(found.events, items=np.where(later, found.events.items % 3, found.events.items))
    pasts: list[HomeModel] = []

    def asked(past: HomeModel, *_: object) -> float:
        pasts.append(past)
        return 0.0

    monkeypatch.setattr(segment_fitting, "_strength", asked)
    history = histories(found.events.before(begin), N, 0.0, begin)
    for events in (found.events, other):
        records = replace(found, events=events)
        fitted = HomeModel.fit(model, histories(events, N, 0.0, records.span[1] + 1), how)
        assert fit_segments(model, 0.0, records, fitted, how, 2000, begin) is None
    expected = HomeModel.fit(model, history, how).scores(history)
    for past in pasts:
        np.testing.assert_array_equal(past.scores(history), expected)


@pytest.mark.parametrize("half_life", [0.0, 30.0])
def test_tastes_are_judged_at_one_moment_and_read_off_all_records_at_the_last(
    half_life: float, adapted: HomeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, home, begin = fitting(adapted)
    stock = np.arange(N) % 4 != 0
    found = replace(found, stock=stock)
    heard: list[tuple[Any, ...]] = []
    judged: list[tuple[Any, ...]] = []
    fitted: list[object] = []
    read, honest = _Sums.of, HomeModel.fit

    def of(*args: Any) -> _Sums:
        heard.append(args)
        return read(*args)

    def strength(*args: Any) -> float:
        judged.append(args)
        return 0.5

    def fit(*args: Any, **named: Any) -> HomeModel:
        fitted.append(named["stock"])
        return honest(*args, **named)

    monkeypatch.setattr(_Sums, "of", of)
    monkeypatch.setattr(HomeModel, "fit", fit)
    monkeypatch.setattr(segment_fitting, "_strength", strength)
    how = adapted.settings.home.mixed
    kept = fit_segments(home.model, half_life, found, home, how, 2000, begin)
    (past, before, history, _), (last, events, whole, _) = heard
    assert fitted == [stock]
    assert past.mixing_weights == home.mixing_weights
    assert before.timestamps.max() < begin <= found.events.timestamps.max()
    expected = histories(found.events.before(begin), N, half_life, begin)
    np.testing.assert_array_equal(history.toarray(), expected.toarray())
    assert last is home
    assert events is found.events
    end = found.span[1] + 1
    expected = histories(found.events, N, half_life, end)
    np.testing.assert_array_equal(whole.toarray(), expected.toarray())
    ((_, _, known, _, after, listed, _),) = judged
    assert known is before
    assert after.timestamps.min() >= begin
    assert len(after) + len(known) == len(found.events)
    assert listed is stock
    assert kept is not None
    tastes = read(home, found.events, whole, 2000).tastes()
    scale = 0.5 * float(segment_fitting.what_sells(home).std())
    np.testing.assert_allclose(kept.tastes, scale * tastes, rtol=1e-5)


def test_the_strength_is_the_best_of_those_that_gain_beyond_doubt(
    adapted: HomeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, home, begin = fitting(adapted)
    how, before = adapted.settings.home.mixed, found.events.before(begin)
    history = histories(before, N, 0.0, begin)
    sums = _Sums.of(home, before, history, 10_000)
    np.testing.assert_allclose(
        sums.tastes(),
        (sums.sums - sums.counts[:, None] * sums.mean)
        / ((sums.counts[:, None] + 10.0) * sums.spread),
        rtol=1e-5,
    )
    place = sums.names.index(("age", "old"))
    old = replace(
        sums,
        names=(("age", "old"),),
        sums=sums.sums[[place]],
        counts=sums.counts[[place]],
    )
    asked: list[sparse.csr_matrix] = []
    gains = {0.0: 0.0, 0.1: 0.1, 0.2: 0.3, 0.4: 0.2}

    def reached(_: object, __: object, targets: sparse.csr_matrix, *___: object) -> SimpleNamespace:
        tried = len(asked)
        asked.append(targets)
        gain = list(gains.values())[tried] if tried < len(gains) else 0.0
        return SimpleNamespace(ndcg=np.full(targets.shape[0], gain))

    monkeypatch.setattr(segment_fitting, "evaluate", reached)
    after = found.events.since(begin)
    assert _strength(home, old, before, history, after, None, how) == 0.2
    # Those who are in a segment that is kept, and bought anything then.
    bought = after.matrix(N)
    users = (found.events.attributes["age"] == "old") & (np.diff(bought.indptr) > 0)
    for targets in asked:
        np.testing.assert_array_equal(targets.toarray(), bought[users].toarray())
    asked.clear()
    # One alone says nothing, however much it gains.
    first = after.select(after.users == np.flatnonzero(users)[0])
    assert _strength(home, old, before, history, first, None, how) == 0.0
    assert not asked


def test_who_has_no_history_yet_says_nothing_of_a_segment(adapted: HomeShop) -> None:
    found, home, _ = fitting(adapted)
    history = histories(found.events.before(found.span[0] + 10 * DAY), N, 0.0, 0)
    active = np.diff(history.indptr) > 0
    sums = _Sums.of(home, found.events, history, 10_000)
    np.testing.assert_array_equal(sums.heard, active)
    assert 0 < active.sum() < len(active)
    assert sums.counts.sum() <= active.sum()


def test_a_segment_takes_five_and_the_largest_come_first() -> None:
    ages = np.array(["a"] * LEAST_MEMBERS + ["b"] * (LEAST_MEMBERS - 1) + ["c"] * 9 + [""] * 20)
    none = np.zeros(0, np.int64)
    users = np.array([f"u{k}" for k in range(len(ages))], dtype=object)
    events = ShopEvents("m", users, none, none, none, none, attributes={"age": ages.astype(object)})
    everyone = np.ones(len(ages), bool)
    assert _segments(events, everyone, 30) == (("age", "c"), ("age", "a"))
    everyone[0] = False  # one who was not heard
    assert _segments(events, everyone, 30) == (("age", "c"),)


def test_tastes_are_judged_by_lists_of_what_is_stocked(
    adapted: HomeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, home, begin = fitting(adapted)
    stock, allowed = np.arange(N) % 4 != 0, list[object]()

    def listed(*args: Any, **named: Any) -> Any:
        allowed.extend(named["allowed"])
        return top_lists(*args, **named)

    monkeypatch.setattr(segment_fitting, "top_lists", listed)
    records = replace(found, stock=stock)
    fit_segments(home.model, 0.0, records, home, adapted.settings.home.mixed, 2000, begin)
    assert len(allowed) > 1
    assert all(one is stock for one in allowed)


def test_customers_and_segments_are_limited(
    adapted: HomeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, home, _ = fitting(adapted)
    history = histories(found.events, N, 0.0, 0)
    few = _Sums.of(home, found.events, history, 30)
    assert few.heard.sum() == 30
    assert few.counts.sum() <= 30
    monkeypatch.setattr(segment_fitting, "_BYTES", 4 * N * 2)
    two = _Sums.of(home, found.events, history, 10_000)
    assert len(two.names) == 2
    assert two.counts.tolist() == sorted(two.counts.tolist(), reverse=True)


# --- where it comes from ---------------------------------------------------------------------


def test_a_database_tells_of_one_customer_alone(adapted: HomeShop, tmp_path: Path) -> None:
    shop = made(tmp_path)
    with sqlite3.connect(shop.folder / "shop.db") as database:
        database.execute("CREATE TABLE orders (who TEXT, item TEXT, at INTEGER)")
        database.executemany("INSERT INTO orders VALUES (?, ?, ?)", records())
        frame = people().rename(columns={"user_id": "no", "age": "band"})
        frame.assign(name="secret").to_sql("people", database, index=False)
    database.close()
    shop.configure(
        '[database]\nurl = "sqlite:///shop.db"\n[database.interactions]\ntable = "orders"\n'
        'columns = { user_id = "who", item_id = "item", timestamp = "at" }\n'
        'constants = { behavior = "purchase" }\n[database.customers]\ntable = "people"\n'
        'columns = { user_id = "no", age = "band" }\n',
        data=None,
    )
    adapt(shop.path, shop.settings)
    for user in ("new-old", "new-young", "nobody"):
        found, expected = (ask(s, user_id=user, why=True) for s in (shop, adapted))
        assert found["recommendations"] == expected["recommendations"]


def test_of_another_merchant_s_customer_nothing_is_known(tmp_path: Path) -> None:
    shop = made(tmp_path)
    frame = people().assign(merchant_id="corner")
    frame.loc[frame["user_id"] == "new-old", "merchant_id"] = "other"
    frame.to_csv(shop.folder / "data" / "customers.csv", index=False)
    adapt(shop.path, shop.settings)
    sells = ask(shop, user_id="nobody")["recommendations"]
    assert ask(shop, user_id="new-old")["recommendations"] == sells
    assert ask(shop, user_id="new-young")["recommendations"] != sells
    frame.drop(columns=["user_id"]).to_csv(shop.folder / "data" / "customers.csv", index=False)
    with pytest.raises(DataError, match="user_id"):
        ask(shop, user_id="nobody")


def test_attributes_are_given_on_the_command_line(adapted: HomeShop) -> None:
    command = ["recommend", str(adapted.path), "--attribute", "age=old", "-k", "10", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == ask(adapted, attributes={"age": "old"})
    assert attributes_of(["a=b=c"]) == {"a": "b=c"}
    for wrong in ("age", "=old", "age="):
        with pytest.raises(ConfigError, match="NAME=VALUE"):
            attributes_of([wrong])
    with pytest.raises(ConfigError, match="for a guest"):
        Request(user_id="u", history=("i01",), attributes={"age": "old"})


def test_segments_that_read_alike_both_count() -> None:
    # Both are labelled "a b c".
    segments = Segments((("a b", "c"), ("a", "b c")), np.array([[1.0, 0.0], [0.0, 2.0]], "f4"))
    parts = segments.parts({"a b": "c", "a": "b c"})
    assert np.sum(list(parts.values()), axis=0).tolist() == [1.0, 2.0]


def test_a_word_without_end_takes_no_memory_for_all_others() -> None:
    """An array of text has room in each place for the longest."""
    words = np.array([*(f"w{k % 20}" for k in range(400)), "y" * 100_000, ""], dtype=object)
    none = np.zeros(0, np.int64)
    users = np.array([f"u{k}" for k in range(len(words))], dtype=object)
    events = ShopEvents("m", users, none, none, none, none, attributes={"note": words})
    tracemalloc.start()
    try:
        found = _segments(events, np.ones(len(words), bool), 30)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert found == tuple(sorted(("note", f"w{k}") for k in range(20)))
