"""The figures of a run's model that shops released, as a file beside the model.

Each shop's is noisy by itself, and paid for by its own ledger: whatever is computed of them here
costs nobody anything more.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.disk import write_whole
from common.evaluation import EVALUATION, ReleasedEvaluation, read_evaluation
from common.protocol import Noise
from server.rounds.exchange import Exchange, weakest


@dataclass(frozen=True)
class ShopFigures:
    """What one shop released, and where its noise came from."""

    shop: str
    noise: Noise
    released: ReleasedEvaluation


def figures_of(exchange: Exchange) -> list[ShopFigures]:
    """Return what the shops of an ``EVALUATE`` exchange released."""
    headers = {shop: exchange.headers[node] for node, shop in exchange.accepted_nodes.items()}
    return [
        ShopFigures(
            c.shop,
            weakest((headers[c.shop].noise,)),
            ReleasedEvaluation(c.arrays[EVALUATION], headers[c.shop].noise_multiplier),
        )
        for c in exchange.contributions
    ]


def write_figures(path: Path, run_name: str, figures: Sequence[ShopFigures]) -> None:
    """Write what shops released, whole or not at all; nothing where none released any."""
    if not figures:
        return
    document: dict[str, Any] = {
        "run": run_name,
        "noise": weakest(each.noise for each in figures),
        "together": read_evaluation([each.released for each in figures]),
        "shops": {
            each.shop: {
                "noise": each.noise,
                "noise_multiplier": each.released.noise_multiplier,
                **read_evaluation([each.released]),
            }
            for each in figures
        },
    }
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False)
    write_whole(path, text.encode())
