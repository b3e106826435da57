"""What people look at beside recommendations: products, filters, released figures, a report.

The page (:mod:`server.query.page`) is made of these answers and of the service's own. They hold
public data and released figures only.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import ConfigError
from common.tables.contract import BEHAVIOR_WEIGHTS
from server.query.admitting import Bearer, work
from server.query.answering import Service
from server.query.answers import Model, public_columns
from server.query.report import Report, read_report
from server.query.requests import MAX_K, invalid_words

MAX_FOUND = 50
#: Values of a column that are told: the most frequent ones, where there are more.
_MOST_VALUES = 1000


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class FoundProduct(_Body):
    """One product of the catalogue."""

    item_id: str
    tail: bool = Field(description="Not among the fifth of products that are bought most.")
    product: dict[str, str | int | float | None] = Field(description="Its public columns.")
    own_item_ids: tuple[str, ...] = Field(
        (), description="The shop's own numbers of it, where a shop's differ from the catalogue's."
    )


class ProductList(_Body):
    """Products that hold all words that were asked for, the most popular first."""

    version: int
    total: int = Field(description="How many there are in all.")
    products: tuple[FoundProduct, ...]


class Choice(_Body):
    """A value to filter by, and how many products that may be listed have it."""

    value: str
    products: int


class PriceBand(_Body):
    """The lowest and the highest price of products that may be listed."""

    low: float
    high: float


class Choices(_Body):
    """What there is to filter by; at most 1,000 values of a column, the most frequent ones."""

    version: int
    categories: tuple[Choice, ...]
    brands: tuple[Choice, ...]
    prices: PriceBand | None
    shops: tuple[str, ...] = Field(description="Those whose stock is known.")
    behaviors: dict[str, float] = Field(description="What a customer does -> usual weight of it.")
    products: int
    max_k: int


class Figure(_Body):
    """A mean that shops released together, and what the noise alone may have moved it by."""

    mean: float
    noise_error: float
    error: float


class Released(_Body):
    """What shops released of a model's quality, all of them together."""

    shops: int
    customers: float
    customers_error: float
    figures: dict[str, Figure | None]


class Evaluation(_Body):
    """A version, and the figures that were released with it."""

    version: int
    released: Released | None


class EvaluationList(_Body):
    """Released figures by version, the newest first."""

    evaluations: tuple[Evaluation, ...]


class ReportAnswer(_Body):
    """The simulation's report that the operator shows, if any."""

    report: Report | None


class About(_Body):
    """Whose service this is, and what it can show.

    Attributes
    ----------
    report
        A simulation's report to show.
    """

    where: Literal["federation", "shop"] = Field(
        "federation", description="Who runs this service and can see what is sent to it."
    )
    merchant_id: str | None = Field(None, description="The shop, where a shop runs it.")
    report: Report | None = Field(None, exclude=True)


def find(model: Model, query: str, limit: int) -> ProductList:
    """Return products that hold every word; none named: the most popular ones."""
    hits = model.words.find(query)
    shown = hits[:limit]
    ids = [str(item) for item in model.model.catalogue.item_ids[shown]]
    products = tuple(
        FoundProduct(
            item_id=item,
            tail=bool(model.tail[row]),
            product=public_columns(model.product(item)),
            own_item_ids=own,
        )
        for row, item, own in zip(shown, ids, model.own_numbers(ids), strict=True)
    )
    return ProductList(version=model.version, total=len(hits), products=products)


def choices(model: Model) -> Choices:
    """Return what there is to filter by."""
    prices = model.table.prices
    # Retired products are never listed, whatever they are filtered by.
    offered = None if prices is None else np.delete(prices, model.table.retired)
    known = None if offered is None else offered[np.isfinite(offered)]
    return Choices(
        version=model.version,
        categories=_values(model, "category"),
        brands=_values(model, "brand"),
        prices=None
        if known is None or not known.size
        else PriceBand(low=float(known.min()), high=float(known.max())),
        shops=tuple(sorted(model.table.stock)),
        behaviors=dict(BEHAVIOR_WEIGHTS),
        max_k=MAX_K,
        products=model.model.catalogue.size,
    )


def evaluations(service: Service) -> EvaluationList:
    """Return what shops released of each version; a file of another form tells nothing here."""
    found = []
    for record in service.host.records():
        released = None
        if record.evaluation is not None:
            try:
                released = Released.model_validate(record.evaluation.get("together"))
            except ValidationError:
                released = None
        found.append(Evaluation(version=record.version, released=released))
    return EvaluationList(evaluations=tuple(found))


def about_from(report: Path | None) -> About:
    """Return what a federation's service shows, with a report read from its file.

    Raises
    ------
    ConfigError
        If it is no report.
    """
    if report is None:
        return About()
    try:
        return About(report=read_report(report))
    except ValidationError as error:
        raise ConfigError(
            f"{report} is no report of a simulation: {invalid_words(error.errors())}"
        ) from error


def browse(app: FastAPI, service: Service, about: About) -> None:
    """Add the paths to an application over a service."""
    admitted = partial(work, service)

    @app.get("/v1/about")
    def about_(request: Request, key: Bearer) -> About:
        """Return whose service this is."""
        return admitted("about", request, key, lambda: about)

    @app.get("/v1/products")
    def products(
        request: Request,
        key: Bearer,
        query: Annotated[
            str, Query(max_length=200, description="Words; none: the most popular.")
        ] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_FOUND)] = 20,
    ) -> ProductList:
        """Return products of the catalogue that hold all words in their public columns."""
        return admitted("products", request, key, lambda: find(service.model(), query, limit))

    @app.get("/v1/choices")
    def choices_(request: Request, key: Bearer) -> Choices:
        """Return what there is to filter by."""
        return admitted("choices", request, key, lambda: choices(service.model()))

    @app.get("/v1/evaluations")
    def evaluations_(request: Request, key: Bearer) -> EvaluationList:
        """Return the figures that shops released of each version, all shops together."""
        return admitted("evaluations", request, key, lambda: evaluations(service))

    @app.get("/v1/report")
    def report(request: Request, key: Bearer) -> ReportAnswer:
        """Return the simulation's report that the operator shows here, if there is one."""
        return admitted("report", request, key, lambda: ReportAnswer(report=about.report))


def _values(model: Model, column: str) -> tuple[Choice, ...]:
    rows, retired = model.table.values.get(column, {}), model.table.retired
    listed = np.ones(1 + max((of.max(initial=0) for of in rows.values()), default=0), dtype=bool)
    listed[retired[retired < len(listed)]] = False
    counts = {value: int(listed[of].sum()) for value, of in rows.items()}
    most = sorted(filter(counts.get, counts), key=lambda value: -counts[value])[:_MOST_VALUES]
    return tuple(Choice(value=value, products=counts[value]) for value in sorted(most))
