"""A shop's own products at home: known, recommended and explained there, and nowhere else."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from client.data import records as shop_records
from client.data.assortment import Assortment, home_catalogue
from client.data.periods import histories
from client.home import adapted_state, adapting
from client.home.adapting import adapt
from client.home.answers import HomeAnswers
from client.home.assortment_model import on_assortment
from client.home.evaluation import evaluate_shop
from client.home.recommending import Request, get_ready, recommend
from client.home.shop import Tail, read_records
from client.privacy.ledger import Ledger
from client.rounds.participation import answer
from client.rounds.replying import Node
from common.errors import ArtifactError, DataError, UnavailableError
from common.explanation import explain
from common.features import Catalogue, ContentSpec
from common.model import GlobalModel, initial_state
from common.protocol import (
    EVALUATE,
    JOIN,
    POPULARITY,
    RELEASE,
    TRAIN,
    ModelPlan,
    TrainingPlan,
)
from common.queries.asking import Query
from common.queries.filters import Filters
from common.queries.reasons import sides_of
from home_support import DAY, START, HomeShop, N, Record, purchases

M = 10
HOUSE = [f"house-{k}" for k in range(M)]
EVERY_PART = (
    "[home.mixed]\nown_expectation = 0.5\n[home.mixed.start]\ncontent = 0.4\n"
    "shared_ease = 1.0\nown_ease = 0.3\nown_learned = 0.5\nlearned = 0.3\nkin = 0.6\n"
    "popularity = 0.1\nown_popularity = 0.2\n"
)


def describe(shop: HomeShop, **columns: list[str]) -> None:
    """Write the shop's own products: two of each kind, the last two of a kind of its own."""
    kinds = [f"t{k % 5}" if k < M - 2 else "house" for k in range(M)]
    frame = pd.DataFrame(
        {"item_id": HOUSE, "type": kinds, "title": [f"House {k}" for k in range(M)]}
    )
    frame = frame.assign(**columns)
    also = pd.DataFrame({"item_id": ["i03"], "type": ["wrong"], "title": ["The catalogue's own"]})
    pd.concat([frame, also]).to_csv(shop.folder / "data" / "products.csv", index=False)


def house_sales(seed: int = 5) -> list[Record]:
    """Return records of own products: customers take those of their kind, and nobody the last."""
    stream = np.random.default_rng(seed)
    return [
        (f"u{user:02}", HOUSE[item], START + int(stream.integers(0, 100 * DAY)))
        for user in range(40)
        for item in range(M - 1)
        if stream.random() < (0.6 if item % 5 == user % 5 else 0.1)
    ]


@pytest.fixture
def shop(tmp_path: Path) -> HomeShop:
    shop = HomeShop(tmp_path)
    shop.configure(EVERY_PART)
    shop.model()
    shop.sell([*purchases(), *house_sales()])
    describe(shop)
    return shop


def ask(shop: HomeShop, **changes: Any) -> dict[str, Any]:
    return recommend(
        shop.path, shop.settings, Request(**{"user_id": "u03", "count": 20, **changes})
    )


def items(document: dict[str, Any]) -> list[str]:
    return [entry["item_id"] for entry in document["recommendations"]]


# --- the rows --------------------------------------------------------------------------------

WIDE = ContentSpec(content_width=64, nonzeros=2, hash_rows=32)


def table(rows: int, seed: int = 0) -> pd.DataFrame:
    """Return products with a number, a yes or no, words, several values and gaps."""
    stream = np.random.default_rng(seed)
    words = np.array(["green", "black", "tea", "fine", "leaf", "bag", "box"])
    return pd.DataFrame(
        {
            "item_id": [f"p{k:03}" for k in range(rows)],
            "kind": [f"k{k}" for k in stream.integers(0, 25, rows)],
            "brand": [f"b{k}" if k < 25 else None for k in stream.integers(0, 28, rows)],
            "price": np.where(stream.random(rows) < 0.1, np.nan, stream.random(rows).round(2) * 50),
            "organic": stream.random(rows) < 0.5,
            "pieces": stream.integers(1, 6, rows),
            "tags": ["|".join(stream.choice(words, 2, replace=False)) for _ in range(rows)],
            "title": [" ".join([*stream.choice(words, 4), f"no{k}"]) for k in range(rows)],
        }
    )


