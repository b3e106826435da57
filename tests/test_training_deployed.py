"""``train`` and ``status`` against real services and shops: broken off, refused, gone on."""

import json
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from client.joining.approval import Approvals
from client.privacy.ledger import Ledger
from client.settings import read_settings
from common.bundle import build, digest
from deployment_support import SECONDS, Deployed, deployed, products_table, sales
from server.registry.versions import Registry
from simulations.loopback.deployment import change

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def status(federation: Deployed) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(federation.server("status", "--json"))
    return found


@pytest.mark.timeout(1200)
def test_a_run_outlives_its_command_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    with deployed(tmp_path) as federation:
        # Killed outright: the run goes on without anyone looking.
        command = federation.train()
        federation.wait_for("release", 0)
        federation.programs.take("train").process.kill()
        assert command.process.wait(SECONDS) == -signal.SIGKILL
        seen = status(federation)
        run = seen["run"]["run"]
        assert (seen["up"], seen["run"]["state"], seen["run"]["published"]) == (
            True,
            "running",
            None,
        )
        assert [s["status"] for s in seen["shops"]] == ["online", "online"]
        # Taken up again it is followed, and Ctrl-C stops it.
        command = federation.train("--resume", run)
        federation.wait_for("round", 1)
        command.process.send_signal(signal.SIGINT)
        code, said = federation.finish()
        assert code == 1, said
        assert f"run {run} is stopped" in said
        assert f"--resume {run}" in said
        assert said.count("submitting run") == 1  # The log holds both commands.
        assert status(federation)["run"]["state"] == "stopped"
        # It goes on at its round, and is published; once.
        said = federation.trained("--resume", run)
        assert "going on after round 1" in said
        assert [e["server_round"] for e in federation.events("round")] == [1, 2]
        assert federation.versions() == [1]
        assert "already published" in federation.trained("--resume", run)
        assert federation.versions() == [1]
        for shop in federation.shops.values():
            # The round that was under way when it was stopped may be paid twice, no other is.
            paid = federation.paid(shop)
            assert paid[:2] == [(run, 0), (run, 1)]
            assert set(paid[2:]) == {(run, 2)}
            assert len(paid) <= 4
        federation.check_accounts()
        seen = status(federation)["run"]
        assert (seen["state"], seen["published"], seen["attempts"]) == ("completed", 1, 2)
        # A later run goes on from it.
        said = federation.trained("--from", "served", "--rounds", "1")
        assert "It goes on from version 1 on records since" in said
        _, model = Registry(federation.operator / "registry").read(2)
        assert [e["version"] for e in model.manifest.config["earlier"]] == [run]


@pytest.mark.timeout(900)
def test_what_shops_refuse_is_told_by_name_and_costs_nothing(tmp_path: Path) -> None:
    with deployed(tmp_path) as federation:
        north, south = federation.shops.values()
        bundle = digest(build())
        for shop in (north, south):
            Approvals(shop.folder / "approved.jsonl").decide("revoke", bundle, "tests")
        federation.train()
        code, said = federation.finish()
        assert code == 1
        for name in ("north", "south"):
            assert f"{name}: unapproved: it has not approved this bundle" in said
        assert "failed: no shop takes part: 2 unapproved" in said
        assert bundle in said

        for shop in (north, south):
            Approvals(shop.folder / "approved.jsonl").decide("approve", bundle, "tests")
            change(shop.settings, {"cap_epsilon": 0.5})
        federation.train()
        code, said = federation.finish()
        assert code == 1
        for name in ("north", "south"):
            assert f"{name}: over-budget: what is left of the plan does not fit" in said
        seen = status(federation)
        assert seen["run"]["state"] == "failed"
        assert "2 over-budget" in seen["run"]["reason"]
        assert [federation.paid(shop) for shop in (north, south)] == [[], []]

        federation.close(south)
        federation.train()
        code, said = federation.finish()
        assert code == 1
        assert "1 of 2 shops are connected" in said
        assert "Not connected: south" in said
        assert federation.versions() == []


@pytest.mark.timeout(1200)
def test_updates_hold_the_rows_that_shops_stock_once_both_sides_hold_the_table(
    tmp_path: Path,
) -> None:
    with deployed(tmp_path) as federation:
        north, south = federation.shops.values()
        tables = tmp_path / "tables"
        tables.mkdir()
        products_table().to_csv(tables / "products.csv", index=False)
        stock = pd.concat([sales(name, number) for number, name in enumerate(federation.shops)])
        stock = stock[["merchant_id", "item_id"]].drop_duplicates()
        assert stock.groupby("merchant_id").size().max() < len(products_table())
        stock.to_csv(tables / "stock.csv", index=False)
        published = json.loads(federation.server("catalogue", "publish", str(tables), "--json"))
        federation.take_catalogue(north)
        said = federation.trained("--rounds", "1")
        assert "south: wrong-stock: it holds another table of what shops stock" in said
        assert federation.paid(south) == []
        federation.take_catalogue(south)
        federation.trained()
        trained = federation.events("round")
        assert [e["accepted"] for e in trained] == [1, 2, 2]
        # Of two numbers a row: what a shop stocks goes up, and comes down with a gain each; the
        # Gram matrix and the expected basket of all products are 4 and 2 numbers.
        stocked = stock.groupby("merchant_id").size()
        frame = 128
        for shops, told in zip((["north"], *[["north", "south"]] * 2), trained, strict=True):
            rows = stocked[shops].tolist()
            assert told["bytes_up"] == sum(frame + 8 * n for n in rows)
            assert told["bytes_down"] == sum(4 * frame + 12 * n + 4 * 6 for n in rows)
        for shop, rounds in ((north, 2 + 3), (south, 3)):
            entries = Ledger.read(read_settings(shop.settings).ledger)
            assert [e.event.parameters["stock"] for e in entries] == [published["stock"]] * rounds
        federation.check_accounts()
