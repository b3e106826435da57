"""Secure sums of what shops stock in a deployed federation: real processes from table to model."""

import json
from pathlib import Path

import pandas as pd
import pytest

from client.privacy.ledger import Ledger
from client.settings import read_settings
from deployment_support import products_table, sales
from server.catalogue.versions import Catalogues
from simulations.loopback.deployment import change
from sums_deployed_support import SHOPS, summing

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]


def test_rows_travel_from_the_shops_that_stock_them(tmp_path: Path) -> None:
    with summing(tmp_path / "town") as town:
        tables = tmp_path / "tables"
        tables.mkdir()
        products_table().to_csv(tables / "products.csv", index=False)
        # Each stocks what it sells: some products are sold by four of the five.
        stock = pd.concat([sales(name, number) for number, name in enumerate(SHOPS)])
        stock = stock[["merchant_id", "item_id"]].drop_duplicates()
        assert stock.groupby("item_id").size().min() == 4
        stock.to_csv(tables / "stock.csv", index=False)
        published = json.loads(town.server("catalogue", "publish", str(tables), "--json"))
        assert (published["version"], published["new"]) == (2, True)
        assert published["fingerprint"] == Catalogues(
            town.operator / "catalogue"
        ).version(1).fingerprint  # fmt: skip
        change(town.operator / "plan.toml", {"honest_stockers": 1, "rare_rows": "enough"})
        late = town.shops["ben"]
        for shop in town.shops.values():
            if shop is not late:
                town.take_catalogue(shop)
        run = town.run()
        assert run.status == 0, run.said
        assert run.of("release")["accepted"] == 4, run.said
        assert run.of("release")["declined"] == {"sum-refused": 1}
        assert run.likeness({"ben"}) > 0.9
        assert run.payers(0) == set(SHOPS) - {"ben"}
        town.take_catalogue(late)
        checked = json.loads(town.client(late, "check", "--json"))
        assert checked["stock"] == {
            "fingerprint": published["stock"],
            "shops": 5,
            "products": int((stock["merchant_id"] == "ben").sum()),
            "unlisted": 0,
        }
        run = town.run("--rounds", "1")
        assert run.status == 0, run.said
        assert (run.of("release")["accepted"], run.of("round")["accepted"]) == (5, 5), run.said
        assert run.likeness() > 0.9
        # Down come rows of what each stocks, a gain each, the Gram matrix and the expected basket.
        rows = stock.groupby("merchant_id").size().tolist()
        assert len(rows) == 5
        assert run.of("round")["bytes_down"] == sum(4 * 128 + 12 * n + 4 * 6 for n in rows)
        assert "Traceback" not in run.said
        for name in SHOPS:
            ledger = read_settings(town.shops[name].settings).ledger
            events = [e.event for e in Ledger.read(ledger) if e.event.run_id == run.name]
            assert [e.parameters["stock"] for e in events] == [published["stock"]] * 2
            # Of the five three are sure to be left: of four stockers two.
            assert [e.parameters["fewest_honest"] for e in events] == [2, 2]
        town.check_accounts()
