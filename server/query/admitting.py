"""What every request over REST goes through before it is answered: key, rate, measure, log."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server.query.answering import Service

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
        return call()

    return service.run("rest", method, admitted)
