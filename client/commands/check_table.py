"""The terminal's words on a shop's data."""

from typing import Any

from rich.console import Group
from rich.text import Text

from client.commands.tables import epsilon_words, shares_words
from common.wording import counted

Document = dict[str, Any]
_BAR = 30


def check_table(document: Document) -> Group:
    """Return what :func:`client.check.check_shop` found, as lines to read."""
    lines = [f"{document['shop']}: {document['source']['kind']} {document['source']['where']}", ""]
    lines += _counts(document)
    lines += _bad_rows(document["bad_rows"])
    if document["catalogue"] is not None:
        lines += _coverage(document["catalogue"])
        lines.append(_history(document["history"]))
    lines += ["", *_price(document["price"]), *_sums(document["sums"])]
    lines += _stock(document["stock"])
    parts = [Text(line) for line in lines]
    problems = document["problems"]
    verdict = "To do before training:" if problems else "Ready to train."
    parts += [Text(""), Text(verdict, style="bold")]
    parts += [Text(f"- {problem}", style="yellow") for problem in problems]
    if document["advice"]:
        parts.append(Text("Would make it better:", style="bold"))
        parts += [Text(f"- {sentence}") for sentence in document["advice"]]
    parts.append(Text("All of this stayed on this machine, and nothing was written."))
    return Group(*parts)


def _counts(document: Document) -> list[str]:
    whats = ("customer", "product", "interaction")
    lines = [", ".join(counted(document[f"{what}s"], what) for what in whats)]
    for name, found in document["behaviors"].items():
        by = counted(found["customers"], "customer")
        lines.append(f"  {name:<10}{found['interactions']:>12,}   by {by}")
    if (span := document["span"]) is not None:
        lines.append(
            f"from {span['first'][:10]} to {span['last'][:10]}: {counted(span['days'], 'day')}"
        )
    baskets = document["baskets"]
    lines.append("no baskets (session_id)" if baskets is None else counted(baskets, "basket"))
    if document["other_merchants"]:
        others = counted(document["other_merchants"], "other merchant")
        lines.append(f"records of {others} are left unused")
    return lines


def _bad_rows(bad: Document) -> list[str]:
    count = bad["rows"]
    if not count:
        return ["no bad rows"]
    if bad["then"] == "refuse":
        fate = f"{_verb(count, 'stop')} training"
    else:
        fate = "is left out" if count == 1 else "are left out"
    lines = [f"{counted(count, 'bad row')}, which {fate}:"]
    lines += [f"  {count:>10,}   {reason}" for reason, count in bad["reasons"].items()]
    return [*lines, *(f"  {line}" for line in bad["first"].splitlines())]


def _coverage(found: Document) -> list[str]:
    covered = (
        f"The catalogue ({counted(found['products'], 'product')}) covers "
        f"{_percent(found['share_of_products'])} of the shop's products, "
        f"{_percent(found['share_of_interactions'])} of its interactions and "
        f"{_percent(found['share_of_sales'])} of its sales"
    )
    lines = ["", covered, f"its fingerprint is {found['fingerprint']}"]
    if found["mapping"] is not None:
        lines += _mapping(found["mapping"])
    if found["retired"]:
        lines.append(
            f"{counted(found['retired'], 'product')} of the shop's the catalogue has retired: "
            "their records count, and nobody is recommended them"
        )
    if found["missing"]:
        verb = "is" if found["missing"] == 1 else "are"
        missing = counted(found["missing"], "product")
        lines.append(f"{missing} of the shop's {verb} not in it; best-selling first:")
        lines += [
            f"  {item['item_id']!r}: {counted(item['sales'], 'sale')}, "
            f"{counted(item['interactions'], 'interaction')}"
            for item in found["most_missed"]
        ]
    if (home := found["at_home"]) is not None and home["products"]:
        lines.append(
            f"At home the shop knows {counted(home['products'], 'product')} besides, by its own "
            f"table: {home['sold']:,} of them sold, {counted(home['sales'], 'sale')} "
            f"({_percent(home['share_of_sales'])}); they are recommended here, and nothing of them "
            "leaves"
        )
    return lines


