"""The plain-words answer to: should these shops federate.

Read from the report's document. The reference is, for each metric, the better of ``local`` and
``home-only``: what a shop can have without sending anything. Where a private arm was trained under
several draws of the noise, the verdict is on what one training brings, whichever draw it gets.
"""

from collections.abc import Mapping, Sequence

from common.statement import at_most
from common.wording import counted
from simulations.documents import Document
from simulations.report.draws import shown

MAIN = ("ndcg@20", "tail_ndcg@20")
#: Share of shops that must be level or better before the answer is a plain yes.
ENOUGH_SHOPS = 0.8
#: Of fewer tested customers an interval means nothing: two lucky ones may have one of no width.
ENOUGH_CUSTOMERS = 10
DASH = "–"
_NEEDS = (
    "It takes the arms local and federated or federated-dp, on shops with customers who bought "
    f"something in the test period: {ENOUGH_CUSTOMERS} at least."
)


def answer(document: Document) -> Document:
    """Return ``verdict`` (yes, mixed, no, unknown), the ``arm`` it is about, and the words."""
    arms = {name: shown(arm) for name, arm in document["arms"].items()}
    candidates = [name for name in ("federated-dp", "federated") if name in arms]
    verdicts = {name: judge(arms[name]) for name in candidates}
    known = [name for name in candidates if verdicts[name] != "unknown"]
    if not known:
        return {
            "verdict": "unknown",
            "arm": None,
            "headline": "This run cannot say whether these shops should federate.",
            "details": [_NEEDS],
        }
    arm = known[0]
    ways = measured_ways(arms)
    details = [sentence for name in known for sentence in _details(name, arms[name], ways)]
    if "centralized" in arms and (short := [metric for metric in MAIN if metric not in ways]):
        details.append(
            "No share of the way from local to centralized can be told on "
            f"{' and '.join(short)}: what pooling all records gains there is not certain."
        )
    asked, known_by = arms[arm]["customers_with_targets"], arms[arm]["customers"]
    details.append(
        f"Tested: {asked:,} of {counted(known_by, 'customer')} with a history, those who came to "
        "a product that was new to them in the test period."
    )
    if away := away_words(all_shops(arms[arm])):
        details.append(f"{away}.")
    return {
        "verdict": verdicts[arm],
        "arm": arm,
        "headline": _headline(arm, arms[arm], verdicts),
        "details": details,
    }


def all_shops(arm: Document) -> Document:
    """Return merchant id -> facts of every shop that an arm is trained by, measured or not."""
    return {**arm["per_shop"], **arm["other_shops"]}


def away_words(shops: Document) -> str:
    """Return how many of :func:`all_shops` took no part, and why; "" where all did."""
    away = {
        key: shop["reason"] or "no reason recorded"
        for key, shop in shops.items()
        if not shop["took_part"]
    }
    if not away:
        return ""
    reasons = "; ".join(f"{key}: {reason}" for key, reason in list(away.items())[:5])
    more = f"; and {len(away) - 5} more" if len(away) > 5 else ""
    return f"{len(away)} of {len(shops)} shops took no part ({reasons}{more})"


def judge(arm: Document) -> str:
    """Return the verdict on one arm; ``unknown`` where too few customers had anything to find.

    ``yes``: ndcg@20 or tail_ndcg@20 gains for sure (the interval is above 0), neither loses for
    sure, and enough shops are level or better. ``no``: neither gains for sure. Else ``mixed``.
    """
    versus = arm["vs_better"]
    if not versus or versus["ndcg@20"]["low"] is None or not asked_enough(arm, "ndcg@20"):
        return "unknown"
    if not any(pays(arm, metric) for metric in MAIN):
        return "no"
    loses = any(_loses(arm, metric) for metric in MAIN)
    level = arm["level_share"]
    return "mixed" if loses or level is None or level < ENOUGH_SHOPS else "yes"


def asked_enough(arm: Document, metric: str) -> bool:
    """Whether so many customers have targets of a metric that its interval means something."""
    tail = "tail_" if metric.startswith("tail_") else ""
    return bool(arm[f"customers_with_{tail}targets"] >= ENOUGH_CUSTOMERS)


def pays(arm: Document, metric: str) -> bool:
    """Whether an arm gains for sure over the better of what a shop can have alone."""
    return _gains(arm, "vs_better", metric)


def measured_ways(arms: Mapping[str, Document]) -> list[str]:
    """Return the metrics of ``MAIN`` in which an arm's share of the way can be told.

    Those in which ``centralized`` gains for sure over ``local``: a ratio to what may be nothing
    has no bounds (Fieller 1954, "Some Problems in Interval Estimation"), and -22325% says nothing.
    """
    whole = arms.get("centralized")
    return [] if whole is None else [m for m in MAIN if _gains(whole, "vs_local", m)]


def _gains(arm: Document, versus: str, metric: str) -> bool:
    low = (arm[versus] or {}).get(metric, {}).get("low")
    return asked_enough(arm, metric) and low is not None and bool(low > 0)


