"""What a shop's codes mean to the operator, and what to do about each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from common.protocol import shop_key
from server.secure_sum.disputes import DISPUTED, WRONG_SHARES

#: Code -> (what it means, what to do).
CODES = {
    "over-budget": (
        "what is left of the plan does not fit under its cap",
        "its engineer raises the cap, or plan.toml asks for less (target_epsilon, rounds)",
    ),
    "refused-config": (
        "its own settings do not allow this plan",
        "compare the plan's unit, noise and model with its shop.toml; its own log says more",
    ),
    "wrong-catalogue": (
        "it holds another version of the catalogue",
        "give it the folder of the version that this run trains on",
    ),
    "wrong-stock": (
        "it holds another table of what shops stock than this run goes by",
        "give it the folder of the catalogue's version that this run trains on",
    ),
    "wrong-protocol": (
        "its code speaks another version of the protocol",
        "bring both sides to one release",
    ),
    "ledger-error": (
        "its ledger is not as it was written, or older than one seen before, or cannot be written",
        "its engineer runs `python -m client ledger` and looks at its disk",
    ),
    "data-error": (
        "its tables cannot be read, or break the contract",
        "its engineer runs `python -m client check`",
    ),
    "no-evaluation": (
        "it releases no figures of its own",
        "that is its own choice: its engineer may add [evaluation] to its shop.toml",
    ),
    "no-secure-sum": (
        'it takes part in no secure sums, as a plan of trust "federation" asks',
        "its engineer runs `python -m client roster`, and adds [secure_sum] to its shop.toml",
    ),
    "sum-refused": (
        "what it was shown of a secure sum is not what it holds, or was answered before",
        "compare its roster's digest with yours; its own log says more",
    ),
    "failed": ("something failed in its process", "only its own log says what"),
    "unapproved": (
        "it has not approved this bundle: none of the run's code was executed there",
        "its engineer approves the digest: `python -m client approve`",
    ),
    "error": (
        "its process ended, or could not be reached",
        "its engineer looks after `python -m client run` and its log",
    ),
    "rubbish": (
        "its reply is not what the protocol allows, and was not counted",
        "the server's log names the reason; its engineer looks at its code and approvals",
    ),
    DISPUTED: (
        "too many shops cannot open the shares that it seals, or it theirs, to be all at fault",
        "no sum of this run asks it again; the log names the pairs; if it goes on, `server remove`",
    ),
    WRONG_SHARES: (
        "it gave or sealed shares that it had not committed to, which is proof",
        "no sum of this run asks it again; its engineer looks at its code; else `server remove`",
    ),
    "late": (
        "it did not answer in time",
        "its engineer looks at its load; server.timeout_seconds in plan.toml gives more time",
    ),
}


def shop_names(enrolled: list[str]) -> dict[str, str]:
    """Return the key of each enrolled shop -> its name: events hold keys."""
    return {shop_key(name): name for name in enrolled}


def declined_lines(event: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Return a line for each shop that an event tells to have declined, and what to do.

    Shops whose reply said nothing of whose it was are counted together.
    """
    told = {
        names.get(shop, f"a shop that is not enrolled ({shop[:12]})"): str(code)
        for shop, code in event.get("shops", {}).items()
        if code != "ok"
    }
    unnamed = Counter(event.get("declined", {}))
    unnamed.subtract(told.values())
    lines = [f"{name}: {words(code)}" for name, code in sorted(told.items())]
    return lines + [
        f"{count} shop{'s' if count > 1 else ''} unnamed: {words(code)}"
        for code, count in sorted(unnamed.items())
        if count > 0
    ]


def left_out(events: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, str]:
    """Return shop -> why, in words, of those that a run's secure sums went on without."""
    return {
        names.get(shop, f"a shop that is not enrolled ({shop[:12]})"): words(code)
        for event in events
        for shop, code in event.get("shops", {}).items()
        if code in (DISPUTED, WRONG_SHARES)
    }


def words(code: str) -> str:
    """Return a code with its meaning and what to do."""
    meaning, advice = CODES.get(code, ("a code that this version does not know", "see its log"))
    return f"{code}: {meaning}; {advice}"
