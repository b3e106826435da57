"""What an operator sees of a run, of a plan and of a federation."""

import io
from typing import Any

from rich.console import Console

from common.protocol import shop_key
from common.statement import at_most, statement
from registry_support import PLAN
from server.operating.tables import ports_table
from server.training.codes import shop_names
from server.training.status_table import status_table
from server.training.tables import plan_lines, plan_table, trained_table
from server.training.view import TrainingView, event_words


def text_of(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(*events: dict[str, Any], terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=200)
    with TrainingView(lambda: shop_names(["alpha", "beta"]), console) as view:
        view.rounds(2)
        for event in events:
            view.event(event)
    return file.getvalue()


def exchange(kind: str, number: int, accepted: int, **more: Any) -> dict[str, Any]:
    facts = {"event": kind, "server_round": number, "seconds": 3.2, "asked": 2}
    return {**facts, "accepted": accepted, "declined": {}, "shops": {}, **more}


def test_a_run_in_lines() -> None:
    unapproved = {"declined": {"unapproved": 1}, "shops": {shop_key("beta"): "unapproved"}}
    events = (
        {"event": "start", "server_round": 0},
        exchange("join", 0, 1, **unapproved),
        exchange("release", 0, 1),
        exchange("round", 1, 1, kept_old_model=False),
        exchange("join", 2, 0, **unapproved),
        exchange("round", 2, 0, kept_old_model=True, declined={"late": 1}),
        exchange("home", 2, 1),
        {"event": "end", "server_round": 2},
    )
    for terminal in (False, True):
        lines = shown(*events, terminal=terminal)
        assert "1 of 2 shops take part" in lines
        # Asked again before each round, told once.
        assert lines.count("beta: unapproved: it has not approved this bundle") == 1
        assert "popularity: 1 of 2 shops (3 s)" in lines
        assert "round 1 of 2: 1 of 2 shops (3 s)\n" in lines
        assert "round 2 of 2: 0 of 2 shops (3 s); too few good replies: the old model" in lines
        assert "1 shop unnamed: late: it did not answer in time" in lines
        assert "the model is home at 1 of 2 shops" in lines
    assert not shown(*events).endswith("\n\n")
    later = shown({"event": "start", "server_round": 1}, exchange("join", 2, 2))
    assert "going on after round 1" in later
    assert event_words({"event": "unheard of"}) == ""
    assert event_words(exchange("evaluate", 2, 1)) == "figures: 1 of 2 shops released theirs (3 s)"


def test_markup_in_a_name_is_only_text() -> None:
    file = io.StringIO()
    with TrainingView(dict, Console(file=file)) as view:
        view.note("[red]shop[/red] [/]")
    assert file.getvalue() == "[red]shop[/red] [/]\n"


PLANNED: dict[str, Any] = {
    "run": "run-1",
    "started_from": None,
    "plan": PLAN.model_dump(mode="json"),
    "catalogue": {"version": 3, "products": 20, "fingerprint": "f" * 64},
    "bundle": "b" * 64,
    "privacy": statement(PLAN),
    "shops": {"connected": ["alpha"], "missing": ["beta"]},
    "notes": ["a note"],
}


def test_the_price_is_said_before_a_run() -> None:
    lines = "\n".join(plan_lines(PLANNED))
    epsilon = f"epsilon {at_most(PLANNED['privacy']['epsilon'])}"
    assert epsilon in lines
    for words in ("3 rounds", "version 3", "per customer", "b" * 64, "Note: a note."):
        assert words in lines
    assert "Connected: alpha. Not connected: beta." in lines
    assert "goes on" not in lines
    table = text_of(plan_table({**PLANNED, "shops": None}))
    assert (table.count("Protected: "), "Nothing was started." in table) == (1, True)
    later = PLANNED["plan"] | {"train_from": 86400 * 365}
    from_version = "\n".join(plan_lines({**PLANNED, "started_from": 2, "plan": later}))
    assert "goes on from version 2 on records since 1971-01-01" in from_version
    all_of_it = "\n".join(
        plan_lines({**PLANNED, "started_from": 2, "plan": later | {"train_from": 0}})
    )
    assert "goes on from version 2 on all records; the new model's statement counts" in all_of_it


def test_a_finished_run_says_what_was_published() -> None:
    document = {
        "run": "run-1",
        "exchanges": [exchange("round", 1, 1, declined={"late": 1})],
        "privacy": statement(PLAN),
        "seconds": 12.3,
        "attempts": 2,
        "forced": ["its noise was seeded"],
        "published": 4,
        "published_now": True,
        "registry": "[place]",
        "served": 3,
    }
    table = text_of(trained_table(document))
    for words in ("1 late", "late: it did not answer in time", " in 2 attempts.", "By force: its"):
        assert words in table
    assert "Version 4 (now published) in [place]; version 3 is served." in table
    unknown = text_of(trained_table({**document, "served": None}))
    assert "in [place]; the last decision about what is served is damaged: pin a" in unknown
    bare = text_of(trained_table({**document, "privacy": None, "published_now": False}))
    assert "without differential privacy" in bare
    assert "already published" in bare


def test_a_round_that_kept_the_old_model_is_told_at_the_end_too() -> None:
    kept = {"kept_old_model": True, "reason": "items would hold (too much)"}
    document = {
        "run": "run-1",
        "exchanges": [exchange("round", 1, 1), exchange("round", 2, 0, **kept)],
        "privacy": None,
        "seconds": 12.3,
        "attempts": 1,
        "forced": [],
        "published": 4,
        "published_now": True,
        "registry": "registry",
        "served": 4,
    }
    lines = text_of(trained_table(document)).splitlines()
    first, second = (line.strip() for line in lines if line.strip().startswith("round "))
    assert first.split("  ")[0] == "round 1: 1 of 2 shops"
    said = "round 2: 0 of 2 shops; items would hold (too much): the old model is kept"
    assert second.startswith(said)


def test_a_federation_at_a_glance() -> None:
    certificate = {"file": "ca.crt", "until": "2030-01-01T00:00:00+00:00"}
    run = {"run": "run-1", "state": "failed", "reason": "no [shop]", "rounds": 3, "rounds_done": 1}
    sums: dict[str, object] = {"honest_shops": 3, "colluding_shops": 1, "survivors": [5, 4]}
    sums["left_out"] = {"e[v]e": "disputed: too many shops"}
    figures = {"ndcg@20": {"mean": 0.25, "error": 0.02, "noise_error": 0.01}, "tail_ndcg@20": None}
    one = {"shops": 1, "customers": 80.0, "customers_error": 4.0, "figures": figures}
    evaluation = {"noise": "seeded", "together": one, "shops": {"al[pha]": one}}
    last = {
        **run,
        "sums": sums,
        "exchanges": [exchange("round", 1, 2)],
        "published": None,
        "evaluation": evaluation,
    }
    document = {
        "federation": "fed",
        "address": "localhost:1",
        "up": True,
        "listeners": {"error": "cannot see"},
        "shops": [
            {"shop": "al[pha]", "status": "online", "changed_at": "2026-01-02T03:04:05+00:00"},
            {"shop": "beta", "status": None, "changed_at": None},
        ],
        "catalogue": None,
        "run": last,
        "registry": {"where": "reg", "versions": 2, "served": 1, "pinned": True},
        "certificates": [certificate | {"days_left": 3}],
    }
    table = text_of(status_table(document))
    for words in (
        *("fed at localhost:1: up", "What listens: cannot see", "al[pha]", "2026-01-02 03:04"),
        "since (UTC)",
        *("unknown", "catalogue publish", "run-1, failed, 1 of 3 rounds done", "no [shop]"),
        *("round 1: 2 of 2 shops", "--resume run-1", "0.2500 ± 0.0200", "hidden by noise"),
        *("80 ± 4", "noise was seeded", "version 1 is served, pinned", "server renew"),
        "Trust federation: 3 honest and up to 1 colluding survivors of each sum; there were 5, 4",
        "Left out of sums: e[v]e: disputed: too many shops",
    ):
        assert words in table, words
    empty = {"up": False, "listeners": [], "shops": [], "run": None, "certificates": []}
    alone = {**last, "sums": None}
    assert "Trust" not in text_of(status_table({**document, "run": alone}))
    empty["registry"] = {"where": "reg", "versions": 0, "served": None, "pinned": False}
    table = text_of(status_table({**document, **empty}))
    for words in ("not up", "server enrol", "No run yet", "holds no models yet"):
        assert words in table, words


def test_a_program_that_nobody_knows_is_shown_as_it_was_started() -> None:
    listener = {"port": 9, "address": "::", "program": "work [/a] [b]", "outside": True}
    table = text_of(ports_table({"listeners": [{**listener, "pid": 1, "serves": "unknown"}]}))
    assert "work [/a] [b]" in table
    assert "from outside" in table