def parted(rows: int = 80, own: int = 20) -> tuple[Catalogue, Assortment]:
    """Return a catalogue of all products, and one of most of them with the others behind it.

    Bins and words are settled on the same rows, and every value is known to them.
    """
    frame = table(rows)
    base = Catalogue.of(frame[: rows - own], WIDE).settled()
    whole = Catalogue.of(frame, base.spec)
    texts = frame[rows - own :].copy()
    for name in ("price", "organic", "pieces"):  # As a file or a database gives them.
        texts[name] = texts[name].map(lambda v: "" if v != v else str(v).lower())
    return whole, Assortment.beside(base, texts)


def test_own_products_have_the_content_that_the_catalogue_would_give_them() -> None:
    whole, assortment = parted()
    assert assortment.item_ids.tolist() == whole.item_ids.tolist()
    difference = (assortment.content - whole.content).tocoo()
    assert np.abs(difference.data).max(initial=0.0) < 1e-6
    assert np.diff(assortment.content.indptr).min() > 0
    # The catalogue's own rows are what they were, to the bit.
    size = assortment.base.size
    for kept, known in (
        (assortment.content[:size], assortment.base.content),
        (assortment.feature_ids[:size], assortment.base.feature_ids),
    ):
        assert (kept != known).nnz == 0
    assert assortment.fingerprint != assortment.base.fingerprint


def test_a_value_that_the_catalogue_does_not_know_is_content_and_nothing_learned() -> None:
    base = Catalogue.of(table(60), WIDE).settled()
    own = table(2, seed=9).assign(item_id=["x1", "x2"], kind="house", brand="house", tags="green")
    assortment = Assortment.beside(base, own)
    known = {feature.name: feature for feature in assortment.features}
    for name in ("kind", "brand"):
        assert known[name].values.tolist() == assortment.base.feature(name).values.tolist()
        assert known[name].rows.max() < base.size
    assert set(known["tags"].rows) >= {base.size, base.size + 1}
    one, other = assortment.content[base.size], assortment.content[base.size + 1]
    # The house's kind and brand, which the two have in common and no other product.
    alone = assortment.own
    assert "house" in alone.feature("kind").values
    assert float((one @ other.T).toarray()[0, 0]) > 0.3


def model_of(catalogue: Catalogue, **shape: Any) -> GlobalModel:
    plan = ModelPlan(dimension=4, **shape)
    stream = np.random.default_rng(3)
    state = initial_state(plan, catalogue.size)
    popularity = stream.dirichlet(np.ones(catalogue.size)).astype(np.float32)
    popularity[::7] = 0.0
    state[POPULARITY] = popularity
    for name, array in state.items():
        if name.endswith("embedding"):
            state[name] = stream.standard_normal(array.shape).astype(np.float32)
    return GlobalModel(plan, catalogue, state)


