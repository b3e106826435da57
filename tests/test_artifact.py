"""A model on disk comes back as it was, or is refused with the reason."""

import io
import json
import math
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save

from common import artifact
from common.artifact import ITEMS, MANIFEST, MODEL, Manifest, load_model, save_model
from common.disk import sha256
from common.errors import ArtifactError

ARRAYS = {
    "item_embedding": np.arange(6, dtype=np.float32).reshape(3, 2),
    "item_bias": np.array([0.5, -1, 2], np.float32),
}
# Of four numbers.
_BYTES = {"BF16": 8, "F8_E4M3": 4, "F4": 2}
IDS = np.array(["a", "b\n1", "ü"], object)


def manifest() -> Manifest:
    return Manifest(
        version="1",
        server_round=7,
        data_columns=("user_id", "item_id"),
        config={"rounds": 7},
        code_digest="c" * 64,
        privacy={"epsilon": 8.0, "unit": "customer"},
        catalogue_fingerprint="f" * 64,
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tmp_path / "models" / "federated", ARRAYS, IDS, manifest())
    return tmp_path / "models" / "federated"


def test_a_model_comes_back_as_it_was(saved: Path) -> None:
    spec = {name: array.shape for name, array in ARRAYS.items()}
    found = load_model(saved, catalogue_fingerprint="f" * 64, spec=spec)
    assert all(np.array_equal(found.arrays[name], array) for name, array in ARRAYS.items())
    assert found.item_ids.tolist() == IDS.tolist()
    assert found.manifest.privacy == {"epsilon": 8.0, "unit": "customer"}
    assert [path.name for path in saved.parent.iterdir()] == ["federated"]


@pytest.mark.parametrize("name", [MODEL, ITEMS])
def test_one_flipped_byte_is_noticed(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[-3] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} is damaged.*copy the model again"):
        load_model(saved)


@pytest.mark.parametrize("name", [MODEL, ITEMS, MANIFEST])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} cannot be read"):
        load_model(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version"),
        ({"surprise": 1}, "surprise"),
        ({"files": {}}, "names no digest"),
        ({"arrays": {"item_bias": [3]}}, "differs from its manifest"),
        ({"arrays": {"item_bias": [3], "item_embedding": [2, 3]}}, "differs from its manifest"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    saved: Path, change: dict[str, object], message: str
) -> None:
    document = json.loads((saved / MANIFEST).read_text()) | change
    (saved / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=message):
        load_model(saved)


@pytest.mark.parametrize("name", [MODEL, ITEMS])
def test_each_file_needs_a_digest_of_its_own(saved: Path, name: str) -> None:
    document = json.loads((saved / MANIFEST).read_text())
    del document["files"][name]
    (saved / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=f"names no digest for {name}"):
        load_model(saved)


def test_what_is_no_json_is_refused(saved: Path) -> None:
    (saved / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="not a manifest"):
        load_model(saved)


def test_the_reader_s_catalogue_and_shapes_are_held_against_it(saved: Path) -> None:
    with pytest.raises(ArtifactError, match="belongs to catalogue"):
        load_model(saved, catalogue_fingerprint="0" * 64)
    with pytest.raises(ArtifactError, match="not a model of this shape"):
        load_model(saved, spec={"item_bias": (4,), "item_embedding": (3, 2)})


def test_values_that_are_not_finite_are_neither_written_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ARRAYS | {"item_bias": np.array([0, np.nan, 1], np.float32)}
    with pytest.raises(ArtifactError, match="'item_bias' holds values that are not finite"):
        save_model(tmp_path / "m", broken, IDS, manifest())
    assert list(tmp_path.iterdir()) == []
    # Whoever wrote it, with digests that are right.
    with monkeypatch.context() as patch:
        patch.setattr("common.artifact._check_finite", lambda *_: None)
        save_model(tmp_path / "m", broken, IDS, manifest())
    with pytest.raises(ArtifactError, match="'item_bias' holds values that are not finite"):
        load_model(tmp_path / "m")


def test_numbers_of_another_kind_are_refused_whatever_their_digest(saved: Path) -> None:
    _replace(saved, MODEL, save({name: a.astype(np.float64) for name, a in ARRAYS.items()}))
    with pytest.raises(ArtifactError, match=r"is float64 .*, not float32"):
        load_model(saved)


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3", "F4"])
def test_numbers_that_numpy_does_not_have_are_refused(saved: Path, kind: str) -> None:
    """Of what safetensors knows and numpy does not, reading ended in a stack trace."""
    count = _BYTES[kind]
    header = json.dumps({"a": {"dtype": kind, "shape": [4], "data_offsets": [0, count]}}).encode()
    _replace(saved, MODEL, len(header).to_bytes(8, "little") + header + bytes(count))
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_model(saved)


@pytest.mark.parametrize("ids", [[1, 2, 3], [[1], [2], [3]], [math.nan] * 3, [b"a", b"b", b"c"]])
def test_item_ids_that_are_no_text_are_refused(saved: Path, ids: list[object]) -> None:
    table = io.BytesIO()
    pq.write_table(pa.table({"item_id": ids}), table)
    _replace(saved, ITEMS, table.getvalue())
    with pytest.raises(ArtifactError, match="an item_id that is no text"):
        load_model(saved)


def _replace(model: Path, name: str, content: bytes) -> None:
    """Write a file of a model anew, with the digest that is right."""
    (model / name).write_bytes(content)
    document = json.loads((model / MANIFEST).read_text())
    document["files"][name] = sha256(model / name)
    (model / MANIFEST).write_text(json.dumps(document))


@pytest.mark.parametrize("ids", [["a", "a", "b"], ["a", None, "b"]])
def test_repeated_and_empty_item_ids_are_refused(tmp_path: Path, ids: list[str | None]) -> None:
    save_model(tmp_path / "m", ARRAYS, np.array(ids, object), manifest())
    with pytest.raises(ArtifactError, match="empty or repeated item_id"):
        load_model(tmp_path / "m")


def test_nothing_is_overwritten_and_nothing_half_written(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtifactError, match="never overwritten"):
        save_model(saved, ARRAYS, IDS, manifest())

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact, "sync", full)
    with pytest.raises(OSError, match="No space"):
        save_model(saved.parent / "other", ARRAYS, IDS, manifest())
    assert [path.name for path in saved.parent.iterdir()] == ["federated"]


def test_a_disk_without_room_is_told_as_such_and_leaves_nothing(tmp_path: Path) -> None:
    large = {"item_embedding": np.zeros((5000, 2), np.float32)}
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python turns the signal into an error, as of a disk that is full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, room[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_model(tmp_path / "m", large, IDS, manifest())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
    assert list(tmp_path.iterdir()) == []
