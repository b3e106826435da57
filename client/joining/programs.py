"""The two programs of a shop's client: its SuperNode, and the executor of what that is asked.

The SuperNode speaks with the federation and takes in approved code only (:mod:`client.node`). The
executor starts one process for each message, in which that code meets the shop's data. Both are
Flower's own, and speak with each other on loopback.
"""

import sys
from pathlib import Path

from client.settings import SHOP_KEY, FederationSettings
from client.shop_folder import ShopFolder
from common.bundle import FEDERATION
from common.config import toml_value
from common.programs.processes import environment, tool
from common.programs.supervisor import Program

NODE, EXECUTOR = "supernode", "superexec"
# How `client.node` ends for a reason of its own; Flower's log has lines of another form.
_OWN_ERROR = "error: "


def supernode(
    settings: Path, folder: ShopFolder, federation: FederationSettings, port: int, empty: Path
) -> Program:
    """Return the guarded SuperNode of a shop."""
    command = [sys.executable, "-P", "-m", "client.node"]
    command += ["--approved", str(folder.approvals), "--refused", str(folder.refusals)]
    command += ["--superlink", federation.address, "--root-certificates", str(federation.ca)]
    command += ["--auth-supernode-private-key", str(federation.key)]
    command += ["--isolation", "process", "--superexec-auth-secret-file", str(folder.secret)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--node-config", f"{SHOP_KEY}={_quoted(str(settings))}"]
    own_code = {"PYTHONPATH": str(FEDERATION.folder)}
    log = folder.logs / "supernode.log"
    return Program(
        NODE,
        command,
        environment(folder.flower, own_code),
        empty,
        log,
        final=lambda _: refusal(log),
    )


def superexec(folder: ShopFolder, port: int, empty: Path) -> Program:
    """Return the executor of a shop."""
    # Without TLS: it never leaves loopback, and the secret shows who asks.
    command = [tool("flower-superexec"), "--insecure", "--runtime-api-address", f"127.0.0.1:{port}"]
    command += ["--superexec-auth-secret-file", str(folder.secret)]
    return Program(
        EXECUTOR, command, environment(folder.flower, {}), empty, folder.logs / "superexec.log"
    )


def refusal(log: Path) -> str | None:
    """Return why our own part of a SuperNode that ended would not start; None if it did."""
    try:
        last = log.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]
    except OSError:
        return None
    return last.removeprefix(_OWN_ERROR) if last.startswith(_OWN_ERROR) else None


def _quoted(text: str) -> str:
    """Return a TOML string that Flower finds whole: it looks for the next quotation mark."""
    return toml_value(text).replace('\\"', "\\u0022")
