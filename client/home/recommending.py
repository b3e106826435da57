"""``client recommend``: what one customer of the shop would be shown, and why.

The customer's records are read at this moment, so that the last click counts. A customer who is
not known, or a guest, is answered from the history that is given, or by popularity.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.data.assortment import home_catalogue, own_numbers, shared_size
from client.data.mapping import ItemMapping
from client.home.adaptation import home_of, known_catalogue
from client.home.adapted_state import folder_digest, read_facts, read_state
from client.home.customers import Customer, read_customer
from client.home.models import current_model
from client.home.ready import SHOWN, Ready, cell
from client.home.shop import load_home_model, manifest_digest
from client.settings import ShopSettings
from client.shop_folder import ShopFolder
from common.errors import ArtifactError, ConfigError, InputError
from common.features import Catalogue
from common.scoring import re_rank
from common.tables.contract import BEHAVIOR_WEIGHTS

_MOST = 1000


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes
    ----------
    user_id
        A customer of the shop; "" for a guest.
    history
        Products that a guest is interested in.
    attributes
        What else is known of them, such as an age: it counts where there is no history, beside
        what the shop's customers table says.
    count
        How many products to list.
    tail_dial
        From 0, relevance alone, to 1, products rarely bought first.
    why
        Whether to take every score apart.
    plain
        Whether to leave the shop's own adaptation aside.
    """

    user_id: str = ""
    history: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    count: int = 20
    tail_dial: float = 0.0
    why: bool = False
    plain: bool = False

    def __post_init__(self) -> None:
        if bool(self.user_id) == bool(self.history) and (self.user_id or not self.attributes):
            raise ConfigError(
                "give either --user ID, or --history ITEM,ITEM or --attribute NAME=VALUE for a "
                "guest"
            )
        if not 1 <= self.count <= _MOST:
            raise ConfigError(f"a list holds 1 to {_MOST} products, not {self.count}")
        if not 0 <= self.tail_dial <= 1:
            raise ConfigError(f"the tail dial goes from 0 to 1, not {self.tail_dial:g}")


def attributes_of(texts: Sequence[str]) -> dict[str, str]:
    """Return attributes given as NAME=VALUE.

    Raises
    ------
    ConfigError
        If one is not of that form.
    """
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ConfigError(f"give an attribute as NAME=VALUE, such as age=35-44, not {text!r}")
        found[name] = value
    return found


def recommend(path: Path, settings: ShopSettings, request: Request) -> dict[str, Any]:
    """Answer one customer.

    Parameters
    ----------
    path
        Of the settings.

    Returns
    -------
    dict
        ``shop, user_id, known, history, model, recommendations`` (``rank, item_id, title,
        category, score``; where numbers are mapped ``own_item_ids``; ``outside_catalogue``: true of
        a product that the shop alone knows; with ``why`` also ``reasons``: ``kind, label, name,
        value``) and ``notes``.

    Raises
    ------
    InputError
        If there is no model, or what the shop fitted around it is not to be used any more.
    """
    ready = get_ready(path, settings, plain=request.plain)
    notes = list(ready.notes)
    named = dict.fromkeys(request.history, 1.0)
    customer = read_customer(settings, ready.catalogue, request.user_id, named)
    notes += customer.notes + _unknown(ready.catalogue, customer)
    history, person = ready.history(customer), {**customer.attributes, **request.attributes}
    notes += ready.about(history, person)
    scores = ready.scores(history, person)
    rows, found = ready.candidates(customer, scores, request.count, request.tail_dial)
    if request.tail_dial:
        dialled = re_rank(
            rows[None, :], found[None, :], request.count, request.tail_dial, ready.exposure
        )
        rows, found = dialled[0][0], dialled[1][0]
    listed = [(int(row), float(score)) for row, score in zip(rows, found, strict=True)]
    if len(listed) < request.count:
        notes.append(f"the shop stocks no more than {len(listed)} products that are new to them")
    return {
        "shop": settings.merchant_id,
        "user_id": request.user_id or None,
        "known": customer.known,
        "history": {"products": history.nnz, "outside_catalogue": customer.outside},
        "model": {
            "version": ready.came.manifest.version,
            "adapted": ready.home is not None,
            "fitted_at": ready.fitted_at,
        },
        "recommendations": [
            {
                "rank": rank,
                **_described(ready.catalogue, row, customer.mapping),
                "score": score,
                **({"reasons": ready.reasons(history, row, person)} if request.why else {}),
            }
            for rank, (row, score) in enumerate(listed, start=1)
        ],
        "notes": notes,
    }


