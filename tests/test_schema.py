"""Tables are refused with messages that say what to do, and encode without loss."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, DataError
from common.schema import ShopEvents, Tables, encode_shop, encode_shops, record_weights
from common.tables.interactions import MAX_MERCHANTS
from common.tables.validation import validate_tables

NOW = 1_800_000_000
ITEMS = np.array(["y", "x", "z"], dtype=object)


def interactions(**changes: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "merchant_id": ["a", "a", "b", "b"],
            "user_id": ["2", "1", "1", "1"],
            "item_id": ["x", "y", "x", "y"],
            "timestamp": [1_577_836_800, 1_577_836_900, 1_600_000_000, 1_577_836_800],
            "behavior": ["purchase", "rating", "view", "cart"],
        }
        | changes
    )


def products(**changes: Any) -> pd.DataFrame:
    return pd.DataFrame({"item_id": ["x", "y", "z"]} | changes)


def validated(frame: pd.DataFrame | None = None, **more: Any) -> Tables:
    first = interactions() if frame is None else frame
    return validate_tables(first, more.pop("products", products()), now=NOW, **more)


BAD = [
    ("timestamp", "yesterday", "ISO 8601"),
    ("timestamp", None, "empty"),
    ("timestamp", "-infinity", "ISO 8601"),
    ("timestamp", float("inf"), "ISO 8601"),
    ("timestamp", NOW + 1, "in the future"),
    ("timestamp", -5, "before 1970"),
    ("behavior", "buy", "not a behaviour"),
    ("item_id", "unheard-of", "not in the products table"),
    ("user_id", None, "empty"),
    ("user_id", "", "empty"),
    ("merchant_id", float("nan"), "empty"),
    ("quantity", -1.0, "negative"),
    ("quantity", float("nan"), "empty"),
    ("price", float("inf"), "not finite"),
    ("price", "cheap", "not a number"),
    ("session_id", "", "empty"),
]


@pytest.mark.parametrize(("column", "value", "reason"), BAD)
def test_a_bad_row_is_named_and_can_be_set_aside(column: str, value: Any, reason: str) -> None:
    frame = interactions(quantity=1.0, price=2.0, session_id="s", behavior="purchase").astype(
        object
    )
    frame.loc[2, column] = value
    with pytest.raises(DataError, match=rf"column '{column}'.*{reason}.*row 3: .*What to do"):
        validated(frame)
    tables = validated(frame, bad_rows="set-aside")
    assert len(tables.interactions) == 3
    assert list(tables.set_aside.values()) == [1]
    assert next(iter(tables.set_aside)).startswith(f"interactions.{column}: ")


def test_a_row_bad_twice_is_set_aside_once() -> None:
    frame = interactions().astype(object)
    frame.loc[0, ["behavior", "item_id"]] = ["buy", "unheard-of"]
    assert sum(validated(frame, bad_rows="set-aside").set_aside.values()) == 1


def test_only_the_first_bad_values_are_shown() -> None:
    frame = pd.concat([interactions(behavior="buy")] * 3, ignore_index=True)
    with pytest.raises(DataError, match=r"row 5: 'buy' and 7 more"):
        validated(frame)


def test_a_missing_column_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"column 'user_id' is missing: did you mean 'userid'"):
        validated(interactions().rename(columns={"user_id": "userid"}))
    with pytest.raises(DataError, match=r"products: column 'item_id' is missing"):
        validated(products=pd.DataFrame({"zzz": [1]}))


def test_duplicates_are_refused() -> None:
    with pytest.raises(DataError, match=r"'item_id' is there already in row 3: 'x'"):
        validated(products=products(item_id=["x", "y", "x"]))
    people = pd.DataFrame({"user_id": [1, 1], "age": ["20", "30"]})
    with pytest.raises(DataError, match=r"customers: column 'user_id' is there already in row 2"):
        validated(customers=people)
    validated(customers=people.assign(merchant_id=["a", "b"]))


def test_stock_and_prices_are_checked() -> None:
    with pytest.raises(DataError, match=r"stock: column 'item_id' is not in the products"):
        validated(stock=pd.DataFrame({"merchant_id": ["a"], "item_id": ["q"]}))
    with pytest.raises(
        DataError, match=r"'price' is a negative price in row 2.*leave the price empty"
    ):
        validated(products=products(price=[1.0, -1.0, None]))


def test_empty_tables_are_refused() -> None:
    with pytest.raises(DataError, match="interactions: no rows"):
        validated(interactions().iloc[:0])
    with pytest.raises(
        DataError, match=r"set aside were \d for interactions.behavior: not a behaviour"
    ):
        validated(interactions(behavior="buy"), bad_rows="set-aside")
    with pytest.raises(DataError, match="products: no products"):
        validated(products=products().iloc[:0])


@pytest.mark.parametrize(
    "times",
    [
        ["2020-01-01T00:00:00Z"] * 4,
        ["2020-01-01"] * 4,
        ["2020-01-01 02:00:00+02:00", "2020-01-01", "1577836800", "2020-01-01T00:00:00.25Z"],
        pd.to_datetime(["2020-01-01"] * 4),
        pd.to_datetime(["2020-01-01T01:00+01:00"] * 4),
        [1577836800.0] * 4,
    ],
)
def test_times_of_every_form_are_the_same_second(times: Any) -> None:
    assert (validated(interactions(timestamp=times)).interactions["timestamp"] == 1577836800).all()


@pytest.mark.parametrize("ids", [[1, 2, 1, 3], [1.0, 2.0, 1.0, 3.0], ["1", "2", "1", "3"]])
def test_ids_of_every_type_are_the_same_text(ids: list[Any]) -> None:
    frame = validated(interactions(user_id=ids)).interactions
    assert frame["user_id"].astype(str).tolist() == ["1", "2", "1", "3"]


def test_encoding_sorts_weighs_and_knows_customers() -> None:
    people = pd.DataFrame({"user_id": [1, 7], "age": [30, 40]})
    tables = validated(interactions(rating=[None, 4.0, None, None]), customers=people)
    a, b = encode_shops(tables, ITEMS)
    assert a.user_ids.tolist() == ["1", "2"]
    assert a.items.tolist() == [0, 1]
    assert a.weights.tolist() == pytest.approx([0.8, 1.0])
    assert a.attributes["age"].tolist() == ["30", ""]
    assert a.sessions is None
    assert b.timestamps.tolist() == [1_577_836_800, 1_600_000_000]
    assert b.matrix(3).toarray().tolist() == [[1, 1, 0]]
    only = encode_shop(tables, "b", ITEMS, {"cart": 1.0})
    assert only.items.tolist() == [0]
    assert encode_shop(tables, "b", ITEMS[:1]).items.tolist() == [0]


def test_a_session_belongs_to_one_customer() -> None:
    tables = validated(interactions(session_id="till-1"))
    a, b = encode_shops(tables, ITEMS)
    assert a.sessions is not None
    assert len(set(a.sessions.tolist())) == 2
    assert b.sessions is not None
    assert len(set(b.sessions.tolist())) == 1


def test_a_merchant_without_records_is_one() -> None:
    tables = validated(
        interactions(session_id="s"),
        stock=pd.DataFrame({"merchant_id": ["empty"], "item_id": ["x"]}),
        customers=pd.DataFrame({"user_id": ["1"], "age": ["20"]}),
    )
    shop = encode_shop(tables, "empty", ITEMS)
    assert len(shop) == 0
    assert shop.sessions is not None
    assert shop.matrix(3).shape == (0, 3)
    assert shop.attributes["age"].shape == (0,)
    assert shop.offsets.tolist() == [0]
    assert tables.stock_of("empty") is not None
    assert tables.stock_of("a") is None


def test_unknown_names_are_refused() -> None:
    with pytest.raises(DataError, match="'nobody'"):
        encode_shop(validated(), "nobody", ITEMS)
    with pytest.raises(ConfigError, match="'buy'"):
        encode_shop(validated(), "a", ITEMS, {"buy": 1.0})


@st.composite
def records(draw: st.DrawFn) -> pd.DataFrame:
    n = draw(st.integers(1, 40))
    rows = st.tuples(
        st.sampled_from("ab"),
        st.sampled_from(["u", "v", "10", "9"]),
        st.sampled_from("xyz"),
        st.integers(0, 50),
    )
    table = [draw(rows) for _ in range(n)]
    frame = pd.DataFrame(table, columns=["merchant_id", "user_id", "item_id", "timestamp"])
    return frame.assign(behavior="purchase")


@settings(max_examples=40, deadline=None)
@given(records(), st.integers(0, 50))
def test_encoding_loses_nothing(frame: pd.DataFrame, cut: int) -> None:
    shops = list(encode_shops(validated(frame), ITEMS))

    def decode(shop: ShopEvents) -> list[tuple[str, str, str, int]]:
        users, items = shop.user_ids[shop.users], ITEMS[shop.items]
        rows = zip(users, items, shop.timestamps.tolist(), strict=True)
        return [(shop.merchant_id, u, i, t) for u, i, t in rows]

    want = frame[["merchant_id", "user_id", "item_id", "timestamp"]].itertuples(index=False)
    assert sorted(r for s in shops for r in decode(s)) == sorted(map(tuple, want))
    for shop in shops:
        assert list(shop.user_ids) == sorted(shop.user_ids)
        assert shop.users.dtype == np.int32
        assert shop.timestamps.dtype == np.int64
        order = np.lexsort((shop.timestamps, shop.users))
        assert (np.diff(order) > 0).all()
        early, late = shop.before(cut), shop.since(cut)
        assert len(early) + len(late) == len(shop)
        assert early.user_ids is shop.user_ids
        assert (early.timestamps < cut).all()
        assert (late.timestamps >= cut).all()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"purchase": -1.0}, r"a purchase weighs -1.0: give a finite weight from 0"),
        ({"purchase": 1e20}, r"a purchase weighs 1e\+20: give a finite weight from 0 to 1,000,000"),
        ({"view": float("nan")}, r"a view weighs nan"),
        # Every record would be left out, and a whole run end in dashes.
        ({"view": 0.0, "purchase": 0.0}, r"no behaviour weighs anything"),
    ],
)
def test_weights_that_leave_nothing_to_learn_are_refused(
    weights: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        list(encode_shops(validated(), ITEMS, weights))


# --- what stands between two blocks, at an edge, or in a message ---------------------------------


def test_names_that_a_later_block_brings_are_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    # Told apart by digests in order: a new one in the wrong place gave records to another customer.
    monkeypatch.setattr("common.tables.validation.BLOCK_ROWS", 7)
    users = [f"u{k * 37 % 61}" for k in range(61)] * 2
    merchants = [f"m{int(user[1:]) % 5}" for user in users]
    items = [f"i{k % 11}" for k in range(len(users))]
    frame = pd.DataFrame({"merchant_id": merchants, "user_id": users, "item_id": items})
    frame = frame.assign(timestamp=range(len(users)), behavior="view")
    goods = pd.DataFrame({"item_id": [f"i{k}" for k in range(11)]})
    found = validated(frame, products=goods).interactions
    columns = ["merchant_id", "user_id", "item_id"]
    assert found[columns].astype(str).to_numpy().tolist() == frame[columns].to_numpy().tolist()
    assert found["timestamp"].tolist() == list(range(len(users)))


def test_the_second_in_which_a_table_is_read_is_not_in_the_future() -> None:
    times = [NOW, NOW - 1, 0, 1]
    assert validated(interactions(timestamp=times)).interactions["timestamp"].tolist() == times


def test_as_many_bad_values_as_are_shown_are_all() -> None:
    frame = pd.concat([interactions()] * 2, ignore_index=True)
    for count, more in ((5, "row 5: 'buy'. What"), (6, "row 5: 'buy' and 1 more. What")):
        frame["behavior"] = ["buy"] * count + ["view"] * (8 - count)
        with pytest.raises(DataError, match=more):
            validated(frame)


def test_a_rating_needs_one_and_only_a_purchase_needs_a_price() -> None:
    given = {"rating": [None, None, 3.0, 0.0], "price": [1.0, None, None, 0.0]}
    with pytest.raises(DataError, match=r"'rating' is empty in row 2: no value\. What to do: fill"):
        validated(interactions(**given))
    found = validated(interactions(**given), bad_rows="set-aside")
    assert found.set_aside == {"interactions.rating: empty": 1}
    assert len(found.interactions) == 3
    with pytest.raises(DataError, match=r"'price' is empty in row 1: no value\. What to do: fill"):
        validated(interactions(price=[None, None, None, 0.0]))


def test_messages_show_what_stands_there() -> None:
    with pytest.raises(DataError, match=r"'price' is not a number in row 2: 'cheap'"):
        validated(products=products(price=["1", "cheap", None]))
    # Two without an id are none of them the other.
    with pytest.raises(DataError, match=r"^products: column 'item_id' is empty in row 1.* row 2"):
        validated(products=products(item_id=[None, None, "x"]))
    people = pd.DataFrame({"user_id": [None, "", "u"]})
    with pytest.raises(DataError, match=r"^customers: column 'user_id' is empty in row 1.* row 2"):
        validated(customers=people)


def test_rows_of_frames_go_by_their_place() -> None:
    # By their index the ids of one row stood beside what another said.
    goods = products(brand=["bx", "by", "bz"])[::-1]
    people = pd.DataFrame({"user_id": ["1", "2"], "age": ["one", "two"]}, index=[1, 0])
    found = validated(interactions().set_index(pd.Index([7, 3, 3, 0])), products=goods)
    assert found.interactions["user_id"].astype(str).tolist() == ["2", "1", "1", "1"]
    assert found.products["brand"].tolist() == [f"b{item}" for item in found.products["item_id"]]
    known = validated(customers=people).customers
    assert known is not None
    assert known.to_numpy().tolist() == [["1", "one"], ["2", "two"]]


def test_stock_that_is_there_twice_is_there_once() -> None:
    shelves = pd.DataFrame({"merchant_id": ["a", "a", "b"], "item_id": ["x", "x", "x"]})
    stock = validated(stock=shelves).stock
    assert stock is not None
    assert stock.to_numpy().tolist() == [["a", "x"], ["b", "x"]]


def test_more_merchants_than_are_told_apart_are_refused() -> None:
    # Beyond that a merchant's number would be another's.
    for count in (MAX_MERCHANTS, MAX_MERCHANTS + 1):
        names = [f"m{k}" for k in range(count)]
        frame = pd.DataFrame({"merchant_id": names, "user_id": "u", "item_id": "x"})
        frame = frame.assign(timestamp=0, behavior="view")
        if count > MAX_MERCHANTS:
            with pytest.raises(DataError, match="names more than 32767 merchants"):
                validated(frame)
        else:
            found = validated(frame).interactions["merchant_id"]
            assert found.astype(str).tolist() == names


def test_a_rating_without_a_value_weighs_what_its_behaviour_does() -> None:
    # Of a database one table may have a column of ratings, and another none.
    frame = validated(interactions(rating=[0.0, 2.5, 0.0, 0.0])).interactions
    frame.loc[0, "behavior"], frame.loc[0, "rating"] = "rating", np.nan
    weights = record_weights(frame, {"rating": 0.8}, 5.0)
    np.testing.assert_allclose(weights, [0.8, 0.4, 0.0, 0.0])
