"""Exit with 0 if the service at a URL says that it is well; for the containers' health checks.

``https://`` and ``http://`` must answer 200; ``grpc://`` must serve gRPC's own health protocol.
"""

import argparse
import ssl
import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit

_SECONDS = 4.0


def healthy(url: str, ca: str | None = None) -> bool:
    """Ask the service at ``url``; ``ca`` is the certificate that it must be signed by."""
    return _grpc(urlsplit(url).netloc) if url.startswith("grpc://") else _http(url, ca)


def _http(url: str, ca: str | None) -> bool:
    context = ssl.create_default_context(cafile=ca) if url.startswith("https://") else None
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS, context=context) as answer:  # noqa: S310 - from the compose file
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _grpc(address: str) -> bool:
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    with grpc.insecure_channel(address) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=_SECONDS)
        except grpc.RpcError:
            return False
    return bool(answer.status == HealthCheckResponse.SERVING)


def main() -> None:
    """Parse the command line and exit accordingly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--ca", help="PEM file of the certificate authority")
    arguments = parser.parse_args()
    sys.exit(0 if healthy(arguments.url, arguments.ca) else 1)


if __name__ == "__main__":
    main()
