"""``python -m deploy.gateway`` writes ``gateway.conf``, the gateway's configuration in compose.

It is what ``python -m server up`` renders for nginx on a bare machine, with a container's paths.
"""

from pathlib import Path

from server.operating.folder import SUPERLINK_HOST
from server.operating.gateway import render

FILE = Path(__file__).with_name("gateway.conf")


def container_config() -> str:
    """Return the configuration that docker-compose.yml mounts."""
    return render(
        listen="0.0.0.0:8443",
        certificate="/run/secrets/gateway.crt",
        key="/run/secrets/gateway.key",
        authority="/run/secrets/ca.crt",
        upstream=f"{SUPERLINK_HOST}:8000",
        upstream_name=SUPERLINK_HOST,
        state="/tmp",  # noqa: S108 - a tmpfs of the container's own
        access_log="/dev/stdout",
        error_log="stderr",
        health=True,
    )


if __name__ == "__main__":
    FILE.write_text(container_config(), encoding="utf-8")
