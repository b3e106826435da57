"""``python -m server query``: asks a running service, a federation's or a shop's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from common.options import Json


def query(
    history: Annotated[
        list[str] | None, typer.Argument(help="Products of the history: ITEM or ITEM=WEIGHT.")
    ] = None,
    url: Annotated[
        str, typer.Option(help="The service: http, https, grpc or grpcs.")
    ] = "http://127.0.0.1:8080",
    user: Annotated[
        str | None, typer.Option(help="A customer's user_id; a shop's own service knows them.")
    ] = None,
    similar: Annotated[
        str | None, typer.Option(help="List what goes with this product instead.")
    ] = None,
    explain: Annotated[
        str | None, typer.Option(help="Say what this product's score is the sum of instead.")
    ] = None,
    k: Annotated[
        int | None, typer.Option("-k", "--k", help="Length of the list; default: 20.")
    ] = None,
    tail_dial: Annotated[float, typer.Option(help="0: by score alone; 1: the rare first.")] = 0.0,
    category: Annotated[str | None, typer.Option(help="Only products of it.")] = None,
    brand: Annotated[str | None, typer.Option(help="Only products of it.")] = None,
    price_from: Annotated[float | None, typer.Option(help="The lowest price.")] = None,
    price_to: Annotated[float | None, typer.Option(help="The highest price.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Never list this product.")] = None,
    shop: Annotated[str | None, typer.Option(help="Only what this merchant_id stocks.")] = None,
    minimum_score: Annotated[float | None, typer.Option(help="List none below it.")] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="What is known of the customer: NAME=VALUE.")
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="Say what each score is the sum of.")] = False,
    ca: Annotated[Path | None, typer.Option(help="Certificate authority of the service.")] = None,
    key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the API key.")
    ] = "FEDTAIL_KEY",
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Ask a running service for recommendations, similar products, or reasons."""
    from common.cli import print_document
    from server.query.client import Client, as_weight, checked, key_from, pairs
    from server.query.query_table import reasons_table, recommendations_table
    from server.query.requests import FilterBody

    # What a question does not take is refused: an answer without it would be taken for one with it.
    ordered = {"--tail-dial": tail_dial or None, "--why": why or None}
    who = {"a history": history, "--user": user, "--attribute": attribute}
    narrowed = {
        "--category": category,
        "--brand": brand,
        "--price-from": price_from,
        "--price-to": price_to,
        "--exclude": exclude,
        "--shop": shop,
        "--minimum-score": minimum_score,
    }
    if similar is not None:
        _refuse("--similar", {**who, "--explain": explain, **ordered})
    if explain is not None:
        _refuse("--explain", {"-k": k, **ordered, **narrowed})
    length = 20 if k is None else k
    weights: dict[str, float] = {}
    for item, text in pairs(history or [], "1"):
        weights[item] = weights.get(item, 0.0) + as_weight(item, text)  # As the service adds.
    attributes = dict(pairs(attribute or [], ""))
    filters = checked(
        FilterBody,
        category=category,
        brand=brand,
        price_from=price_from,
        price_to=price_to,
        exclude=tuple(exclude or ()),
        merchant_id=shop,
        minimum_score=minimum_score,
    )
    with Client(url, key=key_from(key_env), ca=ca, timeout=timeout) as client:
        if explain is not None:
            why_ = client.explain(explain, weights, user_id=user, attributes=attributes)
            print_document(why_.model_dump(mode="json"), reasons_table, as_json=as_json)
            return
        if similar is not None:
            answer = client.similar(similar, k=length, filters=filters)
        else:
            answer = client.recommend(
                weights,
                user_id=user,
                attributes=attributes,
                k=length,
                tail_dial=tail_dial,
                filters=filters,
                reasons=why,
            )
    print_document(answer.model_dump(mode="json"), recommendations_table, as_json=as_json)


def _refuse(option: str, others: Mapping[str, object]) -> None:
    """Refuse what an option's question does not take, where it is given."""
    from common.errors import ConfigError

    # A price of 0 is given, too.
    if given := [name for name, value in others.items() if value is not None and value != []]:
        raise ConfigError(f"{option} ITEM goes without {', '.join(given)}")
