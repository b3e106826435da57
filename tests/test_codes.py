"""What a shop's codes mean to the operator, and which shop said them."""

import logging
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from flwr.app import Error, Message

from common.protocol import StatusCode, shop_key
from federation_support import Clock, FaultyGrid, make_job, start_state, toy_app
from server.rounds import messenger
from server.strategy import Federation
from server.training.codes import CODES, declined_lines, left_out, shop_names, words


def test_every_code_has_a_meaning_and_advice() -> None:
    told = {"error", "unapproved", "rubbish", "late", "disputed", "wrong-shares"}
    assert set(CODES) == (set(get_args(StatusCode)) - {"ok"}) | told
    assert all(meaning and advice for meaning, advice in CODES.values())
    assert words("unapproved").startswith("unapproved: it has not approved this bundle")
    assert "does not know" in words("new-code")


def test_shops_are_named_as_they_were_enrolled_and_the_rest_counted() -> None:
    names = shop_names(["Alpha", "Bêta"])
    event = {
        "declined": {"over-budget": 1, "late": 3, "failed": 1},
        "shops": {
            shop_key("Bêta"): "over-budget",
            shop_key("Alpha"): "ok",
            shop_key("stranger"): "failed",
            shop_key("x"): "late",
        },
    }
    lines = declined_lines(event, names)
    assert lines[-1].startswith("2 shops unnamed: late: it did not answer in time")
    assert any(line.startswith("Bêta: over-budget: what is left of the plan") for line in lines)
    assert not any("Alpha" in line for line in lines)
    assert sum("not enrolled" in line for line in lines) == 2
    assert declined_lines({"event": "round"}, names) == []


def test_shops_that_a_runs_sums_went_on_without_are_told_with_the_last_reason() -> None:
    events: list[dict[str, Any]] = [
        {"event": "release", "shops": {shop_key("Alpha"): "disputed", shop_key("x"): "late"}},
        {"event": "round", "shops": {shop_key("Alpha"): "wrong-shares"}},
        {"event": "end"},
    ]
    names = shop_names(["Alpha", "x"])
    assert left_out(events, names) == {"Alpha": words("wrong-shares")}
    assert left_out(events[:1], {}) == {
        f"a shop that is not enrolled ({shop_key('Alpha')[:12]})": words("disputed")
    }


class _NamedGrid(FaultyGrid):
    def get_nodes(self) -> Any:
        return [SimpleNamespace(node_id=n, name=f"shop-{s}") for n, s in self.nodes.items()]

    def answer(self, message: Message) -> Message | None:
        if self.nodes[message.metadata.dst_node_id] == 1:
            return Message(Error(7, "not approved"), reply_to=message)
        return super().answer(message)


def test_a_shop_that_says_nothing_well_formed_is_named_all_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(messenger, "time", Clock())

    def fault(shop: int, kind: str, _round: int, reply: Message) -> Message | None:
        return None if shop == 2 and kind == "update" else reply

    events: list[dict[str, object]] = []
    grid = _NamedGrid(toy_app(), 4, fault=fault)
    job = make_job(rounds=1)
    Federation(grid, job, save=lambda _: None, report=events.append).run(start_state())
    join, release, first, _ = events
    assert join["declined"] == {"unapproved": 1}
    shops = join["shops"]
    assert isinstance(shops, dict)
    assert shops[shop_key("shop-1")] == "unapproved"
    assert shops[shop_key("shop-0")] == "ok"
    assert (release["declined"], release["shops"]) == ({}, {})
    assert (first["declined"], first["shops"]) == ({"late": 1}, {shop_key("shop-2"): "late"})