def _mapping(mapping: Document) -> list[str]:
    """Return what the shop's own numbers were found to be."""
    without = mapping["without_code"]
    mapped, verb = counted(mapping["mapped"], "product"), _verb(mapping["mapped"], "stand")
    lines = [f"by {mapping['label']}, {mapped} of the shop's {verb} for {mapping['onto']:,} in it"]
    lines += [
        f"  {', '.join(map(repr, one['own']))} together are {one['item_id']!r}"
        for one in mapping["merged"]
    ]
    if without["products"]:
        examples = ", ".join(map(repr, without["examples"]))
        lines.append(f"  {counted(without['products'], 'product')} without a code: {examples}")
    return lines


def _history(found: Document) -> str:
    customers = counted(found["customers"], "customer")
    return (
        f"{customers} would train (median {found['median']:g} interactions, "
        f"most {found['most']:,}); {found['with_little']:,} have fewer than 5, "
        f"{found['with_one']:,} only one, {found['without']:,} none that counts"
    )


def _price(price: Document) -> list[str]:
    plan, cost, shop = price["plan"], price["cost"], price["shops"][0]
    cap, spent, after = shop["cap_epsilon"], shop["spent"], shop["after"]
    which = "The plan" if price["given"] else "For example: a plan at half of the shop's cap,"
    share = after["epsilon"] / cap
    costs = (
        f"{which} of {counted(plan['rounds'], 'round')} costs each {cost['unit']} "
        f"ε {epsilon_words(cost)} (δ {cost['delta']:g})"
    )
    budget = (
        f"  [{_bar(spent['epsilon'] / cap, share)}] spent ε {epsilon_words(spent)}, with this plan "
        f"ε {epsilon_words(after)}, cap {cap:g} ({share:.0%})"
    )
    left = (
        "  what is spent never comes back; such a plan still fits "
        f"{_times(shop['whole_runs'])} under the cap"
    )
    return [costs, *_trust(price), budget, left, *_figures(shop["with_figures"])]


def _figures(found: Document | None) -> list[str]:
    """Return what the shop's own figures cost besides, where it releases some."""
    if found is None:
        return []
    line = f"ε {epsilon_words(found)} with it, and it fits {_times(found['whole_runs'])}"
    return [f"  where a run also asks for this shop's figures, as [evaluation] allows: {line}"]


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


def _trust(price: Document) -> list[str]:
    """Return what a plan trusts, where it is not the shop alone."""
    if price["plan"]["trust"] != "federation":
        return []
    names = " and ".join(part["mechanism"] for part in price["cost"]["mechanisms"])
    return [f"  trust federation: in the ledger as {names}", f"  {shares_words(price['plan'])}"]


def _sums(sums: Document | None) -> list[str]:
    if sums is None:
        return ["no [secure_sum] section: runs whose trust is federation are refused"]
    if sums["shops"] is None:
        return []
    return [f"secure sums: a roster of {sums['shops']} shops, digest {sums['digest']}"]


def _stock(stock: Document | None) -> list[str]:
    if stock is None:
        return []
    what = "every product" if stock["products"] is None else counted(stock["products"], "product")
    shops = counted(stock["shops"], "shop")
    line = f"by the published stock table the shop stocks {what}; the table is of {shops}, "
    return [line + f"fingerprint {stock['fingerprint']}"]


def _bar(spent: float, after: float) -> str:
    """Return a budget as a bar: spent, of this plan, left."""
    full = min(round(spent * _BAR), _BAR)
    then = min(max(round(after * _BAR), full), _BAR)
    return "#" * full + "+" * (then - full) + "." * (_BAR - then)


def _verb(number: int, verb: str) -> str:
    return f"{verb}s" if number == 1 else verb


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"
