"""REST: wiring of the service's methods to paths, and what every answer carries."""

from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from server.query.admitting import Bearer, work
from server.query.answering import RefusedError, Service, Status
from server.query.answers import (
    BatchResponse,
    Explained,
    ModelList,
    Problem,
    RecommendResponse,
)
from server.query.before_body import BodyLimit, HeadAsGet, KeyFirst, refusal
from server.query.browsing import About, browse
from server.query.page import add_page
from server.query.requests import (
    BatchRequest,
    ExplainRequest,
    RecommendRequest,
    SimilarRequest,
    invalid_words,
)
from server.query.viewing import view

#: Ten thousand products of history, each as long as an id may be, fit; ten megabytes do not.
MAX_BODY = 4 * 2**20

_HEALTH = "/healthz"
_NEED_NO_MODEL = ("/v1/models", "/v1/about", "/v1/evaluations", "/v1/report")
#: FastAPI's code for a body that it fails to parse.
_UNREADABLE = 400


class PrivacyBody(BaseModel):
    """A version's privacy statement."""

    version: int
    statement: dict[str, object]
    words: str
    forced: list[str]


def rest_app(service: Service, about: About | None = None) -> FastAPI:
    """Return the web application over a service.

    Parameters
    ----------
    about
        Whose service it is; default: a federation's, with no report to show.
    """
    app = FastAPI(
        title="fedtail",
        version="1",
        description="Product recommendations from the federation's global model. A request "
        "carries the history; nothing of it is stored or logged. Whoever runs this service could "
        "see it all the same: to keep a history inside a shop, ask at the shop.",
        docs_url=None,
        redoc_url=None,
        # It would name the service by plain http behind a proxy that ends TLS, and a key follows.
        redirect_slashes=False,
        responses={
            status.http: {"model": Problem, "description": words}
            for status, words in (
                (Status.INVALID, "A field is not what it should be; the text names it."),
                (Status.NO_KEY, "No key, or not one of ours."),
                (Status.TOO_LARGE, "The body is too large."),
                (Status.TOO_MANY, "Too many requests; Retry-After tells when to come back."),
                (Status.FAILED, "The service failed; its own log tells more."),
                (Status.NO_MODEL, "No model can be served yet."),
            )
        },
    )
    _refusals(app)

    _asking(app, service)
    _reading(app, service)
    browse(app, service, about or About())
    add_page(app)
    view(app, service)
    app.add_middleware(BodyLimit, most=MAX_BODY)
    app.add_middleware(KeyFirst, service=service)
    app.add_middleware(HeadAsGet)
    _as_given(app, keys=service.keys is not None)
    return app


def _as_given(app: FastAPI, *, keys: bool) -> None:
    """Let the OpenAPI document name what is given alone: not each path gives what most of them do.

    ``keys``: whether the service asks for any.
    """
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        if not keys:
            document.get("components", {}).pop("securitySchemes", None)
        for path, operations in document["paths"].items():
            for operation in operations.values():
                told = operation["responses"]
                if path == _HEALTH:
                    operation["responses"] = {code: told[code] for code in ("200", "503")}
                if path in _NEED_NO_MODEL:
                    told.pop(str(Status.NO_MODEL.http), None)
                if not keys:
                    operation.pop("security", None)
                    told.pop(str(Status.NO_KEY.http), None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _asking(app: FastAPI, service: Service) -> None:
    admitted = partial(work, service)

    @app.post("/v1/recommend")
    def recommend(body: RecommendRequest, request: Request, key: Bearer) -> RecommendResponse:
        """Return the best products for one customer."""
        return admitted("recommend", request, key, lambda: service.recommend(body))

    @app.post("/v1/recommend/batch")
    def batch(body: BatchRequest, request: Request, key: Bearer) -> BatchResponse:
        """Return a list for each of several customers, all by one version."""
        return admitted(
            "batch", request, key, lambda: service.batch(body), cost=float(len(body.requests))
        )

    @app.post("/v1/similar")
    def similar(body: SimilarRequest, request: Request, key: Bearer) -> RecommendResponse:
        """Return what goes with one product."""
        return admitted("similar", request, key, lambda: service.similar(body))

    @app.post("/v1/explain")
    def explain(body: ExplainRequest, request: Request, key: Bearer) -> Explained:
        """Return what one score is the sum of."""
        return admitted("explain", request, key, lambda: service.explain(body))


def _reading(app: FastAPI, service: Service) -> None:
    admitted = partial(work, service)

    @app.get("/v1/models")
    def models(request: Request, key: Bearer) -> ModelList:
        """Return all versions, the newest first."""
        return admitted("models", request, key, service.models)

    @app.get("/v1/models/{version}/privacy", responses={404: {"model": Problem}})
    def privacy(version: int, request: Request, key: Bearer) -> PrivacyBody:
        """Return the privacy statement of a version; 0: of the one that is served."""
        return admitted(
            "privacy", request, key, lambda: PrivacyBody.model_validate(service.privacy(version))
        )

    away = {"description": "No model can be served yet.", "content": {"text/plain": {}}}

    @app.get(
        _HEALTH,
        response_class=PlainTextResponse,
        responses={Status.NO_MODEL.http: away},
    )
    def health() -> PlainTextResponse:
        """Say whether there is a model to answer from."""
        if not service.host.ready:
            return PlainTextResponse("no model can be served yet\n", Status.NO_MODEL.http)
        return PlainTextResponse("ok\n")

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        """Return what Prometheus collects."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _refusals(app: FastAPI) -> None:
    """Answer every failure with one JSON object and nothing of what was sent."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": invalid_words(error.errors())}, Status.INVALID.http)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == _UNREADABLE:
            text = "the body cannot be read: send JSON in UTF-8, not too deeply nested"
            return JSONResponse({"error": text}, Status.INVALID.http)
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
