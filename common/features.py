"""Public product content as numbers: the catalogue, its content code and its feature ids.

Every value of a product column ("type = YOGURT"), and every pair of values that the operator's
:class:`ContentSpec` names ("type x manufacturer"), is a feature. A feature is hashed twice: into
``hash_rows`` rows of the learned feature table, and into a sparse sign code of ``content_width``
dimensions: with one nonzero a value, feature hashing (Weinberger et al. 2009, "Feature Hashing
for Large Scale Multitask Learning"); with more, a sparse Johnson-Lindenstrauss projection (Kane &
Nelson 2014). Wide and sparse beats narrow and dense: collisions cost the tail, zeros cost nothing.
Nothing here is trained and nothing needs agreement beyond the published table: a new brand hashes
to the same place everywhere.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field
from scipy import sparse

from common.catalogue.content_columns import (
    ITEM_ID,
    RETIRED,
    ColumnRule,
    as_text,
    is_number,
    rule_of,
    values_of,
)
from common.errors import ArtifactError, ConfigError
from common.protocol import Frozen

CROSS = "*"
PRODUCTS = "products.parquet"
#: What each shop stocks, where that is published: see :mod:`common.catalogue.stock`.
STOCK = "stock.parquet"
#: What the column ``retired`` says of a product that is.
YES = ("true", "1", "yes")
_FILES = (PRODUCTS, "catalogue.json")


class ContentSpec(Frozen):
    """Which columns describe a product, and how wide their codes are.

    ``features`` names columns, alone (``"brand"``) or joined (``"type*brand"``, or more of them).
    Empty: every column, and each pair of the columns whose values repeat. ``columns`` says how a
    column is read; one that it does not name is read as the table itself suggests.
    """

    features: tuple[str, ...] = ()
    content_width: int = Field(32768, ge=1, le=2**20)
    nonzeros: int = Field(1, ge=1, le=16)
    hash_rows: int = Field(8192, ge=1)
    columns: dict[str, ColumnRule] | None = None


@dataclass(frozen=True)
class Feature:
    """One kind of feature over all products.

    Attributes
    ----------
    name
        Of the column, or of those that are joined.
    values
        (V,) distinct values as text.
    rows, codes
        (M,) product row and value of each occurrence; a product may have several words or none.
    """

    name: str
    values: np.ndarray
    rows: np.ndarray
    codes: np.ndarray


@dataclass(frozen=True)
class Catalogue:
    """The products that all shops and the server agree on.

    Attributes
    ----------
    item_ids
        (n,) strings, sorted; a product's place is its row everywhere.
    products
        (n) rows of public content, in the order of ``item_ids``.
    spec
        How content becomes features.
    """

    item_ids: np.ndarray
    products: pd.DataFrame
    spec: ContentSpec = field(default_factory=ContentSpec)

    @classmethod
    def of(cls, products: pd.DataFrame, spec: ContentSpec | None = None) -> "Catalogue":
        """Return the catalogue of a validated products table, whatever its order.

        Raises
        ------
        ConfigError
            If a feature needs a column that is not there, or no features are named and a column's
            name would be a pair's.
        """
        spec = spec or ContentSpec()
        ordered = products.sort_values("item_id", kind="stable").reset_index(drop=True)
        known = content_columns(ordered)
        if not spec.features and (pairs := [name for name in known if CROSS in name]):
            raise ConfigError(
                f"products column {pairs[0]!r} has a {CROSS} in its name, which stands between the "
                "columns of a pair: rename it, or name the columns to use in content.features"
            )
        for name in spec.features:
            for column in name.split(CROSS):
                if column not in known:
                    raise ConfigError(
                        f"content feature {name!r} needs a products column {column!r}; "
                        f"the table has {', '.join(known) or 'no content columns'}"
                    )
        return cls(ordered[ITEM_ID].to_numpy(dtype=object).astype(str), ordered, spec)

    def settled(self) -> "Catalogue":
        """Return the same catalogue with a spec that leaves nothing to the table.

        A later table under this spec gives every product that stays as it is the same features.
        """
        rules = {name: self._rule(name) for name in content_columns(self.products)}
        spec = self.spec.model_copy(
            update={
                "features": self.spec.features or tuple(f.name for f in self.features),
                "columns": {**(self.spec.columns or {}), **rules},
            }
        )
        return Catalogue(self.item_ids, self.products, spec)

    @property
    def size(self) -> int:
        """Number of products."""
        return len(self.item_ids)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, content and spec, 64 hex digits: equal catalogues, equal models."""
        digest = hashlib.sha256(self.spec.model_dump_json(exclude_none=True).encode())
        for column in sorted(map(str, self.products.columns)):
            # Numbers fall into bins and text does not, even where they read the same.
            kind = "number" if is_number(self.products[column]) else "text"
            digest.update(f"\0{column}\0{kind}\0".encode())
            hashes = pd.util.hash_array(as_text(self.products[column]), categorize=True)
            digest.update(np.ascontiguousarray(hashes, dtype="<u8").tobytes())
        return digest.hexdigest()

    @cached_property
    def offered(self) -> np.ndarray:
        """(n,) bool: what may be recommended: all but the products that are retired.

        A retired product keeps its row: what customers did with it still says what they like.
        """
        if RETIRED not in self.products:
            return np.ones(self.size, dtype=bool)
        return ~retired_words(self.products[RETIRED])

    def rows(self, item_ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """Return (len,) int32 rows of products; -1 for one that the catalogue does not hold."""
        found: np.ndarray = self._index.get_indexer(pd.Index(item_ids)).astype(np.int32)
        return found

    @cached_property
    def _index(self) -> pd.Index:
        index: pd.Index = pd.Index(self.item_ids)
        return index

    @cached_property
    def features(self) -> tuple[Feature, ...]:
        """Every kind of feature of the spec, or of all columns where it names none."""
        needed = {part for name in self.spec.features for part in name.split(CROSS)}
        columns = {
            name: self._column(name)
            for name in content_columns(self.products)
            if name in needed or not needed
        }
        names = self.spec.features or _default_features(columns, self.size)
        return tuple(_feature(name, columns, self.size) for name in names)

    def feature(self, name: str) -> Feature:
        """Return the feature of one column, or of pairs of values of several.

        Raises
        ------
        ConfigError
            If a column is missing.
        """
        parts = name.split(CROSS)
        for part in parts:
            if part not in content_columns(self.products):
                raise ConfigError(f"feature {name!r} needs a products column {part!r}")
        if name not in self._known:
            columns = {part: self._column(part) for part in parts}
            self._known[name] = _feature(name, columns, self.size)
        return self._known[name]

    @cached_property
    def _known(self) -> dict[str, Feature]:
        """Features that were asked for by name: rounds ask for that of a model's groups often."""
        return {}

    def _rule(self, name: str) -> ColumnRule:
        return (self.spec.columns or {}).get(name) or rule_of(self.products[name])

    def _column(self, name: str) -> Feature:
        return Feature(name, *values_of(self.products[name], self._rule(name)))

    @cached_property
    def content(self) -> sparse.csr_matrix:
        """(n, content_width) float32 rows of norm 1; a product without content has a zero row."""
        width, nonzeros = self.spec.content_width, self.spec.nonzeros
        total = sparse.csr_matrix((self.size, width), dtype=np.float32)
        for feature in self.features:
            code = _sign_codes(feature, width, nonzeros)
            total = total + _incidence(feature, self.size) @ code
        return _unit_rows(total.tocsr())

    @cached_property
    def kin(self) -> sparse.csr_matrix:
        """(n, V) float32: which product has which value of all features, columns of norm 1.

        Two products' rows multiply to ``Σ 1 / m`` over the values that they share, of m products.
        """
        every = [_incidence(feature, self.size) for feature in self.features]
        joined = sparse.hstack([sparse.csr_matrix((self.size, 0), dtype=np.float32), *every])
        norms = np.sqrt(np.asarray(joined.multiply(joined).sum(axis=0)).ravel())
        scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        return sparse.csr_matrix(joined @ sparse.diags_array(scale.astype(np.float32)))

    @cached_property
    def feature_ids(self) -> sparse.csr_matrix:
        """(n, hash_rows) float32: weight of each row of the learned feature table in a product."""
        total = sparse.csr_matrix((self.size, self.spec.hash_rows), dtype=np.float32)
        for feature in self.features:
            rows = hashed_rows(feature.name, feature.values, self.spec.hash_rows)
            ones = np.ones(len(rows), dtype=np.float32)
            shape = (len(rows), self.spec.hash_rows)
            place = sparse.csr_matrix((ones, (np.arange(len(rows)), rows)), shape=shape)
            total = total + _incidence(feature, self.size) @ place
        return total.tocsr()


def content_columns(products: pd.DataFrame) -> list[str]:
    """Return the columns of a products table that describe a product."""
    return [str(name) for name in products.columns if name not in (ITEM_ID, RETIRED)]


def retired_words(column: pd.Series) -> np.ndarray:
    """Return (n,) bool: where the column ``retired`` says yes."""
    said = pd.Series(as_text(column)).str.lower()
    return np.asarray(said.isin(YES), dtype=bool)


def write_catalogue(catalogue: Catalogue, folder: Path, stock: pd.DataFrame | None = None) -> None:
    """Publish a catalogue into a new folder, whole or not at all.

    Parameters
    ----------
    stock
        ``merchant_id, item_id`` of what shops stock, published with it.
    """
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    catalogue.products.to_parquet(draft / _FILES[0], index=False)
    facts = {"spec": catalogue.spec.model_dump(mode="json"), "fingerprint": catalogue.fingerprint}
    (draft / _FILES[1]).write_text(json.dumps(facts, indent=2), encoding="utf-8")
    if stock is not None:
        stock[["merchant_id", ITEM_ID]].astype(str).to_parquet(draft / STOCK, index=False)
    draft.rename(folder)


def read_catalogue(folder: Path) -> Catalogue:
    """Read a published catalogue and check it against its fingerprint.

    Raises
    ------
    ArtifactError
        If it is missing, unreadable, or not what was published.
    """
    try:
        facts = json.loads((folder / _FILES[1]).read_text(encoding="utf-8"))
        spec, fingerprint = ContentSpec.model_validate(facts["spec"]), facts["fingerprint"]
        catalogue = Catalogue.of(pd.read_parquet(folder / _FILES[0]), spec)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise ArtifactError(f"{folder} holds no readable catalogue: {error}") from error
    if catalogue.fingerprint != fingerprint:
        raise ArtifactError(
            f"the catalogue in {folder} is not the one that was published; publish it again"
        )
    return catalogue


def _default_features(columns: dict[str, Feature], size: int) -> list[str]:
    """Name every column, and each pair of columns whose values repeat and that are not few."""
    single = [name for name, feature in columns.items() if len(feature.values)]
    crossed = [
        name
        for name in single
        if 20 <= len(columns[name].values) <= size / 2 and len(columns[name].rows) <= size
    ]
    pairs = [f"{a}{CROSS}{b}" for i, a in enumerate(crossed) for b in crossed[i + 1 :]]
    return single + pairs


def _feature(name: str, columns: dict[str, Feature], size: int) -> Feature:
    """Return the feature of a column, or of the pairs of values of several."""
    parts = [columns[part] for part in name.split(CROSS)]
    if len(parts) == 1:
        return parts[0]
    keys = pd.Series([""] * size, dtype=object)
    complete = np.ones(size, dtype=bool)
    for part in parts:
        value = np.full(size, "", dtype=object)
        value[part.rows] = part.values[part.codes]
        complete &= value != ""
        keys = keys + "\x1f" + pd.Series(value)
    rows = np.flatnonzero(complete)
    codes, values = pd.factorize(keys.to_numpy(dtype=object)[rows], sort=True)
    return Feature(name, np.array([str(v)[1:] for v in values], dtype=object), rows, codes)


def _incidence(feature: Feature, size: int) -> sparse.csr_matrix:
    """(n, V) float32: which product has which value; a product's words share weight 1."""
    shape = (size, len(feature.values))
    ones = np.ones(len(feature.rows), dtype=np.float32)
    return _unit_rows(sparse.csr_matrix((ones, (feature.rows, feature.codes)), shape=shape))


def _unit_rows(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    return (sparse.diags_array(scale.astype(np.float32)) @ matrix).tocsr()


def hashed_rows(name: str, values: np.ndarray, rows: int) -> np.ndarray:
    """Return (V,) int64: the row of a table of ``rows`` that each value of ``name`` hashes to."""
    return np.array([int(_digest(name, value)[0]) % rows for value in values], dtype=np.int64)


def _digest(name: str, value: object) -> np.ndarray:
    """Return 16 little-endian 32-bit words of BLAKE2b(name, value)."""
    key = f"{name}\0{value}".encode()
    return np.frombuffer(hashlib.blake2b(key, digest_size=64).digest(), dtype="<u4")


def _sign_codes(feature: Feature, width: int, nonzeros: int) -> sparse.csr_matrix:
    """(V, width) float32: ``nonzeros`` signs of size 1 / sqrt(nonzeros) at hashed places."""
    count = len(feature.values)
    digests = [_digest(feature.name, v) for v in feature.values]
    words = np.array(digests, dtype="<u4").reshape(count, 16)
    words = words[:, :nonzeros]
    signs = np.where(words & np.uint32(1 << 31), -1.0, 1.0) / np.sqrt(nonzeros)
    places = (words & np.uint32(0x7FFFFFFF)) % width
    rows = np.repeat(np.arange(count), nonzeros)
    entries = (signs.ravel().astype(np.float32), (rows, places.ravel().astype(np.int64)))
    return sparse.csr_matrix(entries, shape=(count, width))
