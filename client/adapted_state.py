"""A shop's adaptation on disk: its own state, for its owner's eyes alone, checked before use.

::

    adapted/                    mode 0700
    ├── current                 the name of the newest
    └── 20261124T171500.123456/
        ├── state.safetensors   EASE, the shop's own popularity and products, content
        └── adapted.json        what it was fitted on, and the SHA-256 of the other

An adaptation is written into a folder of its own and then named by ``current``: a reader, or a
power cut, meets the old one or the new one, never half of either.
"""

import fcntl
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from client.assortment import Assortment
from client.ease import Ease
from client.home_settings import HomeSettings
from client.kin import Kin
from client.personalization import HomeModel, with_own_shares
from client.segments import Segments
from client.shares import dealt
from common.code import code_digest
from common.disk import sha256, sync
from common.errors import ArtifactError
from common.features import Catalogue, ContentSpec
from common.model import GlobalModel
from common.protocol import Arrays, Frozen, ModelPlan

FORMAT_VERSION: Final = 1
STATE, FACTS, CURRENT = "state.safetensors", "adapted.json", "current"
_KEPT = 2
#: Of a catalogue's folder.
PRODUCTS = "products.parquet"
_DRAFT = ".draft-"
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


def save_adapted(folder: Path, home: HomeModel, facts: AdaptedFacts) -> AdaptedFacts:
    """Write an adaptation whole or not at all, and let ``current`` name it.

    Parameters
    ----------
    folder
        The shop's ``adapted``; made where it is missing. The one before stays too, for whoever is
        reading it; older ones go.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    with _alone(folder):
        _sweep(folder)
        try:
            return _write(folder, home, facts)
        finally:
            _sweep(folder)


def _write(folder: Path, home: HomeModel, facts: AdaptedFacts) -> AdaptedFacts:
    eases = {name: part for name, part in home.eases.items() if isinstance(part, Ease)}
    draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=folder))
    save_file(_arrays(home, eases), draft / STATE)
    facts = facts.model_copy(
        update={
            "mixing_weights": dict(home.mixing_weights),
            "part_scales": dict(home.part_scales),
            "outside": dict(home.outside),
            "ridges": {name: ease.ridge for name, ease in eases.items()},
            "own_plan": home.own_learned.plan if home.own_learned else None,
            "shared_plan": home.shared_learned.plan if home.shared_learned else None,
            "segments": home.segments.names if home.segments else (),
            "state_digest": sha256(draft / STATE),
        }
    )
    (draft / FACTS).write_text(facts.model_dump_json(indent=2), encoding="utf-8")
    for path in (draft / STATE, draft / FACTS):
        path.chmod(0o600)
        sync(path)
    name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    draft.rename(folder / name)
    pointer = folder / f"{_DRAFT}{CURRENT}"
    pointer.write_text(name, encoding="utf-8")
    pointer.chmod(0o600)
    sync(pointer)
    pointer.replace(folder / CURRENT)
    sync(folder)
    return facts


def read_facts(folder: Path) -> tuple[Path, AdaptedFacts] | None:
    """Return the newest adaptation's folder and facts; None where the shop has none.

    Raises
    ------
    ArtifactError
        If it is there and cannot be read.
    """
    name = _current(folder)
    if name is None:
        return None
    if not name:
        raise _unusable(folder / CURRENT, "it names no adaptation")
    path = folder / name / FACTS
    try:
        return folder / name, AdaptedFacts.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _unusable(path, "it is missing or damaged, or of another version") from error


def newest_files(folder: Path) -> list[Path]:
    """Return the files that the newest adaptation is made of; there may be none of them."""
    name = _current(folder)
    return [folder / CURRENT, *(folder / name / part for part in (STATE, FACTS) if name)]


def read_state(folder: Path, facts: AdaptedFacts) -> Arrays:
    """Return the arrays of an adaptation, checked against its facts.

    Raises
    ------
    ArtifactError
        If they are damaged, or were fitted by other code.
    """
    if facts.code_digest != code_digest():
        raise _unusable(folder, "it was fitted by another version of this code")
    try:
        if sha256(folder / STATE) != facts.state_digest:
            raise _unusable(folder / STATE, "it is damaged: its SHA-256 is not what was written")
        arrays: Arrays = load_file(folder / STATE)
    except (OSError, SafetensorError) as error:
        raise _unusable(folder / STATE, "it is missing or damaged") from error
    return arrays


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
        dealt(model, shares),
        own and dealt(own, shares),
        eases,
        arrays["own_popularity"],
        arrays["expected_content"],
        facts.part_scales,
        facts.mixing_weights,
        Segments(facts.segments, arrays[_SEGMENTS]) if facts.segments else None,
        Kin(_matrix(arrays, _KIN), arrays[_KIN_EXPECTED]) if _KIN_EXPECTED in arrays else None,
        facts.outside,
        shared and dealt(shared, shares),
        shares,
        facts.settings.best_sellers,
        facts.settings.best,
    )


def _low_rank(
    arrays: Arrays, name: str, plan: ModelPlan | None, catalogue: Catalogue
) -> GlobalModel | None:
    """Return a low-rank model of the shop's own that was stored; None without a plan of it."""
    if plan is None:
        return None
    state = {k.removeprefix(f"{name}."): v for k, v in arrays.items() if k.startswith(f"{name}.")}
    return GlobalModel(plan, catalogue, state)


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 over the names and contents of the files in a folder."""
    digest = hashlib.sha256()
    try:
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            digest.update(f"{path.name}:{sha256(path)}\n".encode())
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _arrays(home: HomeModel, eases: Mapping[str, Ease]) -> Arrays:
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


def _sweep(folder: Path) -> None:
    """Delete what an interrupted adaptation left, and all but the newest ones."""
    for path in folder.glob(f"{_DRAFT}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    whole = sorted(path for path in folder.iterdir() if path.is_dir())
    current = _current(folder)
    for path in whole[:-_KEPT]:
        if path.name != current:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that drafts in it are one's own."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _current(folder: Path) -> str | None:
    try:
        name = (folder / CURRENT).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        return ""
    return name if Path(name).name == name else ""


def _unusable(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path}: {why}; make it anew with python -m client adapt")
