"""``recommendations.parquet``: every arm's lists, streamed."""

from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("list", pa.string()),
        ("merchant_id", pa.string()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
    ]
)


class RecommendationWriter:
    """Writes lists as they come; the file appears when all are in, or not at all.

    Memory holds one call's lists at most.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.partial")

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._temporary, SCHEMA, compression="zstd")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()
        if error is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)

    def write(
        self,
        arm: str,
        list_name: Literal["all", "tail"],
        merchant_id: str,
        user_ids: np.ndarray,
        rows: np.ndarray,
        scores: np.ndarray,
        item_ids: np.ndarray,
    ) -> None:
        """Append one shop's lists.

        Parameters
        ----------
        user_ids
            ``(B,)``.
        rows, scores
            ``(B, k)`` of :func:`common.scoring.top_k`, best first; rows of -1 are left out.
        item_ids
            ``(n,)`` ids of the catalogue's rows.
        """
        customers, places = np.nonzero(rows >= 0)
        n = customers.size
        columns = [
            pa.array([arm] * n, pa.string()),
            pa.array([list_name] * n, pa.string()),
            pa.array([merchant_id] * n, pa.string()),
            pa.array(user_ids[customers].tolist(), pa.string()),
            pa.array(item_ids[rows[customers, places]].tolist(), pa.string()),
            pa.array((places + 1).astype(np.int32)),
            pa.array(scores[customers, places].astype(np.float32)),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
