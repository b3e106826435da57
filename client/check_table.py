"""The terminal's words on a shop's data."""

from typing import Any

from rich.console import Group
from rich.text import Text

from client.tables import epsilon_words

Document = dict[str, Any]


def check_table(document: Document) -> Group:
    """Return what :func:`client.check.check_shop` found, as lines to read."""
    lines = [f"{document['shop']}: {document['source']['kind']} {document['source']['where']}", ""]
    lines += _counts(document)
    lines += _bad_rows(document["bad_rows"])
    if document["catalogue"] is not None:
        lines += _coverage(document["catalogue"])
        lines.append(_history(document["history"]))
    lines += ["", *_price(document["price"])]
    parts = [Text(line) for line in lines]
    problems = document["problems"]
    verdict = "To do before training:" if problems else "Ready to train."
    parts += [Text(""), Text(verdict, style="bold")]
    parts += [Text(f"- {problem}", style="yellow") for problem in problems]
    parts.append(Text("All of this stayed on this machine, and nothing was written."))
    return Group(*parts)


def _counts(document: Document) -> list[str]:
    totals = (
        f"{document['customers']:,} customers, {document['products']:,} products, "
        f"{document['interactions']:,} interactions"
    )
    lines = [totals]
    for name, found in document["behaviors"].items():
        lines.append(
            f"  {name:<10}{found['interactions']:>12,}   by {found['customers']:,} customers"
        )
    if (span := document["span"]) is not None:
        lines.append(f"from {span['first'][:10]} to {span['last'][:10]}: {span['days']:,} days")
    baskets = document["baskets"]
    lines.append("no baskets (session_id)" if baskets is None else f"{baskets:,} baskets")
    if document["other_merchants"]:
        lines.append(f"records of {document['other_merchants']:,} other merchants are left unused")
    return lines


def _bad_rows(bad: Document) -> list[str]:
    if not bad["rows"]:
        return ["no bad rows"]
    fate = "stop training" if bad["then"] == "refuse" else "are left out"
    lines = [f"{bad['rows']:,} bad rows, which {fate}:"]
    lines += [f"  {count:>10,}   {reason}" for reason, count in bad["reasons"].items()]
    return [*lines, *(f"  {line}" for line in bad["first"].splitlines())]


def _coverage(found: Document) -> list[str]:
    covered = (
        f"The catalogue ({found['products']:,} products) covers "
        f"{_percent(found['share_of_products'])} of the shop's products, "
        f"{_percent(found['share_of_interactions'])} of its interactions and "
        f"{_percent(found['share_of_sales'])} of its sales"
    )
    lines = ["", covered]
    if found["missing"]:
        first = ", ".join(
            f"{item['item_id']!r} ({item['interactions']:,} interactions)"
            for item in found["most_missed"]
        )
        lines.append(f"{found['missing']:,} products are not in it; the most wanted: {first}")
    return lines


def _history(found: Document) -> str:
    return (
        f"{found['customers']:,} customers would train (median {found['median']:g} interactions, "
        f"most {found['most']:,}); {found['with_little']:,} have fewer than 5, "
        f"{found['with_one']:,} only one, {found['without']:,} none that counts"
    )


def _price(price: Document) -> list[str]:
    plan, cost, shop = price["plan"], price["cost"], price["shops"][0]
    which = "The given plan" if price["given"] else "A plan of half the cap, for example"
    costs = (
        f"{which}: {plan['rounds']} rounds cost ε {epsilon_words(cost)} at δ {cost['delta']:g} "
        f"for each {cost['unit']}"
    )
    spent = (
        f"Spent so far: ε {epsilon_words(shop['spent'])} of {shop['cap_epsilon']:g}; after the "
        f"plan {epsilon_words(shop['after'])}; it fits {shop['whole_runs']:,} times"
    )
    return [costs, spent]


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"
