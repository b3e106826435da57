"""What a shop's own service answers: the adapted model, and each customer as they are now.

Nothing is kept from one request to the next but the model: a purchase that the shop's data hold
counts in the answer to the next request.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from client.data.assortment import own_numbers, shared_size
from client.data.source import shop_mapping
from client.home.customers import Customer, read_customer, rows_of
from client.home.ready import Ready
from client.settings import ShopSettings
from common.errors import InputError, UnavailableError
from common.explanation import Explanation
from common.model import GlobalModel
from common.queries.asking import Answer, Query, Ranking, TakenApart, public_columns
from common.queries.filters import Filters, Table
from common.queries.words import Words

# What is wrong with the data, and what the machine says: a table that is replaced just now, rights.
_UNREADABLE = (InputError, OSError)


@dataclass(frozen=True)
class HomeAnswers:
    """A shop's model with all that its answers need.

    Products go by the shop's own numbers in requests and by the catalogue's in answers.

    Attributes
    ----------
    version
        Number of the global model among those that came home.
    """

    version: int
    ready: Ready
    settings: ShopSettings

    @classmethod
    def of(cls, version: int, ready: Ready, settings: ShopSettings) -> "HomeAnswers":
        """Make a model ready to answer; what all requests share is computed here."""
        made = cls(version, ready, settings)
        for name in ("table", "columns", "words", "tail", "exposure", "rows_by_id"):
            getattr(made, name)
        # One answer, so that the model has computed what it keeps, and code is loaded.
        # A tower that is not linear answers, and has no reasons.
        with suppress(UnavailableError, InputError):
            query = Query({str(ready.catalogue.item_ids[0]): 1.0}, k=1, reasons=True)
            list(made.recommend(query).reasons)
        return made

    @property
    def model(self) -> GlobalModel:
        """The global model that came home."""
        return self.ready.came.model

    @property
    def adapted_at(self) -> str | None:
        """When the shop fitted it to itself; None where it is used as it came."""
        return self.ready.fitted_at

    @cached_property
    def table(self) -> Table:
        """What filters ask of the products; what the shop stocks is looked up for each answer."""
        everything = np.arange(self.ready.catalogue.size)
        return Table.of(self.ready.catalogue.products, {self.settings.merchant_id: everything})

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        """Column -> (n,) Python values of the products, None where unknown."""
        return public_columns(self.ready.catalogue.products)

    @cached_property
    def words(self) -> Words:
        """What products are found by."""
        return Words.of(self.ready.catalogue, self.columns, self.model.popularity_bias)

    @property
    def tail(self) -> np.ndarray:
        """(n,) bool: all but the fifth of the products with the largest released popularity."""
        return self.ready.tail

    @cached_property
    def exposure(self) -> np.ndarray:
        """(n,) how much each product is bought, here and everywhere."""
        return self.ready.exposure

    @cached_property
    def rows_by_id(self) -> dict[str, int]:
        """The catalogue's item_id -> row."""
        return {str(item): row for row, item in enumerate(self.ready.catalogue.item_ids)}

    def recommend(self, query: Query) -> Answer:
        """Return the best products that the shop stocks for one customer, or for a guest.

        Raises
        ------
        InputError
            If a filter or the dial asks for what there is not.
        UnavailableError
            If the shop's data can't be read now.
        """
        ready = self.ready
        customer = self._customer(query.user_id, query.history)
        query = replace(query, attributes={**customer.attributes, **query.attributes})
        history = ready.history(customer)
        notes = ready.about(history, query.attributes)
        return self._answer(customer, query, ready.scores(history, query.attributes), notes)

    def similar(self, item_id: str, k: int, filters: Filters | None = None) -> Answer:
        """Return what has most in common with one product.

        The score is that of a customer with this product and nothing else, less what every
        customer's has; see :meth:`client.home.ready.Ready.alike`.

        Raises
        ------
        InputError
            If the catalogue does not hold it.
        UnavailableError
            If the shop's data can't be read now.
        """
        customer = self._customer(None, {item_id: 1.0})
        if customer.unknown:
            raise _no_product(item_id)
        query = Query(k=k, filters=filters or Filters())
        return self._answer(customer, query, self.ready.alike(self.ready.history(customer)))

    def explain(
        self,
        item_id: str,
        history: Mapping[str, float],
        attributes: Mapping[str, str],
        user_id: str | None = None,
    ) -> Explanation:
        """Take one score apart; the parts add up to it.

        Raises
        ------
        InputError
            If the catalogue does not hold the product, or a tower is not linear.
        UnavailableError
            If the shop's data can't be read now.
        """
        customer = self._customer(user_id, history)
        row = int(rows_of(self.ready.catalogue, [item_id], customer.mapping)[0])
        if row < 0:
            raise _no_product(item_id)
        known = {**customer.attributes, **attributes}
        found = self.ready.explained(self.ready.history(customer), row, known)
        return replace(found, unknown=customer.unknown)

    def product(self, item_id: str) -> dict[str, Any]:
        """Return the public columns of a product by its number in the catalogue."""
        row = self.rows_by_id[item_id]
        return {name: values[row] for name, values in self.columns.items()}

    def own_numbers(self, item_ids: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the shop's own numbers of each product; none where they are the catalogue's.

        Raises
        ------
        UnavailableError
            If the shop's data can't be read now.
        """
        try:
            mapping = shop_mapping(self.settings)
        except _UNREADABLE as error:
            raise _unreadable() from error
        if mapping is None:
            return [()] * len(item_ids)
        rows = [self.rows_by_id[item] for item in item_ids]
        return own_numbers(self.ready.catalogue, rows, mapping)

    def _customer(self, user_id: str | None, history: Mapping[str, float]) -> Customer:
        try:
            return read_customer(self.settings, self.ready.catalogue, user_id or "", history)
        except _UNREADABLE as error:
            raise _unreadable() from error

    def _answer(
        self,
        customer: Customer,
        query: Query,
        scores: np.ndarray,
        notes: tuple[str, ...] = (),
    ) -> Answer:
        """Return the best of (1, n) scores."""
        ready = self.ready
        if query.filters.exclude:
            excluded = rows_of(ready.catalogue, list(query.filters.exclude), customer.mapping)
            scores[0, excluded[excluded >= 0]] = -np.inf
        self.table.hide(scores[0], replace(query.filters, exclude=frozenset()), self.rows_by_id)
        rows, scored = ready.candidates(customer, scores, query.k, query.tail_dial)
        ranking = Ranking.of(rows, scored, query, self.exposure, self.tail)
        names = ready.catalogue.item_ids
        own: tuple[tuple[str, ...], ...] = ()
        if (mapping := customer.mapping) is not None:
            own = tuple(own_numbers(ready.catalogue, ranking.rows, mapping))
        reasons: Sequence[Explanation] = ()
        if query.reasons:
            history = ready.history(customer)

            def explained(row: int) -> Explanation:
                return ready.explained(history, row, query.attributes)

            reasons = TakenApart(ranking.rows, explained)
        return ranking.answer(
            names,
            customer.unknown,
            reasons=reasons,
            own_item_ids=own,
            outside_catalogue=tuple((ranking.rows >= shared_size(ready.catalogue)).tolist()),
            known_customer=customer.known if query.user_id else None,
            notes=(*ready.notes, *customer.notes, *notes),
        )


def _unreadable() -> UnavailableError:
    # What exactly is wrong may hold what is in the data.
    return UnavailableError("the shop's data can't be read now; python -m client check says why")


def _no_product(item_id: str) -> InputError:
    return InputError(f"no product of the catalogue is called {item_id!r} at this shop")
