"""What is told of a model as a whole: the map of its products, and a small tree of its rules.

Each is computed when it is first asked for and kept for a few versions; who asks in the meantime
waits, but only so many: the others are told to come back.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, Generic, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from common.model import GlobalModel
from server.query.admitting import Bearer, work
from server.query.answering import RefusedError, Service, Status
from server.query.answers import Model, Problem
from server.query.model_tree import ModelTree, fit_tree
from server.query.product_map import ProductMap, map_products
from server.query.requests import ItemId

#: Versions whose view is kept.
_KEPT = 4
#: Requests that may wait for a view at a time, its first asker among them.
_WAITING = 4
_RETRY_SECONDS = 5.0
MAX_POINTS = 20_000
MAX_INCLUDED = 100
#: Columns that name a product, the first that has a value.
_TITLES = ("title", "type", "category")

View = TypeVar("View")


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class MapGroup(_Body):
    """Products of one value, and the middle of where they are."""

    value: str
    x: float
    y: float
    products: int


class MapBody(_Body):
    """Products in the plane; what goes together lies together. One place of each list a product.

    Half of the points are the most popular products, the others drawn evenly from the rest by
    popularity; then those that were asked for by name.
    """

    version: int
    catalogue_products: int
    laid_out: int = Field(description="Products that have a place: the most popular ones.")
    column: str = Field(description='Column of the products that groups are of; "": none.')
    groups: tuple[MapGroup, ...] = Field(description="The largest first.")
    item_ids: tuple[str, ...]
    x: tuple[float, ...] = Field(description="From 0 to 1.")
    y: tuple[float, ...] = Field(description="From 0 to 1, upwards.")
    titles: tuple[str | None, ...]
    group: tuple[int, ...] = Field(description="Place in groups; -1: none of them.")
    tail: tuple[bool, ...] = Field(description="Not among the fifth that is bought most.")
    popularity: tuple[float, ...] = Field(description="As released; 1: an average product.")
    own_item_ids: tuple[tuple[str, ...], ...] = Field(
        description="The shop's own numbers, where a shop's differ from the catalogue's."
    )


class TreeNode(_Body):
    """A question of the tree, or an answer."""

    feature: str = Field(description='What is asked; "": this is an answer.')
    threshold: float = Field(description="Is it more than this?")
    yes: int = Field(description="Number of the node that follows; -1: none.")
    no: int
    best_share: float = Field(description="Where products come in lists; 0.01: the best 1%.")
    share: float = Field(description="Of the products looked at that come here.")


class TreeFidelity(_Body):
    """How well the tree tells what the model does, on made-up customers it has not seen."""

    profiles: int
    r2: float = Field(
        description="Of the logarithm of a place: of some of the best and some of all."
    )
    r2_by_popularity: float = Field(description="The same by released popularity alone.")
    rank_correlation: float
    top_20_overlap: float = Field(description="Share of the model's 20 best among the tree's.")
    top_20_by_popularity: float = Field(description="The same of the 20 most popular products.")


class TreeBody(_Body):
    """A model in a few rules, and how far to trust them.

    Fitted on public products and customers that are made up from them: nobody's records.
    """

    version: int
    nodes: tuple[TreeNode, ...] = Field(description="The first is where to begin.")
    rules: tuple[str, ...] = Field(description="The best products' first.")
    fidelity: TreeFidelity


@dataclass(frozen=True)
class _Kept(Generic[View]):
    """A view, and the model that it is of; it does not keep that in memory."""

    of: Callable[[], GlobalModel | None]
    view: View


@dataclass
class Views(Generic[View]):
    """Views of models by version, each made once.

    One of another model under the same number is made anew: a shop's own service keeps a model's
    number when it gets to know other products of its own.

    Parameters
    ----------
    make
        Computes the view; seconds.
    """

    make: Callable[[GlobalModel], View]
    _kept: OrderedDict[int, "_Kept[View]"] = field(default_factory=OrderedDict)
    _making: threading.Lock = field(default_factory=threading.Lock)
    _places: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(_WAITING)
    )

    def of(self, version: int, model: GlobalModel) -> View:
        """Return the view of a version.

        Raises
        ------
        RefusedError
            If too many wait for it already.
        """
        if (found := self._kept.get(version)) is not None and found.of() is model:
            return found.view
        if not self._places.acquire(blocking=False):
            text = "this view of the model is being made: ask again in a few seconds"
            raise RefusedError(Status.TOO_MANY, text, _RETRY_SECONDS)
        try:
            with self._making:
                if (found := self._kept.get(version)) is None or found.of() is not model:
                    found = _Kept(weakref.ref(model), self.make(model))
                    self._kept[version] = found
                    while len(self._kept) > _KEPT:
                        self._kept.popitem(last=False)
                return found.view
        finally:
            self._places.release()


def view(app: FastAPI, service: Service) -> None:
    """Add the paths to an application over a service."""
    admitted = partial(work, service)
    maps, trees = Views[ProductMap](map_products), Views[ModelTree](fit_tree)

    @app.get("/v1/models/{version}/map", responses={404: {"model": Problem}})
    def product_map(
        version: int,
        request: Request,
        key: Bearer,
        most: Annotated[int, Query(ge=1, le=MAX_POINTS, description="Points at most.")] = 3000,
        include: Annotated[
            list[ItemId] | None,
            Query(max_length=MAX_INCLUDED, description="Products that must be among them."),
        ] = None,
    ) -> MapBody:
        """Return where the products of the served version lie; version 0 stands for it."""

        def found() -> MapBody:
            model = served(service, version)
            return map_body(model, maps.of(model.version, model.model), most, include or ())

        return admitted("map", request, key, found)

    @app.get("/v1/models/{version}/tree", responses={404: {"model": Problem}})
    def model_tree(version: int, request: Request, key: Bearer) -> TreeBody:
        """Return the served version in a few rules; version 0 stands for it."""

        def found() -> TreeBody:
            model = served(service, version)
            return tree_body(model.version, trees.of(model.version, model.model))

        return admitted("tree", request, key, found)


def served(service: Service, version: int) -> Model:
    """Return the served model if it is this version; 0 stands for whichever is served.

    Raises
    ------
    RefusedError
        If another version is served.
    """
    model = service.model()
    if version not in (0, model.version):
        text = f"version {model.version} is served, and only of it this can be told"
        raise RefusedError(Status.UNKNOWN, text)
    return model


def map_body(model: Model, found: ProductMap, most: int, include: Sequence[str]) -> MapBody:
    """Return a choice of the map's points; what is not in the catalogue is left out."""
    chosen = _chosen(model, found, most, include)
    rows, places = found.rows[chosen], np.round(found.places[chosen], 4)
    item_ids = tuple(str(item) for item in model.model.catalogue.item_ids[rows])
    return MapBody(
        version=model.version,
        catalogue_products=model.model.catalogue.size,
        laid_out=len(found.rows),
        column=found.column,
        groups=tuple(
            MapGroup(value=g.value, x=g.x, y=g.y, products=g.products) for g in found.groups
        ),
        item_ids=item_ids,
        x=tuple(places[:, 0].tolist()),
        y=tuple(places[:, 1].tolist()),
        titles=tuple(_title(model, row) for row in rows.tolist()),
        group=tuple(found.group[chosen].tolist()),
        tail=tuple(model.tail[rows].tolist()),
        popularity=tuple(np.round(model.model.popularity_bias[rows], 4).tolist()),
        own_item_ids=tuple(model.own_numbers(item_ids)),
    )


def tree_body(version: int, tree: ModelTree) -> TreeBody:
    """Return the tree as it is answered."""
    return TreeBody(
        version=version,
        nodes=tuple(TreeNode(**asdict(node)) for node in tree.nodes),
        rules=tree.rules,
        fidelity=TreeFidelity(**asdict(tree.fidelity)),
    )


def _chosen(model: Model, found: ProductMap, most: int, include: Sequence[str]) -> np.ndarray:
    """Return ascending numbers of the map's points: the head, an even draw of the rest, the named.

    An even draw by rank is the same for the same model, and shows the tail as it is.
    """
    count = len(found.rows)
    if count <= most:
        return np.arange(count)
    head = (most + 1) // 2
    rest = np.linspace(head, count - 1, most - head).round().astype(np.int64)
    asked = np.flatnonzero(np.isin(found.rows, model.model.catalogue.rows(list(include))))
    chosen: np.ndarray = np.unique(np.concatenate([np.arange(head), rest, asked]))
    return chosen


def _title(model: Model, row: int) -> str | None:
    for name in _TITLES:
        value = model.columns[name][row] if name in model.columns else None
        if value is not None:
            return str(value)
    return None
