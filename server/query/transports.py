"""How the typed client reaches a service: REST by httpx, or gRPC. Each asks once, never again."""

import json
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel

from common.errors import ConfigError, InputError, RunError, UnavailableError

#: Method -> how REST names it.
_PATHS: Final = {
    "recommend": "/v1/recommend",
    "batch": "/v1/recommend/batch",
    "similar": "/v1/similar",
    "explain": "/v1/explain",
    "models": "/v1/models",
    "privacy": "/v1/models/{version}/privacy",
}
#: Method -> how gRPC names it.
_CALLS: Final = {
    "recommend": ("Recommend", "RecommendRequest"),
    "batch": ("RecommendBatch", "BatchRequest"),
    "similar": ("Similar", "SimilarRequest"),
    "explain": ("Explain", "ExplainRequest"),
    "models": ("ListModels", "ListModelsRequest"),
    "privacy": ("Privacy", "PrivacyRequest"),
}
#: The service is there and can't answer now.
_LATER = (429, 503, 504)
_RENEW = "If this machine's clock is right, the service's operator has to renew its certificate"
_BY_NAME = "Ask it by a name that stands in its certificate"
_BY_AUTHORITY = (
    "Give the file of the authority that signed the service's certificate: --ca, or ca= in Python"
)
#: What OpenSSL, and gRPC, say of a certificate -> what to do.
_OF_CERTIFICATES = (
    ("certificate has expired", _RENEW),
    ("certificate is not yet valid", _RENEW),
    ("certificate is not valid for", _BY_NAME),
    ("Hostname Verification", _BY_NAME),
    ("CERTIFICATE_VERIFY_FAILED", _BY_AUTHORITY),
)


class Transport(Protocol):
    """Asks a service for one answer."""

    def ask(self, method: str, body: BaseModel | None, **place: int) -> dict[str, Any]:
        """Return the answer's document.

        Parameters
        ----------
        method
            ``recommend``, ``batch``, ``similar``, ``explain``, ``models`` or ``privacy``.
        place
            What the path holds.

        Raises
        ------
        InputError
            If the service refuses what was asked; the text is the service's.
        UnavailableError
            If it can't be reached, or can't answer now.
        RunError
            If it failed, or is no such service.
        """

    def close(self) -> None:
        """Close the connections."""


def transport(url: str, key: str | None, ca: Path | None, timeout: float) -> Transport:
    """Return what reaches a URL: ``http``, ``https``, ``grpc`` or ``grpcs``.

    Raises
    ------
    ConfigError
        If it is another kind of URL, the key can't be sent, or the certificate authority can't be
        read.
    """
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigError("the API key holds what no key does: give it as keys add showed it")
    scheme = ""
    with suppress(ValueError):  # Of brackets with no IPv6 address in them, or a port that is none.
        parts = urlsplit(url)
        if parts.hostname and parts.port != 0:
            scheme = parts.scheme
    if scheme in ("http", "https"):
        return Rest(url, key, ca, timeout)
    if scheme in ("grpc", "grpcs"):
        return Grpc(url, key, ca, timeout)
    raise ConfigError(
        f"{url!r} is no address of a service: write it like http://127.0.0.1:8080 or "
        "grpc://127.0.0.1:50051"
    )


class Rest:
    """REST; a connection is kept for the next request."""

    def __init__(self, url: str, key: str | None, ca: Path | None, timeout: float) -> None:
        verify: ssl.SSLContext | bool = True
        if ca is not None:
            try:
                verify = ssl.create_default_context(cadata=_read(ca).decode("ascii", "replace"))
            except ssl.SSLError as error:
                raise ConfigError(f"{ca} holds no certificate in PEM form") from error
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._client = httpx.Client(
                base_url=url, headers=headers, timeout=timeout, verify=verify
            )
        except httpx.InvalidURL as error:
            raise ConfigError(f"{url!r} is no address of a service: {error}") from error

    def ask(self, method: str, body: BaseModel | None, **place: int) -> dict[str, Any]:
        """Return the answer's document; see :meth:`Transport.ask`."""
        path = _PATHS[method].format(**place)
        try:
            if body is None:
                answer = self._client.get(path)
            else:
                text = body.model_dump_json(exclude_none=True)
                kind = {"Content-Type": "application/json"}
                answer = self._client.post(path, content=text, headers=kind)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise _unreachable(str(self._client.base_url), reason) from error
        if answer.is_success:
            try:
                found: dict[str, Any] = answer.json()
            except ValueError:
                found = {}
            return found
        text = _reason(answer)
        if answer.status_code in _LATER:
            raise UnavailableError(text)
        raise (InputError if answer.is_client_error else RunError)(text)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class Grpc:
    """gRPC; product columns come as text."""

    def __init__(self, url: str, key: str | None, ca: Path | None, timeout: float) -> None:
        import grpc  # Whoever asks over REST does without.

        from server.query.wire import fedtail_pb2, fedtail_pb2_grpc

        parts = urlsplit(url)
        self._url, self._wire, self._timeout = url, fedtail_pb2, timeout
        if parts.scheme == "grpcs":
            roots = None if ca is None else _read(ca)
            credentials = grpc.ssl_channel_credentials(root_certificates=roots)
            self._channel = grpc.secure_channel(parts.netloc, credentials)
        else:
            self._channel = grpc.insecure_channel(parts.netloc)
        self._stub: Any = fedtail_pb2_grpc.RecommenderStub(  # type: ignore[no-untyped-call]
            self._channel
        )
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()

    def ask(self, method: str, body: BaseModel | None, **place: int) -> dict[str, Any]:
        """Return the answer's document; see :meth:`Transport.ask`."""
        import grpc
        from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

        name, kind = _CALLS[method]
        fields = place if body is None else body.model_dump(mode="json", exclude_none=True)
        try:
            request = ParseDict(fields, getattr(self._wire, kind)())
        except ParseError as error:  # A version beyond 32 bits: there is none such.
            raise InputError(str(error)) from error
        call: Callable[..., Any] = getattr(self._stub, name)
        try:
            answer = call(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _failure(error, self._url) from error
        found: dict[str, Any] = MessageToDict(
            answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        if method == "privacy":
            words, text = found["statement"], found.pop("statement_json")
            found |= {"words": words, "statement": json.loads(text)}
        return found

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def _unreachable(url: str, reason: str) -> UnavailableError:
    for words, advice in _OF_CERTIFICATES:
        if words in reason:
            reason = f"{reason.rstrip('.')}. {advice}"
            break
    return UnavailableError(f"{url}: {reason}")


def _failure(error: Any, url: str) -> InputError | RunError | UnavailableError:  # noqa: ANN401 - grpc has no types
    """Return a failed call as the error that REST would have given."""
    name, text = error.code().name, error.details() or error.code().name
    if name in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
        return _unreachable(url, text)
    if name == "RESOURCE_EXHAUSTED":
        later = any(key == "retry-after" for key, _ in error.trailing_metadata() or ())
        return UnavailableError(text) if later else InputError(text)
    if name in ("INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED"):
        return InputError(text)
    return RunError(f"{url}: {text}")


def _read(ca: Path) -> bytes:
    try:
        found = ca.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the certificate authority {ca}: {error.strerror}"
        ) from error
    if not found:  # Taken for none, it would let any of the system's authorities speak.
        raise ConfigError(f"{ca} holds no certificate in PEM form")
    return found


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"the service answered with status {answer.status_code}"
