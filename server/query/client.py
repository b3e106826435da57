"""A typed client of the service, over REST or gRPC: requests and answers are the service's types.

>>> with Client("http://127.0.0.1:8080", key=os.environ["FEDTAIL_KEY"]) as client:
...     for item in client.recommend({"1029743": 1.0}, k=5).items:
...         print(item.rank, item.item_id, item.score)
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError

from common.errors import InputError, RunError
from server.query.answers import (
    BatchResponse,
    Explained,
    ModelInfo,
    ModelList,
    RecommendResponse,
)
from server.query.requests import (
    BatchRequest,
    ExplainRequest,
    FilterBody,
    HistoryProduct,
    RecommendRequest,
    SimilarRequest,
    invalid_words,
)
from server.query.transports import transport

Answer = TypeVar("Answer", bound=BaseModel)
History = Mapping[str, float] | Sequence[str]


class PrivacyStatement(BaseModel):
    """What a version promises: as a document, and in words."""

    version: int
    statement: dict[str, Any]
    words: str


class Client:
    """Asks one service; use it as a context manager, from any number of threads.

    It asks once and never again by itself: whether a second try is worth it is the caller's to say.

    Parameters
    ----------
    url
        ``http://`` or ``https://`` for REST, ``grpc://`` or ``grpcs://`` (with TLS) for gRPC.
    key
        One of the service's API keys, where it wants one.
    ca
        The certificate authority that signed the service's certificate, PEM; default: those that
        the system trusts.
    timeout
        Seconds that one answer may take.

    Raises
    ------
    ConfigError
        If the address or the certificate authority is of no use.
    InputError
        By every method, if the service refuses what was asked; the text is the service's.
    UnavailableError
        By every method, if the service can't be reached or can't answer now; later it may.
    RunError
        By every method, if the service failed, or is no such service.
    """

    def __init__(
        self, url: str, *, key: str | None = None, ca: Path | None = None, timeout: float = 10.0
    ) -> None:
        self._url = url
        self._transport = transport(url, key, ca, timeout)

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def recommend(
        self,
        history: History | None = None,
        *,
        user_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
        k: int = 20,
        tail_dial: float = 0.0,
        filters: FilterBody | None = None,
        reasons: bool = False,
    ) -> RecommendResponse:
        """Return the best products for one customer.

        Parameters
        ----------
        history
            item_id -> weight; a purchase is 1. A list of item_ids: each weighs 1.
        user_id
            A customer of the shop; only a shop's own service knows any.
        """
        body = checked(
            RecommendRequest,
            history=_products(history),
            user_id=user_id,
            attributes=attributes or {},
            k=k,
            tail_dial=tail_dial,
            filters=filters or FilterBody(),
            reasons=reasons,
        )
        return self._ask("recommend", body, RecommendResponse)

    def recommend_batch(self, requests: Sequence[RecommendRequest]) -> BatchResponse:
        """Return one list for each request, all by one version."""
        return self._ask("batch", checked(BatchRequest, requests=tuple(requests)), BatchResponse)

    def similar(
        self, item_id: str, *, k: int = 20, filters: FilterBody | None = None
    ) -> RecommendResponse:
        """Return what goes with one product."""
        body = checked(SimilarRequest, item_id=item_id, k=k, filters=filters or FilterBody())
        return self._ask("similar", body, RecommendResponse)

    def explain(
        self,
        item_id: str,
        history: History | None = None,
        *,
        user_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Explained:
        """Return what the score of one product is the sum of; see :meth:`recommend`."""
        body = checked(
            ExplainRequest,
            item_id=item_id,
            history=_products(history),
            user_id=user_id,
            attributes=attributes or {},
        )
        return self._ask("explain", body, Explained)

    def models(self) -> ModelList:
        """Return all versions that could be served, the newest first."""
        found = self._transport.ask("models", None)
        none = dict.fromkeys(ModelInfo.model_fields)
        try:
            # gRPC leaves out what is not known.
            listed = [none | one for one in found["models"]]
        except (KeyError, TypeError) as error:
            raise self._other() from error
        return self._read({"models": listed}, ModelList)

    def privacy(self, version: int = 0) -> PrivacyStatement:
        """Return a version's privacy statement; 0: the served one's."""
        found = self._transport.ask("privacy", None, version=version)
        return self._read(found, PrivacyStatement)

    def _ask(self, method: str, body: BaseModel, kind: type[Answer]) -> Answer:
        return self._read(self._transport.ask(method, body), kind)

    def _read(self, found: dict[str, Any], kind: type[Answer]) -> Answer:
        try:
            return kind.model_validate(found)
        except ValidationError as error:
            raise self._other() from error

    def _other(self) -> RunError:
        return RunError(f"{self._url} is no fedtail service of this version")


def key_from(variable: str) -> str | None:
    """Return the key in an environment variable, or None where it is not set."""
    return os.environ.get(variable) or None


def pairs(texts: Sequence[str], default: str) -> list[tuple[str, str]]:
    """Return NAME=VALUE texts taken apart; a text without ``=`` has the default value."""
    split = [text.rpartition("=") if "=" in text else (text, "=", default) for text in texts]
    return [(name, value) for name, _, value in split]


def as_weight(item_id: str, text: str) -> float:
    """Return a weight, or raise InputError naming the product."""
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"the weight of {item_id!r} is {text!r}, which is no number") from error


def checked(kind: type[Answer], **fields: Any) -> Answer:  # noqa: ANN401
    """Return a request that the service will not refuse for its form.

    Raises
    ------
    InputError
        Naming what is wrong.
    """
    try:
        return kind(**fields)
    except ValidationError as error:
        raise InputError(invalid_words(error.errors())) from error


def _products(history: History | None) -> tuple[HistoryProduct, ...]:
    if isinstance(history, str) or not isinstance(history, Mapping | Sequence | None):
        raise InputError('history: give {"item_id": weight}, or a list of item_ids')
    try:
        if isinstance(history, Mapping):
            return tuple(HistoryProduct(item_id=i, weight=w) for i, w in history.items())
        return tuple(HistoryProduct(item_id=item) for item in history or ())
    except ValidationError as error:
        raise InputError(f"history: {invalid_words(error.errors())}") from error
