"""The catalogue: public content that hashes to the same place wherever it is read."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.catalogue.stock import read_stock
from common.errors import ArtifactError, ConfigError
from common.features import (
    STOCK,
    Catalogue,
    ContentSpec,
    hashed_rows,
    read_catalogue,
    write_catalogue,
)

SPEC = ContentSpec(features=("type", "type*brand"), content_width=512, hash_rows=64)


def make(count: int = 40, seed: int = 0) -> pd.DataFrame:
    stream = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "item_id": [f"i{k:03}" for k in range(count)],
            "type": [f"t{k}" for k in stream.integers(0, 5, count)],
            "brand": [f"b{k}" if k else None for k in stream.integers(0, 4, count)],
        }
    )


def codes_of(catalogue: Catalogue) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return item id -> dense content code and feature weights."""
    content, features = catalogue.content.toarray(), catalogue.feature_ids.toarray()
    return {item: (content[k], features[k]) for k, item in enumerate(catalogue.item_ids)}


def same_codes(left: Catalogue, right: Catalogue) -> bool:
    """Compare the products that both hold."""
    a, b = codes_of(left), codes_of(right)
    shared = a.keys() & b.keys()
    assert shared
    return all(np.array_equal(x, y) for i in shared for x, y in zip(a[i], b[i], strict=True))


@given(st.permutations(range(40)))
@settings(max_examples=10, deadline=None)
def test_row_order_changes_nothing(order: list[int]) -> None:
    products = make()
    shuffled = Catalogue.of(products.iloc[order], SPEC)
    plain = Catalogue.of(products, SPEC)
    assert shuffled.fingerprint == plain.fingerprint
    assert same_codes(shuffled, plain)


def test_other_products_and_a_new_brand_change_no_code() -> None:
    products = make()
    new = pd.DataFrame({"item_id": ["a-new-one"], "type": ["t9"], "brand": ["never seen"]})
    whole = Catalogue.of(products, SPEC)
    assert same_codes(whole, Catalogue.of(pd.concat([products, new]), SPEC))
    assert same_codes(whole, Catalogue.of(products.iloc[::3], SPEC))


def test_places_are_hashed_the_same_in_every_process() -> None:
    values = np.array(["YOGURT", "CHEESE", ""], dtype=object)
    assert hashed_rows("type", values, 1000).tolist() == [223, 511, 988]
    assert hashed_rows("brand", values, 1000).tolist() != [223, 511, 988]


@pytest.mark.parametrize("nonzeros", [1, 4])
def test_content_rows_have_norm_one_or_nothing(nonzeros: int) -> None:
    products = make()
    products.loc[7, ["type", "brand"]] = None
    spec = SPEC.model_copy(update={"nonzeros": nonzeros})
    catalogue = Catalogue.of(products, spec)
    norms = np.linalg.norm(catalogue.content.toarray(), axis=1)
    assert norms[7] == 0
    np.testing.assert_allclose(np.delete(norms, 7), 1.0, rtol=1e-5)
    assert catalogue.content.dtype == np.float32


def test_products_that_share_content_are_near() -> None:
    products = make(200)
    catalogue = Catalogue.of(products, SPEC)
    likeness = (catalogue.content @ catalogue.content.T).toarray()
    kind = products["type"].to_numpy()
    alike = kind[:, None] == kind
    assert likeness[alike].mean() > likeness[~alike].mean() + 0.4


def test_a_column_that_is_called_as_a_pair_is_refused_or_left_out() -> None:
    """Forms mark what must be filled in so: the feature of "size*" would be a pair of columns."""
    products = make().assign(**{"size*": "L"})
    with pytest.raises(ConfigError, match=r"column 'size\*' has a \* in its name.* rename it, or"):
        Catalogue.of(products)
    settled = Catalogue.of(products, SPEC).settled()
    assert [feature.name for feature in settled.features] == list(SPEC.features)


def test_a_pair_needs_both_of_its_values() -> None:
    products = make()
    single, pair = Catalogue.of(products, SPEC).features
    assert single.name == "type"
    assert pair.name == "type*brand"
    assert len(pair.rows) == products["brand"].notna().sum()
    for row, code in zip(pair.rows, pair.codes, strict=True):
        kind, brand = str(pair.values[code]).split("\x1f")
        assert (products["type"][row], products["brand"][row]) == (kind, brand)


