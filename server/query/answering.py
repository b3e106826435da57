"""One place where a request of either interface becomes an answer, a status and a log line.

What a request holds is never logged, and no error shows more than our own words.
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import BaseModel, ValidationError

from common.artifact import Manifest
from common.errors import (
    ArtifactError,
    ConfigError,
    FedtailError,
    InputError,
    UnavailableError,
)
from common.statement import any_statement
from server.query import answers
from server.query.answers import (
    BatchResponse,
    Explained,
    Model,
    ModelInfo,
    ModelList,
    RecommendResponse,
)
from server.query.requests import (
    BatchRequest,
    ExplainRequest,
    RecommendRequest,
    SimilarRequest,
    invalid_words,
)
from server.query.security import Keys, RateLimit

logger = logging.getLogger(__name__)
Body = TypeVar("Body", bound=BaseModel)
Found = TypeVar("Found")

_MOST = sys.float_info.max
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Status(Enum):
    """How a request ended: HTTP's code, and gRPC's name for it."""

    OK = (200, "OK")
    INVALID = (422, "INVALID_ARGUMENT")
    NO_KEY = (401, "UNAUTHENTICATED")
    TOO_LARGE = (413, "RESOURCE_EXHAUSTED")
    TOO_MANY = (429, "RESOURCE_EXHAUSTED")
    UNKNOWN = (404, "NOT_FOUND")
    NO_MODEL = (503, "UNAVAILABLE")
    TOO_LATE = (504, "DEADLINE_EXCEEDED")
    FAILED = (500, "INTERNAL")

    @property
    def http(self) -> int:
        """HTTP's status code."""
        return self.value[0]

    @property
    def grpc(self) -> str:
        """The name of gRPC's status code."""
        return self.value[1]


class Facts(Protocol):
    """What is known of a version that could be served."""

    @property
    def version(self) -> int:
        """Its number."""

    @property
    def published_at(self) -> str:
        """When it was published, or came home; ISO 8601."""

    @property
    def manifest(self) -> Manifest:
        """The model's own manifest."""

    @property
    def evaluation(self) -> Mapping[str, Any] | None:
        """Figures that were released with it."""

    @property
    def forced(self) -> tuple[str, ...]:
        """Why it could not be published without force."""


class Host(Protocol):
    """Holds the model that answers now, and follows where newer ones come from.

    A request takes the model once and keeps it to its end.
    """

    @property
    def ready(self) -> bool:
        """Whether there is a model to answer from."""

    @property
    def switches(self) -> int:
        """How often another model was taken."""

    @property
    def refusals(self) -> int:
        """How often one was refused."""

    def current(self) -> Model:
        """Return the model that answers now."""

    def records(self) -> Sequence[Facts]:
        """Return what is known of all versions, the newest first."""

    def pinned(self) -> int | None:
        """Return the version that was chosen to be served; None: whichever is newest."""

    def watch(self, every_seconds: float) -> None:
        """Look for another model again and again, until :meth:`close`."""

    def close(self) -> None:
        """Stop watching."""


