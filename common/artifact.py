"""A trained model on disk: three files in a folder, checked before anything reads them.

::

    models/<arm>/
    ├── model.safetensors     named arrays, float32
    ├── items.parquet         the vocabulary: item_id of each row
    └── manifest.json         what it is, and the SHA-256 of the other two
"""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from common.disk import sha256, sync
from common.errors import ArtifactError
from common.protocol import FINGERPRINT_CHARS, Arrays, Frozen

FORMAT_VERSION: Final = 1
MODEL, ITEMS, MANIFEST = "model.safetensors", "items.parquet", "manifest.json"
Digest = str

# How safetensors tells what the system refused: in words alone.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_LOG = logging.getLogger(__name__)


class Manifest(Frozen):
    """What ``manifest.json`` says.

    ``privacy`` is the model's privacy statement, null where it was trained without. ``arrays``
    and ``files`` are filled in by :func:`save_model`.
    """

    format_version: Literal[1] = FORMAT_VERSION
    version: str = Field(min_length=1)
    server_round: int = Field(ge=0)
    data_columns: tuple[str, ...]
    config: dict[str, Any]
    code_digest: str
    privacy: dict[str, Any] | None
    catalogue_fingerprint: str = Field(
        min_length=FINGERPRINT_CHARS, max_length=FINGERPRINT_CHARS, pattern="^[0-9a-f]+$"
    )
    arrays: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    files: dict[str, Digest] = Field(default_factory=dict)


@dataclass(frozen=True)
class ModelArtifact:
    """A model that passed every check: arrays, the ``(n,)`` item ids of its rows, manifest."""

    arrays: Arrays
    item_ids: np.ndarray
    manifest: Manifest


def save_model(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    item_ids: np.ndarray,
    manifest: Manifest,
    *,
    model_digest: Digest | None = None,
) -> Manifest:
    """Write a model whole or not at all, and return its manifest as written.

    The files are written and synced in a temporary folder beside ``folder``, which is then
    renamed: a reader, or a power cut, never meets half a model.

    Parameters
    ----------
    model_digest
        SHA-256 that the file of arrays must have, for a model that was sent from elsewhere.

    Raises
    ------
    ArtifactError
        If ``folder`` exists, an array holds values that are not finite, or the digest differs.
    OSError
        If it cannot be written.
    """
    if folder.exists():
        raise ArtifactError(f"{folder} exists already: a model is never overwritten, name another")
    _check_finite(arrays, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        contiguous = {k: np.ascontiguousarray(v, np.float32) for k, v in arrays.items()}
        save_arrays(temporary / MODEL, contiguous)
        (temporary / MODEL).chmod(0o644)  # the library keeps it from all but its owner
        if model_digest is not None and sha256(temporary / MODEL) != model_digest:
            raise ArtifactError(
                f"{folder}: the arrays are not those of the manifest (SHA-256 differs)"
            )
        pq.write_table(
            pa.table({"item_id": pa.array(item_ids.tolist(), pa.string())}), temporary / ITEMS
        )
        manifest = manifest.model_copy(
            update={
                "arrays": {name: tuple(array.shape) for name, array in arrays.items()},
                "files": {name: sha256(temporary / name) for name in (MODEL, ITEMS)},
            }
        )
        text = manifest.model_dump_json(indent=2)
        (temporary / MANIFEST).write_text(text, encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        temporary.chmod(0o755)
        temporary.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _LOG.info(
        "saved model=%s version=%s round=%d", folder.name, manifest.version, manifest.server_round
    )
    return manifest


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as safetensors.

    Raises
    ------
    OSError
        If the file cannot be written, as on a full disk: safetensors has an error of its own for it
        that nobody expects.
    """
    try:
        save_file(dict(arrays), path)
    except SafetensorError as error:
        if (found := _OS_ERROR.search(str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def load_model(
    folder: Path,
    *,
    catalogue_fingerprint: str | None = None,
    spec: Mapping[str, tuple[int, ...]] | None = None,
) -> ModelArtifact:
    """Read a model and check it first: digests, names, shapes, finite values, vocabulary.

    Parameters
    ----------
    catalogue_fingerprint
        The catalogue that the reader has; a model of another one is refused.
    spec
        Name -> shape that the reader's code expects.

    Raises
    ------
    ArtifactError
        If anything is missing, damaged or of another catalogue; the message names the file.
    """
    manifest = _read_manifest(folder)
    for name in (MODEL, ITEMS):
        if name not in manifest.files:
            raise ArtifactError(f"{folder / MANIFEST} names no digest for {name}: write it anew")
        try:
            actual = sha256(folder / name)
        except OSError as error:
            raise ArtifactError(f"{folder / name} cannot be read: {error.strerror}") from error
        if actual != manifest.files[name]:
            raise ArtifactError(
                f"{folder / name} is damaged: its SHA-256 is {actual[:12]}..., the manifest says "
                f"{manifest.files[name][:12]}...; copy the model again"
            )
    if catalogue_fingerprint not in {None, manifest.catalogue_fingerprint}:
        raise ArtifactError(
            f"{folder} belongs to catalogue {manifest.catalogue_fingerprint[:12]}..., not to "
            f"{str(catalogue_fingerprint)[:12]}...: use the products table that it was trained on"
        )
    try:
        arrays: Arrays = load_file(folder / MODEL)
        column = pq.read_table(folder / ITEMS, columns=["item_id"])["item_id"]
    except Exception as error:  # Of kinds of numbers that numpy lacks safetensors raises anything.
        raise ArtifactError(f"{folder} cannot be read: {error}") from error
    if not pa.types.is_string(column.type):
        raise ArtifactError(f"{folder / ITEMS} holds an item_id that is no text")
    _check_shapes(arrays, manifest.arrays, f"{folder / MODEL} differs from its manifest")
    if spec is not None:
        _check_shapes(arrays, spec, f"{folder / MODEL} is not a model of this shape")
    _check_finite(arrays, folder / MODEL)
    item_ids = np.array(column.to_pylist(), dtype=object)
    if column.null_count or len(set(item_ids)) != item_ids.size:
        raise ArtifactError(f"{folder / ITEMS} holds an empty or repeated item_id")
    return ModelArtifact(arrays, item_ids, manifest)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}): is this a model?"
        ) from error
    except ValidationError as error:
        fields = ", ".join(
            sorted({".".join(map(str, e["loc"])) or e["msg"] for e in error.errors()})
        )
        raise ArtifactError(f"{path} is not a manifest of this version: {fields}") from error


def _check_shapes(
    arrays: Mapping[str, np.ndarray], spec: Mapping[str, tuple[int, ...]], words: str
) -> None:
    if set(arrays) != set(spec):
        raise ArtifactError(f"{words}: arrays {sorted(arrays)} instead of {sorted(spec)}")
    for name, shape in spec.items():
        if arrays[name].shape != tuple(shape) or arrays[name].dtype != np.float32:
            raise ArtifactError(
                f"{words}: {name!r} is {arrays[name].dtype} {arrays[name].shape}, "
                f"not float32 {tuple(shape)}"
            )


def _check_finite(arrays: Mapping[str, np.ndarray], where: Path) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ArtifactError(f"{where}: array {name!r} holds values that are not finite")
