"""A typed client of the REST interface: the requests and answers are the service's own types.

>>> with Client("http://127.0.0.1:8080", key=os.environ["FEDTAIL_KEY"]) as client:
...     for item in client.recommend({"p0003": 1.0}, k=5).items:
...         print(item.rank, item.item_id, item.score)
"""

import os
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from common.errors import ConfigError, InputError, RunError
from server.query.requests import (
    BatchRequest,
    BatchResponse,
    ExplainRequest,
    FilterBody,
    HistoryProduct,
    ModelList,
    Reasons,
    RecommendRequest,
    RecommendResponse,
    SimilarRequest,
    invalid_words,
)

Answer = TypeVar("Answer", bound=BaseModel)
_BAD_INPUT = range(400, 429)


class Client:
    """Asks one service; use it as a context manager, from any number of threads.

    Parameters
    ----------
    url
        Such as ``https://recommender.example``.
    key
        One of the service's API keys, where it wants one.
    ca
        The certificate authority that signed the service's certificate, PEM; default: those that
        the system trusts.
    timeout
        Seconds that one answer may take.

    Raises
    ------
    InputError
        By every method, if the service refuses what was asked; the text is the service's.
    RunError
        By every method, if the service can't be reached or failed.
    """

    def __init__(
        self, url: str, *, key: str | None = None, ca: Path | None = None, timeout: float = 10.0
    ) -> None:
        verify: ssl.SSLContext | bool = True
        if ca is not None:
            try:
                verify = ssl.create_default_context(cafile=str(ca))
            except OSError as error:
                raise ConfigError(f"cannot read the certificate authority {ca}: {error}") from error
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout, verify=verify)

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._client.close()

    def recommend(
        self,
        history: Mapping[str, float] | None = None,
        *,
        attributes: Mapping[str, str] | None = None,
        k: int = 20,
        tail_dial: float = 0.0,
        filters: FilterBody | None = None,
        reasons: bool = False,
    ) -> RecommendResponse:
        """Return the best products for one customer; ``history`` is item_id -> weight."""
        body = _checked(
            RecommendRequest,
            history=_products(history),
            attributes=dict(attributes or {}),
            k=k,
            tail_dial=tail_dial,
            filters=filters or FilterBody(),
            reasons=reasons,
        )
        return self._post("/v1/recommend", body, RecommendResponse)

    def recommend_batch(self, requests: Sequence[RecommendRequest]) -> BatchResponse:
        """Return one list for each request, all by one version."""
        body = _checked(BatchRequest, requests=tuple(requests))
        return self._post("/v1/recommend/batch", body, BatchResponse)

    def similar(
        self, item_id: str, *, k: int = 20, filters: FilterBody | None = None
    ) -> RecommendResponse:
        """Return what goes with one product."""
        body = _checked(SimilarRequest, item_id=item_id, k=k, filters=filters or FilterBody())
        return self._post("/v1/similar", body, RecommendResponse)

    def explain(
        self,
        item_id: str,
        history: Mapping[str, float] | None = None,
        *,
        attributes: Mapping[str, str] | None = None,
    ) -> Reasons:
        """Return what the score of one product is the sum of."""
        body = _checked(
            ExplainRequest,
            item_id=item_id,
            history=_products(history),
            attributes=dict(attributes or {}),
        )
        return self._post("/v1/explain", body, Reasons)

    def models(self) -> ModelList:
        """Return all versions of the registry, the newest first."""
        return self._ask("GET", "/v1/models", None, ModelList)

    def _post(self, path: str, body: BaseModel, kind: type[Answer]) -> Answer:
        return self._ask("POST", path, body.model_dump_json(exclude_none=True), kind)

    def _ask(self, method: str, path: str, body: str | None, kind: type[Answer]) -> Answer:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            answer = self._client.request(method, path, content=body, headers=headers)
            if answer.is_success:
                return kind.model_validate_json(answer.content)
        except httpx.HTTPError as error:
            raise RunError(f"{self._client.base_url}: {error or type(error).__name__}") from error
        except ValidationError as error:
            raise RunError(
                f"{self._client.base_url} is no fedtail service of this version"
            ) from error
        text = _error(answer)
        if answer.status_code in _BAD_INPUT:
            raise InputError(text)
        raise RunError(text)


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


def _checked(kind: type[Answer], **fields: Any) -> Answer:  # noqa: ANN401
    """Return a request that the service will not refuse for its form."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise InputError(invalid_words(error.errors())) from error


def _products(history: Mapping[str, float] | None) -> tuple[HistoryProduct, ...]:
    try:
        return tuple(HistoryProduct(item_id=i, weight=w) for i, w in (history or {}).items())
    except ValidationError as error:
        raise InputError(f"history: {invalid_words(error.errors())}") from error


def _error(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"the service answered with status {answer.status_code}"
