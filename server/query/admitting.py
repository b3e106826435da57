"""What every request over REST goes through before it is answered: key, rate, measure, log."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server.query.answering import RefusedError, Service, Status
from server.query.requests import NO_FIELD

Found = TypeVar("Found")
Bearer = Annotated[
    HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False, scheme_name="key"))
]


def work(
    service: Service,
    method: str,
    request: Request,
    key: Bearer,
    call: Callable[[], Found],
    cost: float = 1.0,
) -> Found:
    """Answer one request by ``call``.

    Parameters
    ----------
    cost
        How many requests it counts for.

    Raises
    ------
    RefusedError
        Whatever went wrong.
    """
    address = request.client.host if request.client else "unknown"

    def admitted() -> Found:
        service.admit(key.credentials if key else None, address, cost)
        _refuse_unknown(request)
        return call()

    return service.run("rest", method, admitted)


def _refuse_unknown(request: Request) -> None:
    """Refuse what a path does not take: an answer without it would be taken for one with it."""
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if name not in known:
            raise RefusedError(Status.INVALID, f"query.{name[:80]}: {NO_FIELD}")
