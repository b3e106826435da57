"""A list of recommendations for people."""

import io
from typing import Any

from rich.console import Console

from server.query.query_table import recommendations_table


def printed(items: list[dict[str, Any]]) -> list[str]:
    document = {
        "version": 1,
        "items": items,
        "tail_share": 0.0,
        "tail_share_undialled": 0.0,
        "score_kept": 1.0,
        "notes": [],
        "unknown_items": [],
    }
    out = io.StringIO()
    Console(file=out, width=120).print(recommendations_table(document))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def item(rank: int, product: dict[str, str], words: str = "") -> dict[str, Any]:
    reasons = {"words": words} if words else None
    return {
        "rank": rank,
        "item_id": f"p{rank}",
        "tail": False,
        "score": 1.5,
        "product": product,
        "reasons": reasons,
    }


def test_the_columns_do_not_depend_on_the_order_of_a_map() -> None:
    # Over gRPC the same question showed other columns each time, and none that the first product
    # has no value of.
    first = {"brand": "acme", "zone": "b"}
    second = {"category": "milk", "zone": "a", "brand": "house", "abv": "5"}
    lines = printed([item(1, first), item(2, second)])
    other = printed(
        [item(1, dict(reversed(first.items()))), item(2, dict(reversed(second.items())))]
    )
    assert lines == other
    assert lines[0].split() == ["rank", "item_id", "category", "brand", "abv", "tail", "score"]


def test_what_a_column_is_called_is_no_markup() -> None:
    # Taken for markup, the first would be gone, and the second end the command.
    lines = printed([item(1, {"size [ml]": "5", "[/] old": "x"})])
    assert lines[0].split() == ["rank", "item_id", "[/]", "old", "size", "[ml]", "tail", "score"]


def test_reasons_stand_beside_their_product_and_stretch_no_other_column() -> None:
    lines = printed([item(1, {"brand": "acme"}, "1.5: how popular it is"), item(2, {})])
    assert lines[0].split() == ["rank", "item_id", "brand", "tail", "score", "why"]
    assert lines[1].split()[:3] == ["1", "p1", "acme"]
    assert lines[1].endswith("1.5: how popular it is")