def test_titles_become_words_and_lists_become_values() -> None:
    count = 120
    products = make(count)
    products["title"] = [f"Fresh milk No{k:03}" for k in range(count)]
    products["genres"] = ["Action|Drama" if k % 2 else "Drama" for k in range(count)]
    features = {f.name: f for f in Catalogue.of(products).features}
    assert {"fresh", "milk", "no007"} <= set(features["title"].values)
    assert set(features["genres"].values) == {"Action", "Drama"}
    weights = Catalogue.of(products, ContentSpec(features=("genres",))).feature_ids
    # A product's words share weight 1.
    squares = np.asarray(weights.multiply(weights).sum(axis=1)).ravel()
    np.testing.assert_allclose(squares, 1.0, rtol=1e-5)


def test_numbers_fall_into_bins_of_like_size() -> None:
    products = make(400)
    price = np.random.default_rng(1).lognormal(size=400)
    price[:3] = np.nan
    products["price"] = price
    (feature,) = Catalogue.of(products, ContentSpec(features=("price",))).features
    assert set(feature.rows) == set(range(3, 400))
    counts = np.bincount(feature.codes)
    assert len(counts) == 20
    assert counts.max() <= 2 * counts.min()
    bins = {str(v): price[feature.rows[feature.codes == k]] for k, v in enumerate(feature.values)}
    ordered = [bins[f"bin {b}"] for b in range(20)]
    assert all(a.max() < b.min() for a, b in pairwise(ordered))


def test_few_numbers_are_values() -> None:
    products = make()
    products["stars"] = np.arange(40) % 5
    (feature,) = Catalogue.of(products, ContentSpec(features=("stars",))).features
    assert set(map(str, feature.values)) == set("01234")


def test_without_content_columns_there_is_no_content() -> None:
    catalogue = Catalogue.of(pd.DataFrame({"item_id": ["b", "a"]}))
    assert catalogue.features == ()
    assert catalogue.content.nnz == 0
    assert catalogue.content.shape == (2, catalogue.spec.content_width)


def changed(**columns: Any) -> pd.DataFrame:
    return make().assign(**columns)


@pytest.mark.parametrize(
    "products",
    [
        make(39),
        changed(type=["other", *make()["type"][1:]]),
        changed(item_id=[f"j{k:03}" for k in range(40)]),
        changed(more="x"),
        make().rename(columns={"brand": "maker"}),
        make().drop(columns="brand"),
    ],
)
def test_the_fingerprint_tells_any_content_apart(products: pd.DataFrame) -> None:
    spec = ContentSpec()
    assert Catalogue.of(products, spec).fingerprint != Catalogue.of(make(), spec).fingerprint


def test_the_fingerprint_tells_numbers_from_text() -> None:
    # Numbers fall into bins, text does not: as features they are not the same.
    numbers, words = changed(size=np.arange(40)), changed(size=[str(k) for k in range(40)])
    left, right = Catalogue.of(numbers), Catalogue.of(words)
    assert (left.content != right.content).nnz
    assert left.fingerprint != right.fingerprint


@pytest.mark.parametrize(
    "change",
    [{"content_width": 256}, {"nonzeros": 2}, {"hash_rows": 32}, {"features": ("type",)}],
)
def test_the_fingerprint_tells_any_spec_apart(change: dict[str, object]) -> None:
    other = SPEC.model_copy(update=change)
    assert Catalogue.of(make(), other).fingerprint != Catalogue.of(make(), SPEC).fingerprint


def test_a_catalogue_comes_back_as_it_was_published(tmp_path: Path) -> None:
    products = make()
    products["price"] = np.linspace(0.5, 9.0, 40).astype(np.float32)
    catalogue = Catalogue.of(products, SPEC)
    write_catalogue(catalogue, tmp_path / "catalogue")
    back = read_catalogue(tmp_path / "catalogue")
    assert back.fingerprint == catalogue.fingerprint
    assert back.spec == SPEC
    assert same_codes(back, catalogue)
    assert [p.name for p in tmp_path.iterdir()] == ["catalogue"]


def test_a_catalogue_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "catalogue"
    write_catalogue(Catalogue.of(make(), SPEC), folder)
    make(39).to_parquet(folder / "products.parquet", index=False)
    with pytest.raises(ArtifactError, match="not the one that was published"):
        read_catalogue(folder)


