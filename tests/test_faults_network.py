"""The network between a shop and the gateway is cut, and comes back."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployment_support import SECONDS
from faults_support import charged, check_ended_well, end_of, fragile

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

HERE, THERE = "10.231.7.1", "10.231.7.2"


class Wire:
    """A network of one shop's own, with one wire to this machine."""

    def __init__(self) -> None:
        self.space = f"ft{os.getpid()}"
        self.end = f"fth{os.getpid() % 10_000_000}"

    @property
    def within(self) -> tuple[str, ...]:
        """Runs a command on the other side."""
        return ("ip", "netns", "exec", self.space)

    def set(self, state: str) -> None:
        """Cut the wire (``down``) or mend it (``up``)."""
        _ip("link", "set", self.end, state)


@contextmanager
def wire() -> Iterator[Wire]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    made = Wire()
    try:
        _ip("netns", "add", made.space)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        inside = f"{made.end}i"
        _ip("link", "add", made.end, "type", "veth", "peer", "name", inside, "netns", made.space)
        _ip("addr", "add", f"{HERE}/24", "dev", made.end)
        made.set("up")
        for words in (("addr", "add", f"{THERE}/24", "dev", inside), ("link", "set", inside, "up"),
                      ("link", "set", "lo", "up")):  # fmt: skip
            _ip("-n", made.space, *words)
        yield made
    finally:
        _ip("netns", "del", made.space)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def test_the_network_is_cut_while_a_run_goes_on(tmp_path: Path) -> None:
    with (
        wire() as to_south,
        fragile(tmp_path, plan={"rounds": 2}, start=False, host=HERE) as federation,
    ):
        north, south = federation.shops.values()
        federation.up()
        federation.open(north)
        federation.open(south, to_south.within)
        for shop in (north, south):
            federation.wait_until_connected(shop, SECONDS)
        federation.train()
        federation.wait_for("release", 0)
        to_south.set("down")
        first = federation.wait_for("round", 1)
        to_south.set("up")
        assert first["declined"] == {"error": 1}
        status, said = end_of(federation)
        check_ended_well(federation, status, said)
        assert "south: error" in said
        # What it may have trained and could not send is paid for all the same.
        assert charged(federation, south, first["run"])[0] == 0
        # It comes back by itself.
        federation.wait_until_online("south", SECONDS)
