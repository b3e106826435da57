"""A shop's adaptation as facts and arrays, the form in which it is kept, and back again."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pandas as pd
from pydantic import Field
from scipy import sparse

from client.data.assortment import Assortment
from client.home.ease import Ease
from client.home.kin import Kin
from client.home.personalization import HomeModel, with_own_shares
from client.home.segments import Segments
from client.home.shares import dealt
from client.home_settings import HomeSettings
from common.features import PRODUCTS, Catalogue, ContentSpec
from common.model import GlobalModel
from common.protocol import Arrays, Frozen, ModelPlan

FORMAT_VERSION: Final = 1
_CONTENT, _CUSTOMERS, _OWN = "content", "customers", "own_learned"
_OWN_PRODUCTS, _LIKE, _SEGMENTS = "own_products", "popularity_of_like", "segments"
_KIN, _KIN_EXPECTED = "kin", "kin.expected"
_SHARED, _SHARES = "shared_learned", "shares"


class AdaptedFacts(Frozen):
    """What ``adapted.json`` says: what was fitted, on what, and to which weights.

    Attributes
    ----------
    fitted_at
        When, ISO 8601.
    model_folder, model_digest, model_version
        The global model around which, and the SHA-256 of its manifest.
    catalogue_digest
        SHA-256 over the files of the catalogue.
    content
        How the catalogue's columns become features.
    settings, behavior_weights, rating_scale, own_products
        The shop's own, as they were.
    first, last, validation_from
        Times of the first and last record, and from when on the weights were chosen.
    customers, records, validated
        How many customers with records, how many records, and how many customers the weights were
        chosen on.
    segments
        Attribute and value of those whose taste is kept.
    """

    format_version: Literal[1] = FORMAT_VERSION
    merchant_id: str
    fitted_at: str
    model_folder: Path
    model_digest: str
    model_version: str
    catalogue_digest: str
    catalogue_fingerprint: str
    content: ContentSpec
    code_digest: str
    settings: HomeSettings
    behavior_weights: dict[str, float]
    rating_scale: float
    own_products: bool
    half_life_days: float
    first: int
    last: int
    validation_from: int
    customers: int
    records: int
    validated: int
    segments: tuple[tuple[str, str], ...] = ()
    mixing_weights: dict[str, float]
    part_scales: dict[str, float]
    outside: dict[str, float] = Field(default_factory=dict)
    ridges: dict[str, float] = Field(default_factory=dict)
    own_plan: ModelPlan | None = None
    shared_plan: ModelPlan | None = None
    state_digest: str = ""


def arrays_of(home: HomeModel, eases: Mapping[str, Ease]) -> Arrays:
    """Return all arrays that the mixture is made of, those of its EASE parts among them."""
    arrays: Arrays = {
        "own_popularity": home.own_popularity.astype(np.float32),
        "expected_content": home.expected_content.astype(np.float32),
        **_flat(home.model.catalogue.content, _CONTENT),
    }
    for name, ease in eases.items():
        arrays |= _flat(ease.customers, f"{name}.{_CUSTOMERS}")
        for field in ("inverse", "diagonal", "lifted", "core"):
            arrays[f"{name}.{field}"] = getattr(ease, field)
    if isinstance(catalogue := home.model.catalogue, Assortment):
        arrays[_OWN_PRODUCTS] = _as_bytes(catalogue.own.products)
        arrays[_LIKE] = home.model.popularity_of_like
    if home.segments is not None:
        arrays[_SEGMENTS] = home.segments.tastes
    if home.kin is not None:
        arrays |= {**_flat(home.kin.codes, _KIN), _KIN_EXPECTED: home.kin.expected}
    for part, model in ((_OWN, home.own_learned), (_SHARED, home.shared_learned)):
        if model is not None:
            arrays |= {f"{part}.{name}": array for name, array in model.state.items()}
    if home.shares is not None:
        arrays[_SHARES] = home.shares
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def with_parts(facts: AdaptedFacts, home: HomeModel, eases: Mapping[str, Ease]) -> AdaptedFacts:
    """Return the facts with all that is kept of the mixture beside its arrays."""
    return facts.model_copy(
        update={
            "mixing_weights": dict(home.mixing_weights),
            "part_scales": dict(home.part_scales),
            "outside": dict(home.outside),
            "ridges": {name: ease.ridge for name, ease in eases.items()},
            "own_plan": home.own_learned.plan if home.own_learned else None,
            "shared_plan": home.shared_learned.plan if home.shared_learned else None,
            "segments": home.segments.names if home.segments else (),
        }
    )


def home_of(arrays: Arrays, facts: AdaptedFacts, model: GlobalModel) -> HomeModel:
    """Return the mixture that was stored, around the global model that it was fitted to."""
    eases = {
        name: Ease(
            customers=_matrix(arrays, f"{name}.{_CUSTOMERS}"),
            inverse=arrays[f"{name}.inverse"],
            diagonal=arrays[f"{name}.diagonal"],
            ridge=ridge,
            lifted=arrays[f"{name}.lifted"],
            core=arrays[f"{name}.core"],
        )
        for name, ridge in facts.ridges.items()
    }
    if _LIKE in arrays:
        # Slow to make: it takes the features of all products.
        vars(model).update(popularity_of_like=arrays[_LIKE])
    shares = arrays.get(_SHARES)
    own = _low_rank(arrays, _OWN, facts.own_plan, model.catalogue)
    shared = _low_rank(arrays, _SHARED, facts.shared_plan, model.catalogue)
    model = with_own_shares(model, arrays["own_popularity"][0], facts.settings.own_shares)
    return HomeModel(
        model=dealt(model, shares),
        own_learned=own and dealt(own, shares),
        shared_learned=shared and dealt(shared, shares),
        eases=eases,
        own_popularity=arrays["own_popularity"],
        expected_content=arrays["expected_content"],
        part_scales=facts.part_scales,
        mixing_weights=facts.mixing_weights,
        segments=Segments(facts.segments, arrays[_SEGMENTS]) if facts.segments else None,
        kin=Kin(_matrix(arrays, _KIN), arrays[_KIN_EXPECTED]) if _KIN_EXPECTED in arrays else None,
        outside=facts.outside,
        shares=shares,
        best_sellers=facts.settings.best_sellers,
        best=facts.settings.best,
    )


def known_catalogue(folder: Path, facts: AdaptedFacts, arrays: Arrays) -> Catalogue:
    """Return the products that the adaptation was fitted on; the catalogue's files have its digest.

    Its fingerprint and content, which are slow to make, are those that were kept.
    """
    catalogue = Catalogue.of(pd.read_parquet(folder / PRODUCTS), facts.content)
    content = _matrix(arrays, _CONTENT)
    # Where cached_property would put them.
    vars(catalogue).update(
        content=content[: catalogue.size], fingerprint=facts.catalogue_fingerprint
    )
    if _OWN_PRODUCTS not in arrays:
        return catalogue
    own = pd.read_parquet(io.BytesIO(arrays[_OWN_PRODUCTS].tobytes()))
    assortment = Assortment.beside(catalogue, own)
    vars(assortment).update(content=content)
    return assortment


def _low_rank(
    arrays: Arrays, name: str, plan: ModelPlan | None, catalogue: Catalogue
) -> GlobalModel | None:
    """Return a low-rank model of the shop's own that was stored; None without a plan of it."""
    if plan is None:
        return None
    state = {k.removeprefix(f"{name}."): v for k, v in arrays.items() if k.startswith(f"{name}.")}
    return GlobalModel(plan, catalogue, state)


def _as_bytes(frame: pd.DataFrame) -> np.ndarray:
    """Return (m,) uint8: a table as a Parquet file."""
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    return np.frombuffer(file.getvalue(), np.uint8)


def _flat(matrix: sparse.csr_matrix, name: str) -> Arrays:
    return {
        f"{name}.data": matrix.data.astype(np.float32),
        f"{name}.indices": matrix.indices.astype(np.int32),
        f"{name}.indptr": matrix.indptr.astype(np.int64),
        f"{name}.shape": np.array(matrix.shape, np.int64),
    }


def _matrix(arrays: Arrays, name: str) -> sparse.csr_matrix:
    parts = tuple(arrays[f"{name}.{part}"] for part in ("data", "indices", "indptr"))
    return sparse.csr_matrix(parts, shape=tuple(map(int, arrays[f"{name}.shape"])))
