from simulations.federating import _declined

JOIN = {"event": "join", "shops": {"a": "ok", "b": "over-budget", "c": "ok", "d": "ok"}}


def test_who_declined_or_never_answered_took_no_part() -> None:
    release = {"event": "release", "shops": {"c": "data-error", "d": "failed"}}
    first = {"event": "round", "shops": {"c": "data-error"}}
    assert _declined([{"event": "start"}, JOIN]) == {"b": "over-budget"}
    assert _declined([JOIN, release, first]) == {"b": "over-budget", "c": "data-error"}


def test_a_resumed_run_asks_again_and_the_later_answer_counts() -> None:
    again = {"event": "join", "shops": {"b": "ok", "c": "ledger-error"}}
    assert _declined([JOIN, {"event": "release", "shops": {}}, again]) == {"c": "ledger-error"}
