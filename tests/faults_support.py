"""Small federations for the tests of faults: they bear a busy machine, and end with nothing left.

One of two shops is enough for a run, so that what happens to the other costs little time.
"""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from client.joining.programs import superexec, supernode
from client.settings import RUN_VARIABLE, read_settings
from client.shop_folder import ShopFolder
from common.bundle import FEDERATION
from common.config import ConfigValue
from common.programs.processes import free_port
from deployment_support import SECONDS, Deployed, deployed
from simulations.loopback.deployment import LocalShop

SHOPS = ("north", "south")
#: Nobody is to be called late because the machine is busy: whose end SuperLink notices is not
#: waited for.
PLAN: Mapping[str, ConfigValue] = {
    "rounds": 1,
    "min_shops": 1,
    "wait_seconds": SECONDS,
    "timeout_seconds": 2 * SECONDS,
}
_RUN_SECONDS = 1500.0
_END_SECONDS = 20.0


@contextmanager
def fragile(
    folder: Path,
    shops: Sequence[str] = SHOPS,
    plan: Mapping[str, ConfigValue] | None = None,
    *,
    home: bool = False,
    start: bool = True,
    host: str = "127.0.0.1",
) -> Iterator[Deployed]:
    """Yield a federation (:func:`deployed`) whose every process must end when it is told to.

    Parameters
    ----------
    home
        Whether runs end with the exchange that brings the model home.
    """
    with deployed(folder, shops, {**PLAN, **(plan or {})}, start=start, host=host) as federation:
        plan_file = federation.operator / "plan.toml"
        text = plan_file.read_text(encoding="utf-8")
        assert "send_home = true\n" in text
        changed = text.replace("send_home = true\n", f"send_home = {str(home).lower()}\n")
        plan_file.write_text(changed, encoding="utf-8")
        yield federation
        federation.programs.end_all()
        federation.programs.wait_until(
            lambda: not federation.programs.running(), "the end of all processes", _END_SECONDS
        )


def start_by_hand(
    federation: Deployed, shop: LocalShop, script: str
) -> tuple[list[subprocess.Popen[bytes]], int]:
    """Start a shop's node and executor as its client does, with another program for its messages.

    Parameters
    ----------
    script
        Takes the place of Flower's own program, in which the approved code runs.

    Returns
    -------
    tuple
        The two processes, the caller's to end, and the port at which the node will listen.
    """
    folder = ShopFolder.of(shop.settings)
    programs, empty = shop.folder / "bin", shop.folder / "empty"
    for place in (programs, empty, folder.flower, folder.state):
        place.mkdir(exist_ok=True)
    program = programs / "flwr-clientapp"
    program.write_text(script)
    program.chmod(0o700)
    settings = read_settings(shop.settings).federation
    assert settings is not None
    port = free_port()
    node = supernode(shop.settings, folder, settings, port, empty)
    executor = superexec(folder, port, empty)
    path = f"{programs}:{executor.environment['PATH']}"
    executor = dataclasses.replace(executor, environment={**executor.environment, "PATH": path})
    mark = {**federation.programs.mark, RUN_VARIABLE: str(folder.root)}
    started = []
    for one in (node, executor):
        with one.log.open("ab") as log:
            started.append(
                subprocess.Popen(
                    list(one.command),
                    env={**one.environment, **mark},
                    cwd=one.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
    return started, port


def end_of(federation: Deployed) -> tuple[int, str]:
    """Return the status with which a training ended, and all that it said."""
    return federation.finish(_RUN_SECONDS)


def check_ended_well(federation: Deployed, status: int, said: str, *, runs: int = 1) -> None:
    """Hold a run to its end, its accounts, and to what the registry has after so many."""
    assert status == 0, said
    assert "Traceback" not in said
    assert federation.events()[-1]["event"] == "end", said
    assert federation.versions() == list(range(1, runs + 1))
    federation.check_accounts()


def charged(federation: Deployed, shop: LocalShop, run: str) -> list[int]:
    """Return the rounds of a run that a shop's ledger was charged for, each once."""
    return sorted({number for name, number in federation.paid(shop) if name == run})


def patience() -> float:
    """Return after how many seconds a shop is silent, not slow, on this machine as busy as it is.

    A shop's answer is for the most part the start of a process that imports what training needs.
    """
    started = time.monotonic()
    command = [sys.executable, "-c", "import client.training, flwr.clientapp"]
    subprocess.run(command, check=True, cwd=FEDERATION.folder)
    return 20 + 8 * (time.monotonic() - started)