class RefusedError(Exception):
    """A request that gets no answer; the text may be shown to whoever asked."""

    def __init__(self, status: Status, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.status, self.retry_after = status, retry_after


class Metrics:
    """What Prometheus collects: how many, how long, which version; never who or what."""

    def __init__(self, host: Host) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fedtail_requests_total",
            "Requests by interface, method and status.",
            ("interface", "method", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "fedtail_request_seconds",
            "Seconds from a checked request to its answer.",
            ("interface", "method"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        for name, words, read in (
            ("fedtail_model_version", "The version served.", lambda: _version(host)),
            (
                "fedtail_model_switches",
                "How often another version was taken.",
                lambda: host.switches,
            ),
            ("fedtail_model_refusals", "How often one was refused.", lambda: host.refusals),
        ):
            Gauge(name, words, registry=self.registry).set_function(read)


@dataclass(frozen=True)
class Service:
    """The methods that both interfaces offer.

    Attributes
    ----------
    keys
        Who may ask; None: everybody.
    """

    host: Host
    metrics: Metrics
    rate: RateLimit
    keys: Keys | None = None

    def admit(self, key: str | None, address: str, cost: float = 1.0) -> str:
        """Return the caller's name, or refuse.

        Raises
        ------
        RefusedError
            Without a key that we know, or beyond the caller's rate.
        """
        caller = address
        if self.keys is not None:
            name = self.name_of(key) if key else None
            if name is None:
                # What has no key is limited too: guessing costs us a lookup each.
                self._take(f"address {address}", 1.0)
                raise RefusedError(
                    Status.NO_KEY, "give one of the service's keys as: authorization: Bearer KEY"
                )
            caller = f"key {name}"
        self._take(caller, cost)
        return caller

    def name_of(self, key: str) -> str | None:
        """Return whose key it is; None if it is not one of ours.

        Raises
        ------
        RefusedError
            If the file of keys can't be read. What is wrong with it is for our own log: whoever
            asks has shown no key yet.
        """
        if self.keys is None:
            return None
        try:
            return self.keys.name_of(key)
        except ConfigError as error:
            logger.error("keys=unreadable reason=%s", error)
            raise RefusedError(Status.FAILED, "the service failed: its log tells more") from None

    def _take(self, caller: str, cost: float) -> None:
        if wait := self.rate.wait(caller, cost):
            raise RefusedError(
                Status.TOO_MANY, f"too many requests: try again in {wait:.1f} s", wait
            )

    def run(self, interface: str, method: str, work: Callable[[], Found]) -> Found:
        """Do the work of one request: measure it, log its end, and let out our own words only.

        Raises
        ------
        RefusedError
            Whatever went wrong.
        """
        started = time.perf_counter()
        status = Status.FAILED
        try:
            found = work()
            status = Status.OK
            return found
        except RefusedError as error:
            status = error.status
            raise
        except ValidationError as error:
            status = Status.INVALID
            raise RefusedError(status, invalid_words(error.errors())) from None
        except ArtifactError as error:
            # Of what the service keeps, not of what was asked: its words are for our own log.
            logger.error("request=unreadable method=%s reason=%s", method, error)
            raise RefusedError(status, "the service failed: its log tells more") from None
        except InputError as error:
            status = Status.INVALID
            raise RefusedError(status, str(error)) from None
        except UnavailableError as error:
            status = Status.NO_MODEL
            logger.error("request=unavailable method=%s", method)
            raise RefusedError(status, str(error)) from None
        except FedtailError:
            logger.exception("request=failed method=%s", method)
            raise RefusedError(status, "the service failed: its log tells more") from None
        except Exception as error:  # noqa: BLE001 - nothing of the request may get out
            # The text of an error may hold what was asked for: only its kind is logged.
            logger.error("request=failed method=%s error=%s", method, type(error).__name__)
            raise RefusedError(status, "the service failed: its log tells more") from None
        finally:
            seconds = time.perf_counter() - started
            self.metrics.requests.labels(interface, method, status.name.lower()).inc()
            self.metrics.seconds.labels(interface, method).observe(seconds)
            logger.info(
                "interface=%s method=%s status=%s ms=%.1f",
                interface,
                method,
                status.name.lower(),
                seconds * 1000,
            )

    def recommend(self, body: RecommendRequest) -> RecommendResponse:
        """Answer one customer."""
        return answers.recommend(self.model(), body)

    def batch(self, body: BatchRequest) -> BatchResponse:
        """Answer several customers by one and the same version."""
        model = self.model()
        found = tuple(answers.recommend(model, one) for one in body.requests)
        return BatchResponse(version=model.version, responses=found)

    def similar(self, body: SimilarRequest) -> RecommendResponse:
        """Return what goes with one product."""
        return answers.similar(self.model(), body)

    def explain(self, body: ExplainRequest) -> Explained:
        """Take one score apart."""
        return answers.explain(self.model(), body)

    def models(self) -> ModelList:
        """Return all versions, the newest first."""
        served, pinned = _version(self.host), self.host.pinned()
        return ModelList(models=tuple(_info(r, served, pinned) for r in self.host.records()))

    def privacy(self, version: int) -> dict[str, Any]:
        """Return a version's privacy statement with ``words`` for people; 0: the served one's."""
        number = version or self.model().version
        for record in self.host.records():
            if record.version == number:
                found = record.manifest.privacy or {"private": False}
                return {
                    "version": number,
                    "statement": found,
                    "words": any_statement(found),
                    "forced": list(record.forced),
                }
        raise RefusedError(Status.UNKNOWN, f"there is no version {number}")

    def model(self) -> Model:
        """Return the model that answers now; raises RefusedError if there is none."""
        if not self.host.ready:
            raise RefusedError(Status.NO_MODEL, "no model can be served yet")
        return self.host.current()


def _version(host: Host) -> int:
    return host.current().version if host.ready else 0


def _info(record: Facts, served: int, pinned: int | None) -> ModelInfo:
    privacy = record.manifest.privacy or {}
    return ModelInfo(
        version=record.version,
        name=record.manifest.version,
        served=record.version == served,
        published_at=record.published_at,
        private=privacy.get("private") is True,
        epsilon=_number(privacy.get("epsilon")),
        delta=_number(privacy.get("delta")),
        unit=_text(privacy.get("unit")),
        trust=_text(privacy.get("trust")),
        server_round=record.manifest.server_round,
        pinned=record.version == pinned,
        catalogue_fingerprint=record.manifest.catalogue_fingerprint,
        forced=record.forced,
    )


def _number(value: object) -> float | None:
    """Return a number of a statement; None of what is none: force publishes that, too."""
    # Not of math.isfinite, which fails of whole numbers that no float holds.
    if isinstance(value, int | float) and -_MOST <= value <= _MOST:
        return float(value)
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