SHAPES: list[dict[str, Any]] = [
    {},
    {"learned_items": 30},
    {"feature_rows": 32},
    {"feature_rows": 32, "learned_items": 30},
    {"groups": "kind", "learned_items": 12},
    {"groups": "kind", "learned_items": 12, "centred": False},
    {"groups": "kind", "learned_items": 12, "group_weights": "even"},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_catalogue_s_scores_do_not_change(shape: dict[str, Any]) -> None:
    _, assortment = parted()
    base = model_of(assortment.base, **shape)
    model = on_assortment(base, assortment)
    stream = np.random.default_rng(0)
    history = sparse.random(
        9, base.catalogue.size, 0.1, format="csr", random_state=stream, dtype=np.float32
    )
    wider = sparse.csr_matrix(history)
    wider.resize((9, assortment.size))
    known, found = base.parts(history), model.parts(wider)
    for name, part in known.items():
        np.testing.assert_array_equal(found[name][:, : base.catalogue.size], part, err_msg=name)
    assert (model.block.rows if not shape.get("groups") else [0])[0] == (
        base.block.rows[0] if not shape.get("groups") else 0
    )


def test_an_own_product_is_learned_as_one_that_nobody_has_bought() -> None:
    _, assortment = parted()
    for shape in SHAPES:
        base = model_of(assortment.base, **shape)
        model = on_assortment(base, assortment)
        learned = model.lifted_vectors[base.catalogue.size :]
        if "feature_rows" in shape:
            unsold = int(np.flatnonzero(base.state[POPULARITY] == 0)[0])
            gain = np.float32((0.05 / (base.block.rates[0] * len(base.block.rows) + 0.05)) ** 0.3)
            gain *= base.block.gain[0]
            if "learned_items" not in shape:
                assert gain == pytest.approx(base.block.gain[unsold], rel=1e-5)
            table_part = (
                assortment.feature_ids[base.catalogue.size :] @ base.state["feature_embedding"]
            )
            np.testing.assert_allclose(learned, gain * table_part, rtol=1e-5, atol=1e-6)
        elif "groups" in shape:
            kind = dict(zip(assortment.item_ids, assortment.products["kind"], strict=True))
            twins = 0
            for row in range(base.catalogue.size, assortment.size):
                of_kind = [
                    k
                    for k in range(base.catalogue.size)
                    if kind[assortment.item_ids[k]] == kind[assortment.item_ids[row]]
                    and base.state[POPULARITY][k] == 0
                ]
                for twin in of_kind:
                    twins += 1
                    np.testing.assert_allclose(
                        model.lifted_vectors[row], model.lifted_vectors[twin], rtol=1e-5
                    )
            assert twins > 3
        else:
            assert not learned.any()


def test_an_own_product_is_as_popular_as_its_like() -> None:
    whole, assortment = parted()
    base = model_of(assortment.base)
    model = on_assortment(base, assortment)
    rates = np.zeros(whole.size, np.float32)
    rates[: base.catalogue.size] = base.state[POPULARITY]
    plan = ModelPlan(dimension=4)
    full = GlobalModel(plan, whole, initial_state(plan, whole.size) | {POPULARITY: rates})
    share = base.catalogue.size / whole.size  # 1 is an average product of as many.
    own = slice(base.catalogue.size, None)
    np.testing.assert_allclose(
        model.popularity_part[own], full.popularity_part[own] * share, rtol=1e-5
    )
    assert len(np.unique(model.popularity_part[own])) > 3
    assert not model.popularity_bias[own].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_own_product_s_score_comes_apart(shape: dict[str, Any]) -> None:
    _, assortment = parted()
    model = on_assortment(model_of(assortment.base, **shape), assortment)
    stream = np.random.default_rng(1)
    history = sparse.csr_matrix((stream.random((1, assortment.size)) < 0.15).astype(np.float32))
    assert history.indices.max() >= assortment.base.size
    scores = model.scores(history)[0]
    for row in range(assortment.base.size - 3, assortment.size):
        found = explain(*sides_of(model, history, row))
        parts = [part.value for part in found.parts]
        assert sum(parts) == pytest.approx(scores[row], abs=1e-4 * sum(map(abs, parts)))
        by_feature = explain(*sides_of(model, history, row), by="product")
        assert by_feature.score == pytest.approx(found.score, abs=1e-6)


# --- at the shop -----------------------------------------------------------------------------


@pytest.mark.parametrize("adapted", [False, True])
def test_own_products_are_recommended_with_reasons_that_add_up(
    shop: HomeShop, *, adapted: bool
) -> None:
    if adapted:
        adapt(shop.path, shop.settings)
    bought = {item for user, item, _ in house_sales() if user == "u03"}
    document = ask(shop, count=N + M, why=True)
    listed = items(document)
    assert set(HOUSE) - bought == set(HOUSE) & set(listed)
    assert len(listed) == len(set(listed))
    for entry in document["recommendations"]:
        own = entry["item_id"] in HOUSE
        assert entry.get("outside_catalogue", False) is own
        values = [reason["value"] for reason in entry["reasons"]]
        assert sum(values) == pytest.approx(entry["score"], abs=2e-5 * sum(map(abs, values)))
        if own:
            assert entry["title"].startswith("House")
    said = {r["label"] for entry in document["recommendations"] for r in entry["reasons"]}
    assert said & bought, "what was bought of the house counts"
    kinds = {r["kind"] for entry in document["recommendations"] for r in entry["reasons"]}
    assert {"history-content", "popularity"} <= kinds
    assert ("neighbours" in kinds) is adapted


def test_a_taste_for_own_products_is_met_by_content_and_by_sales(shop: HomeShop) -> None:
    guest = ask(shop, user_id="", history=("house-8",))
    assert guest["history"] == {"products": 1, "outside_catalogue": 0}
    # By content alone: one of a kind that only this shop has, and that nobody bought yet.
    answers = HomeAnswers.of(1, get_ready(shop.path, shop.settings), shop.settings)
    assert answers.similar("house-8", 3).item_ids[0] == "house-9"
    kind = {*(f"i{k:02}" for k in range(1, N, 5)), "house-6"}
    assert set(answers.similar("house-1", 13).item_ids) == kind
    # By what the shop's customers bought together.
    adapt(shop.path, shop.settings)
    for user in ("u01", "u02"):
        taste = int(user[1:]) % 5
        bought = {item for name, item, _ in [*purchases(), *house_sales()] if name == user}
        scores = {
            e["item_id"]: e["score"] for e in ask(shop, user_id=user, count=70)["recommendations"]
        }
        mine = [scores[h] for k, h in enumerate(HOUSE[:8]) if k % 5 == taste and h not in bought]
        others = [scores[h] for k, h in enumerate(HOUSE[:8]) if k % 5 != taste and h in scores]
        for score in mine:
            assert score > np.median(others)


def test_a_record_of_an_own_product_counts_at_once(shop: HomeShop) -> None:
    adapt(shop.path, shop.settings)
    before = [item for item in items(ask(shop, count=70)) if item in HOUSE]
    shop.sell([*purchases(), *house_sales(), ("u03", before[0], START)])
    assert before[0] not in items(ask(shop, count=70))


def test_the_stored_mixture_scores_as_the_one_that_was_fitted(
    shop: HomeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = []
    real = adapted_state.save_adapted

    def save(folder: Path, home: Any, facts: Any) -> Any:
        fitted.append(home)
        return real(folder, home, facts)

    monkeypatch.setattr(adapting, "save_adapted", save)
    document = adapt(shop.path, shop.settings)
    assert document["records"] == len(purchases()) + len(house_sales())
    # What the table says later is known from the next adaptation on.
    describe(shop, type=["t0"] * M)
    stored = get_ready(shop.path, shop.settings)
    assert stored.home is not None
    assert isinstance(stored.catalogue, Assortment)
    assert stored.catalogue.size == N + M
    records = read_records(shop.settings, stored.catalogue)
    history = histories(records.events, N + M, 0.0, 0)
    assert history[:, N:].nnz > 50
    np.testing.assert_array_equal(stored.home.scores(history), fitted[0].scores(history))
    # Features of all products are slow to make: an answer does without.
    again = get_ready(shop.path, shop.settings)
    again.scores(history[:1])
    again.scores(sparse.csr_matrix((1, N + M), dtype=np.float32))
    assert "features" not in vars(again.catalogue)


def _no_table(shop: HomeShop) -> None:
    (shop.folder / "data" / "products.csv").unlink()


def _nothing_of_its_own(shop: HomeShop) -> None:
    frame = shop.catalogue.products[["item_id"]].assign(type="of the shop's own making")
    frame.to_csv(shop.folder / "data" / "products.csv", index=False)


def _not_wanted(shop: HomeShop) -> None:
    shop.configure(f"{EVERY_PART}[home]\nown_products = false\n")


@pytest.mark.parametrize("change", [_no_table, _nothing_of_its_own, _not_wanted])
def test_a_shop_without_own_products_is_served_as_it_was(
    shop: HomeShop, tmp_path: Path, change: Callable[[HomeShop], None]
) -> None:
    before = HomeShop(tmp_path / "before")
    before.configure(EVERY_PART)
    before.model()
    before.sell(purchases())
    change(shop)
    assert not isinstance(home_catalogue(shop.settings), Assortment)
    for act in (lambda _: None, lambda one: adapt(one.path, one.settings)):
        act(shop)
        act(before)
        found, expected = ask(shop, why=True), ask(before, why=True)
        assert found["recommendations"] == expected["recommendations"]
    assert found["history"]["outside_catalogue"] > 0


def test_turning_them_off_or_on_asks_for_a_new_adaptation(shop: HomeShop) -> None:
    adapt(shop.path, shop.settings)
    _not_wanted(shop)
    with pytest.raises(ArtifactError, match=r"another home\.own_products than there is now"):
        ask(shop)


def test_what_is_not_in_stock_or_no_longer_sold_is_not_listed(shop: HomeShop) -> None:
    shop.sell([*purchases(), *house_sales()], stock=["i01", "house-8", "house-9", "i02"])
    assert set(items(ask(shop, user_id="nobody"))) == {"i01", "i02", "house-8", "house-9"}
    shop.sell([*purchases(), *house_sales()])
    describe(shop, retired=["yes"] * 9 + ["no"])
    assert set(items(ask(shop, user_id="nobody", count=70))) & set(HOUSE) == {"house-9"}


def test_an_own_best_seller_is_no_tail(shop: HomeShop) -> None:
    everybody = [(f"u{user:02}", "house-3", START + user) for user in range(40)]
    shop.sell([*purchases(), *everybody])
    adapt(shop.path, shop.settings)
    ready = get_ready(shop.path, shop.settings)
    best, never = ready.catalogue.rows(["house-3", "house-9"])
    tail = Tail(ready.came.model, read_records(shop.settings, ready.catalogue).events).mask
    assert (tail[best], tail[never]) == (False, True)
    assert (ready.tail[best], ready.tail[never]) == (False, True)


def test_a_shop_is_measured_on_its_own_products_too(shop: HomeShop) -> None:
    # Early on customers buy the catalogue's products, and at last nothing but their own kind's.
    late = [(f"u{u:02}", HOUSE[u % 5], START + 99 * DAY + u) for u in range(40)]
    early = [(f"u{u:02}", HOUSE[u % 5 + 5], START + (u % 70) * DAY) for u in range(40) if u % 5 < 3]
    shop.sell([r for r in purchases() if r[2] < START + 75 * DAY] + early + late)
    found = evaluate_shop(shop.settings)
    assert found["asked"] == 40
    # Nothing else was asked for.
    assert found["figures"]["mixed"]["recall@20"] > 0
    _no_table(shop)
    assert evaluate_shop(shop.settings)["until"] < found["train_until"]


def test_the_shop_s_service_answers_with_them(shop: HomeShop) -> None:
    adapt(shop.path, shop.settings)
    answers = HomeAnswers.of(1, get_ready(shop.path, shop.settings), shop.settings)
    found = answers.recommend(Query(user_id="u03", k=70, reasons=True))
    assert list(found.item_ids) == items(ask(shop, count=70))
    listed = next(item for item in found.item_ids if item in HOUSE)
    assert answers.product(listed)["title"].startswith("House")
    why = answers.explain(listed, {}, {}, "u03")
    place = found.item_ids.index(listed)
    assert why.score == pytest.approx(found.reasons[place].score)
    house = answers.recommend(Query(user_id="u03", k=70, filters=Filters(exclude=frozenset(HOUSE))))
    assert not set(HOUSE) & set(house.item_ids)


# --- other numbers, other sources ------------------------------------------------------------


def test_numbers_that_look_like_the_catalogue_s_stay_apart(shop: HomeShop) -> None:
    """The shop's i00 to i09 are house products; what it calls a00 is the catalogue's i00."""
    named = dict(zip(HOUSE, [f"i{k:02}" for k in range(M)], strict=True))
    records = [(u, item.replace("i", "a"), at) for u, item, at in purchases()]
    shop.sell([*records, *((u, named[item], at) for u, item, at in house_sales())])
    frame = pd.read_csv(shop.folder / "data" / "products.csv")[:M]
    frame.assign(item_id=frame["item_id"].map(named)).to_csv(
        shop.folder / "data" / "products.csv", index=False
    )
    pairs = [f"a{k:02},i{k:02}" for k in range(N)]
    (shop.folder / "map.csv").write_text("\n".join(["item_id,catalogue_item_id", *pairs]))
    shop.configure(f'{EVERY_PART}[catalogue_mapping]\ntable = "map.csv"\n')
    for act in (lambda: None, lambda: adapt(shop.path, shop.settings)):
        act()
        document = ask(shop, count=70)
        own = {e["item_id"]: e for e in document["recommendations"] if "outside_catalogue" in e}
        assert own
        for name, entry in own.items():
            assert [name] == [f"own:{number}" for number in entry["own_item_ids"]]
            assert entry["title"] == f"House {int(name[-2:])}"
        shared = [e for e in document["recommendations"] if "outside_catalogue" not in e]
        assert all(e["own_item_ids"] == [e["item_id"].replace("i", "a")] for e in shared)
    # A guest goes by the shop's own numbers too.
    answers = HomeAnswers.of(1, get_ready(shop.path, shop.settings, plain=True), shop.settings)
    alike = answers.similar("i08", 1)
    assert (alike.item_ids, alike.own_item_ids) == (("own:i09",), (("i09",),))


@pytest.fixture
def in_sqlite(shop: HomeShop) -> HomeShop:
    with sqlite3.connect(shop.folder / "shop.db") as database:
        database.execute("CREATE TABLE orders (who TEXT, item TEXT, at INTEGER)")
        rows = [*purchases(), *house_sales()]
        database.executemany("INSERT INTO orders VALUES (?, ?, ?)", rows)
        frame = pd.read_csv(shop.folder / "data" / "products.csv")
        frame = frame.rename(columns={"type": "department"}).assign(cost=1.5)
        frame.to_sql("articles", database, index=False)
    database.close()
    shop.configure(
        f"{EVERY_PART}[database]\n"
        'url = "sqlite:///shop.db"\n[database.interactions]\ntable = "orders"\n'
        'columns = { user_id = "who", item_id = "item", timestamp = "at" }\n'
        'constants = { behavior = "purchase" }\n'
        '[database.products]\ntable = "articles"\ncolumns = { type = "department" }\n',
        data=None,
    )
    return shop


def test_a_database_s_products_are_known_as_a_folder_s(in_sqlite: HomeShop, tmp_path: Path) -> None:
    found = home_catalogue(in_sqlite.settings)
    same = HomeShop(tmp_path / "same")
    describe(same)
    same.sell([*purchases(), *house_sales()])
    expected = home_catalogue(same.settings)
    pd.testing.assert_frame_equal(found.products, expected.products)
    assert "cost" not in found.products
    assert (found.content != expected.content).nnz == 0


def test_a_service_waits_for_a_database_and_then_answers(in_sqlite: HomeShop) -> None:
    from client.home.host import HomeHost

    path = in_sqlite.folder / "shop.db"
    path.rename(in_sqlite.folder / "away.db")
    host = HomeHost(in_sqlite.path)
    host.refresh()
    host.refresh()
    assert not host.ready
    assert "no SQLite database" in host.refused
    (in_sqlite.folder / "away.db").rename(path)
    host.refresh()
    answers = host.current()
    assert set(answers.recommend(Query(user_id="u03", k=70)).item_ids) & set(HOUSE)
    path.rename(in_sqlite.folder / "away.db")
    with pytest.raises(UnavailableError):
        answers.recommend(Query(user_id="u03"))


def test_a_service_sees_that_the_table_was_written_anew(shop: HomeShop) -> None:
    from client.home.host import HomeHost

    host = HomeHost(shop.path)
    host.refresh()
    assert host.current().ready.catalogue.size == N + M
    (shop.folder / "data" / "products.csv").write_text("item_id,type\nnew,t1\n")
    host.refresh()
    assert host.current().ready.catalogue.item_ids[-1] == "new"
    _no_table(shop)
    host.refresh()
    assert host.current().ready.catalogue.size == N


def test_a_table_without_numbers_is_refused_by_name(shop: HomeShop) -> None:
    (shop.folder / "data" / "products.csv").write_text("number,type\nnew,t1\n")
    with pytest.raises(DataError, match=r"products\.csv.*'item_id' is missing"):
        adapt(shop.path, shop.settings)


# --- nothing of them leaves ------------------------------------------------------------------

PLAN = TrainingPlan(
    rounds=1,
    sample_rate=0.5,
    noise_multiplier=4.0,
    popularity_noise_multiplier=4.0,
    model=ModelPlan(dimension=3, feature_rows=8192, learned_items=40),
)


def _sent(shop: HomeShop) -> list[Any]:
    """Return all that leaves a shop in a run, but for the time in the hashes of its ledger."""
    shop_records.forget()
    state = initial_state(PLAN.model, N)
    state[POPULARITY] = np.full(N, 1 / N, np.float32)
    left: list[Any] = []
    for kind, server_round in ((JOIN, 0), (RELEASE, 0), (TRAIN, 1), (EVALUATE, 1)):
        header = {
            "run_id": "r1",
            "server_round": server_round,
            "plan_json": PLAN.model_dump_json(),
            "catalogue_fingerprint": shop.catalogue.fingerprint,
        }
        reply, arrays = answer(kind, header, lambda: state, Node({"shop": str(shop.path)}, {}, {}))
        assert reply.status == "ok"
        left += [reply.model_dump(exclude={"ledger_head"}), arrays]
    with Ledger.open(shop.folder / "ledger.sqlite") as ledger:
        left.append([entry.event for entry in ledger.verify()])
    (shop.folder / "ledger.sqlite").unlink()
    return left


def test_what_leaves_does_not_change_by_a_bit(tmp_path: Path) -> None:
    shop = HomeShop(tmp_path)
    shop.configure(
        "[evaluation]\nepsilon = 0.5\n",
        cap_epsilon=50.0,
        noise="seeded",
        insecure_seeded_noise=True,
    )
    shop.sell(purchases())
    before = _sent(shop)
    assert (
        sum(
            array.size
            for part in before
            if isinstance(part, dict)
            for array in (
                part.values() if all(isinstance(v, np.ndarray) for v in part.values()) else ()
            )
        )
        > N
    )
    describe(shop)
    shop.sell([*purchases(), *house_sales()])
    after = _sent(shop)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        if isinstance(old, dict) and old and isinstance(next(iter(old.values())), np.ndarray):
            assert old.keys() == new.keys()
            for name in old:
                assert old[name].tobytes() == new[name].tobytes(), name
        else:
            assert old == new
    # A record of the catalogue does change it.
    shop.sell([*purchases(), *house_sales(), ("u00", "i59", START + 5), ("u00", "i58", START)])
    changed = _sent(shop)
    assert any(
        old[POPULARITY].tobytes() != new[POPULARITY].tobytes()
        for old, new in zip(before, changed, strict=True)
        if isinstance(old, dict) and POPULARITY in old
    )


def test_nothing_is_written_into_the_catalogue(shop: HomeShop) -> None:
    held = {path: path.read_bytes() for path in shop.catalogue_folder.iterdir()}
    adapt(shop.path, shop.settings)
    evaluate_shop(shop.settings)
    assert {path: path.read_bytes() for path in shop.catalogue_folder.iterdir()} == held
    (facts,) = (shop.folder / "adapted").glob("*/adapted.json")
    assert json.loads(facts.read_text())["catalogue_fingerprint"] == shop.catalogue.fingerprint
    shutil.rmtree(shop.folder / "adapted")