@pytest.mark.parametrize("name", ["products.parquet", "catalogue.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x00\xff"])
def test_a_damaged_catalogue_is_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    folder = tmp_path / "catalogue"
    write_catalogue(Catalogue.of(make(), SPEC), folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="catalogue"):
        read_catalogue(folder)


@pytest.mark.parametrize(
    "facts",
    [
        {"spec": SPEC.model_dump(mode="json")},
        {"spec": {"features": ["flavour"]}, "fingerprint": "0" * 64},
        ["spec", "fingerprint"],
    ],
    ids=["no fingerprint", "a column that is not there", "a list"],
)
def test_facts_that_are_no_catalogue_s_are_refused(tmp_path: Path, facts: object) -> None:
    folder = tmp_path / "catalogue"
    write_catalogue(Catalogue.of(make(), SPEC), folder)
    (folder / "catalogue.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ArtifactError, match="no readable catalogue"):
        read_catalogue(folder)


def test_a_catalogue_or_stock_that_is_nested_too_deeply_to_read_is_refused(tmp_path: Path) -> None:
    """The operator's files come to a shop: Python's own error for such ones is no usual one."""
    folder = tmp_path / "catalogue"
    catalogue = Catalogue.of(make(), SPEC)
    write_catalogue(catalogue, folder)
    deep = b"[" * 10_000
    # What pandas notes beside a table is JSON, too.
    table = pa.table({"merchant_id": ["m"], "item_id": [catalogue.item_ids[0]]})
    pq.write_table(table.replace_schema_metadata({b"pandas": deep}), folder / STOCK)
    with pytest.raises(ArtifactError, match="no stock table"):
        read_stock(folder, catalogue)
    (folder / "catalogue.json").write_bytes(deep)
    with pytest.raises(ArtifactError, match="no readable catalogue"):
        read_catalogue(folder)


def test_a_spec_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "catalogue"
    write_catalogue(Catalogue.of(make(), SPEC), folder)
    facts = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))
    facts["spec"]["content_width"] = 64
    (folder / "catalogue.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ArtifactError, match="not the one"):
        read_catalogue(folder)


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"'type\*flavour'.*'flavour'.*type, brand"):
        Catalogue.of(make(), ContentSpec(features=("type*flavour",)))


def test_rows_of_unknown_products_are_minus_one() -> None:
    catalogue = Catalogue.of(make(), SPEC)
    assert catalogue.rows(["i003", "nothing", "i000"]).tolist() == [3, -1, 0]


def test_a_settled_spec_reads_kept_products_as_before_whatever_is_new() -> None:
    products = make(120)
    stream = np.random.default_rng(3)
    products["price"] = stream.lognormal(size=120)
    products["stars"] = np.arange(120) % 5
    products["title"] = [f"Fresh milk No{k:03}" for k in range(120)]
    first = Catalogue.of(products).settled()
    dear = make(300).iloc[120:].assign(price=1000.0, stars=2.5, title="the same", brand="b1")
    later = Catalogue.of(pd.concat([products, dear]), first.spec)
    assert same_codes(first, later)
    # Without it, the new prices move the bins of the old ones.
    loose = Catalogue.of(products), Catalogue.of(pd.concat([products, dear]))
    assert not same_codes(*loose)


def test_settling_changes_no_feature() -> None:
    products = make(120).assign(price=np.random.default_rng(3).lognormal(size=120))
    plain = Catalogue.of(products)
    settled = plain.settled()
    assert same_codes(plain, settled)
    assert [f.name for f in settled.features] == [f.name for f in plain.features]
    assert settled.settled().fingerprint == settled.fingerprint


@pytest.mark.parametrize("retired", [["True", "no"], [True, False], [1, 0], ["yes", None]])
def test_a_retired_product_keeps_its_row_and_is_not_offered(retired: list[object]) -> None:
    products = make(2)
    products["retired"] = pd.Series(retired)
    catalogue = Catalogue.of(products)
    assert catalogue.offered.tolist() == [False, True]
    assert catalogue.rows(["i000", "i001"]).tolist() == [0, 1]
    assert same_codes(catalogue, Catalogue.of(make(2)))
    assert catalogue.fingerprint != Catalogue.of(make(2)).fingerprint
    assert Catalogue.of(make(2)).offered.all()