def _loses(arm: Document, metric: str) -> bool:
    high = arm["vs_better"][metric]["high"]
    return asked_enough(arm, metric) and high is not None and bool(high < 0)


def number(value: float | None, digits: int = 4) -> str:
    """Return ``0.0924``, or a dash for what does not exist."""
    return DASH if value is None else f"{value:.{digits}f}"


def spent(epsilon: float | None) -> str:
    """Return an ε that is in no digits less than it is, or a dash where nothing was spent."""
    return DASH if epsilon is None else at_most(epsilon)


def signed(value: float | None) -> str:
    """Return ``+0.0061``, or a dash."""
    return DASH if value is None else f"{value:+.4f}"


def percent(value: float | None) -> str:
    """Return ``62%``, or a dash; what rounds to nothing has no sign."""
    return DASH if value is None else f"{value:z.0%}"


def interval(gain: Document | None) -> str:
    """Return ``+0.0061 (+0.0042 to +0.0080)``; a dash for an arm against itself."""
    ends = {gain["low"], gain["high"]} if gain else set()
    # Of a single customer there is no interval.
    if not gain or gain["mean"] is None or (gain["mean"] == 0 and ends <= {0, None}):
        return DASH
    return f"{signed(gain['mean'])} ({signed(gain['low'])} to {signed(gain['high'])})"


def privacy_words(privacy: Document | None) -> str:
    """Return how private an arm is, in a few words."""
    if not privacy:
        return "without privacy"
    return (
        f"with ε = {at_most(privacy['epsilon'])} for each {privacy['unit']} "
        f"(δ = {privacy['delta']:g}, trust {privacy['trust']})"
    )


def _headline(arm: str, document: Document, verdicts: dict[str, str]) -> str:
    how = privacy_words(document["privacy"])
    if verdicts[arm] == "yes":
        return f"Yes: federating {how} beats what these shops can do alone."
    if verdicts[arm] == "mixed":
        return f"It depends: federating {how} helps in part, and costs elsewhere."
    lost = [metric for metric in MAIN if _loses(document, metric)]
    loss = f", and a loss of {' and '.join(lost)} is certain" if lost else ""
    if arm == "federated-dp" and verdicts.get("federated") == "yes":
        return (
            f"Not like this: {how} no gain over what these shops can do alone is certain{loss}, "
            f"though without privacy there is {'a gain' if lost else 'one'}. More shops, more "
            "customers or a larger ε may change it."
        )
    return f"No: federating {how} shows no certain gain over what these shops can do alone{loss}."


def _details(name: str, arm: Document, ways: Sequence[str]) -> list[str]:
    found = [
        f"{metric} {number(arm['metrics'][metric])}, {_against(arm['vs_better'][metric])}"
        for metric in MAIN
    ]
    sentences = [f"{name} ({privacy_words(arm['privacy'])}): {'; '.join(found)}."]
    if not asked_enough(arm, "tail_ndcg@20"):
        sentences.append(
            f"Of {counted(arm['customers_with_tail_targets'], 'customer')} with a tail product to "
            f"find, tail_ndcg@20 says nothing for sure: it takes {ENOUGH_CUSTOMERS}."
        )
    if arm.get("draws"):
        sentences += _draws_words(arm["draws"])
    if arm["level_share"] is not None:
        every = len(all_shops(arm))
        asked = sum(bool(shop["customers_with_targets"]) for shop in arm["per_shop"].values())
        shops = "the shops" if asked == every else f"the {asked} shops tested, of {every},"
        sentences.append(
            f"{percent(arm['level_share'])} of {shops} are level with local or better under {name}."
        )
    if ways:
        parts = " and ".join(f"{percent(arm['way'][metric])} on {metric}" for metric in ways)
        sentences.append(f"From local to centralized, {name} goes {parts} of the way.")
    return sentences


def _against(gain: Document) -> str:
    if gain["mean"] is None:
        return "of nobody"
    words = interval(gain)
    return (
        f"the same as {gain['against']}" if words == DASH else f"{words} against {gain['against']}"
    )


def _draws_words(draws: Document) -> list[str]:
    """Return what the draws of the noise were, and what is said of them."""
    each = "; ".join(
        f"{metric} {', '.join(number(value) for value in draws['metrics'][metric]['values'])} "
        f"(standard deviation {number(draws['metrics'][metric]['sd'], 5)})"
        for metric in MAIN
    )
    means = "; ".join(
        f"{metric} {_against({**gain, 'low': gain['mean_low'], 'high': gain['mean_high']})}"
        for metric, gain in ((metric, draws["vs_better"][metric]) for metric in MAIN)
    )
    trained = (
        f"It was trained {draws['count']} times, each with other noise: {each}. Figures are means "
        "over them, and intervals say what one training brings: they cover the draw of customers "
        "and that of the noise. The model, recommendations and ledgers that are kept are the "
        "first one's."
    )
    return [trained, f"The mean gain over many trainings is {means}; one training may bring less."]