def get_ready(path: Path, settings: ShopSettings, *, plain: bool = False) -> Ready:
    """Load what answers customers: the adaptation where there is one, else the global model.

    Raises
    ------
    ArtifactError
        If the adaptation is damaged, or its model, the catalogue, the settings or the code are no
        longer those that it was fitted with.
    """
    stored = None if plain else read_facts(ShopFolder.of(path).adapted)
    if stored is None:
        catalogue = home_catalogue(settings)
        came = load_home_model(current_model(settings.models), catalogue)
        why = "as asked" if plain else "the shop has not adapted it (python -m client adapt)"
        return Ready(catalogue, came, None, None, (f"the global model as it came: {why}",))
    folder, facts = stored
    again = "fit it again with python -m client adapt"
    for what, fitted, present in (
        ("shop", facts.merchant_id, settings.merchant_id),
        ("catalogue", facts.catalogue_digest, folder_digest(settings.catalogue)),
        ("global model", facts.model_digest, manifest_digest(facts.model_folder)),
        ("home.mixed", facts.settings, settings.home.mixed),
        (
            "behavior_weights",
            facts.behavior_weights,
            settings.behavior_weights or dict(BEHAVIOR_WEIGHTS),
        ),
        ("rating_scale", facts.rating_scale, settings.rating_scale),
        ("home.own_products", facts.own_products, settings.home.own_products),
    ):
        if fitted != present:
            raise ArtifactError(
                f"{folder} was fitted with another {what} than there is now: {again}"
            )
    arrays = read_state(folder, facts)
    catalogue = known_catalogue(settings.catalogue, facts, arrays)
    came = load_home_model(facts.model_folder, catalogue)
    notes = []
    try:
        newest = manifest_digest(current_model(settings.models))
    except ConfigError:
        newest = facts.model_digest
    if newest != facts.model_digest:
        notes.append(f"another model has come home since the shop adapted to this one: {again}")
    home = home_of(arrays, facts, came.model)
    return Ready(catalogue, came, home, facts.fitted_at, tuple(notes))


def _unknown(catalogue: Catalogue, customer: Customer) -> tuple[str, ...]:
    """Return a note of what a guest named in vain.

    Raises
    ------
    InputError
        If it was all in vain.
    """
    if not customer.unknown:
        return ()
    missing, mapping = ", ".join(map(repr, customer.unknown[:5])), customer.mapping
    if not customer.named.nnz:
        example = catalogue.item_ids[0] if mapping is None else next(iter(mapping.own), "none")
        raise InputError(
            f"the catalogue holds none of the products {missing}: give the shop's numbers, such "
            f"as {example}"
        )
    return (f"the catalogue does not hold {missing}",)


def _described(catalogue: Catalogue, row: int, mapping: ItemMapping | None) -> dict[str, Any]:
    item_id = str(catalogue.item_ids[row])
    found: dict[str, Any] = {"item_id": item_id}
    if mapping is not None:
        (own,) = own_numbers(catalogue, [row], mapping)
        found["own_item_ids"] = list(own)
    if row >= shared_size(catalogue):
        found["outside_catalogue"] = True
    return found | {
        column: cell(catalogue, row, column) for column in SHOWN if column in catalogue.products
    }
