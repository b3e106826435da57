"""``report.html``: the report to look at, one file that asks no other for anything."""

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from simulations.audit.section import audit_section
from simulations.documents import Document
from simulations.report import answer, plots
from simulations.report.draws import shown
from simulations.report.glossary import words_of
from simulations.report.tables import HEADINGS, all_cells

#: What ε leaves out, whatever the run: said on every page with a private arm.
NOT_COVERED = (
    (
        "What a shop shows its own customers. ε covers what leaves a shop: home adaptation mixes "
        "the released model with the shop's own records in clear."
    ),
    "How customers came to their merchant, the catalogue, and what a shop stocks: taken as public.",
    (
        "Where training ends, unless split.train_until says it, and where validation weeks begin: "
        "that follows from the times of the first and last record of all shops, which may be one "
        "customer's. In a deployment the operator's plan names its dates."
    ),
    "Timing, memory use, and whether a shop answers at all.",
    "One person at several shops: they are one unit at each, and their ε adds up.",
    (
        "The figures on this page. They are computed from the analyst's own tables, outside every "
        "message, and are data about customers."
    ),
    (
        "Noise here is seeded, so that a run can be repeated: whoever knows the seed can subtract "
        "it. A deployment draws it from the operating system."
    ),
)
_UNITS = {
    "customer": "One unit is one customer of one shop with all of their records: the releases look "
    "nearly the same whether that customer is in the shop's data or not.",
    "basket": "One unit is one basket. A customer with n baskets has more than n "
    "times this ε at the same δ.",
    "interaction": "One unit is one interaction, and only popularity and bias are released. A "
    "customer with n interactions has more than n times this ε at the same δ.",
}
_TRUST = {
    "shop": "Every update is private by itself, whatever the server does with it.",
    "federation": "The server sees only the sum of the shops' updates. The promise needs the "
    "plan's minimum of shops to survive and not to collude with an observer.",
}


def render_report(document: Document) -> str:
    """Return the page of a run's report."""
    arms = {name: shown(arm) for name, arm in document["arms"].items()}
    return render(
        "report.html.j2",
        document=document,
        figures=plots.report_figures(document),
        headings=HEADINGS,
        rows=all_cells(document["arms"]),
        words=words_of(arms),
        more={name: _more_cells(arm) for name, arm in arms.items()},
        quintiles={
            name: [answer.number(v) for v in a["quintiles"]["ndcg@20"]] for name, a in arms.items()
        },
        fifths=plots.FIFTHS,
        shops=_shop_rows(arms),
        shop_arms=_shop_arms(arms),
        drawn=[name for name, arm in arms.items() if arm.get("draws")],
        private=_promises(arms),
        not_covered=NOT_COVERED,
        audit=audit_section(document.get("audit")),
        data=facts(document["data"]),
        machine=facts(document["machine"]),
        experiment=json.dumps(document["experiment"], indent=2, ensure_ascii=False),
    )


def render_comparison(comparison: Document) -> str:
    """Return the page that puts runs side by side."""
    return render(
        "compare.html.j2",
        comparison=comparison,
        figures=plots.comparison_figures(comparison),
        headings=HEADINGS,
        rows=[
            (run["name"], name, cells)
            for run in comparison["runs"]
            for name, cells in all_cells(run["arms"]).items()
        ],
    )


def render(template: str, **values: Any) -> str:  # noqa: ANN401 - a template's values
    """Return a page of this package's templates, with plotly.js in it."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=PackageLoader("simulations"),
    )
    return environment.get_template(template).render(plotly=get_plotlyjs(), **values)


def _promises(arms: Mapping[str, Document]) -> dict[str, list[str]]:
    """Return what each private arm promises; arms that promise the same share one entry."""
    names: dict[tuple[str, ...], list[str]] = {}
    for name, arm in arms.items():
        if arm["privacy"]:
            names.setdefault(tuple(_promise(arm["privacy"])), []).append(name)
    return {", ".join(sharing): list(promise) for promise, sharing in names.items()}


def _promise(privacy: Document) -> list[str]:
    words = answer.privacy_words(privacy)
    return [
        (
            f"The largest over all shops, every release of this run included: {words}. It is what "
            "the shops' own ledgers add up to."
        ),
        _UNITS.get(privacy["unit"], ""),
        _TRUST.get(privacy["trust"], ""),
    ]


def _more_cells(arm: Document) -> tuple[str, ...]:
    metrics = arm["metrics"]
    return (
        answer.number(metrics["recall@20"]),
        answer.number(metrics["tail_recall@20"]),
        answer.number(metrics["coverage@20"], 3),
        answer.number(metrics["tail_share@20"], 3),
        answer.number(metrics["gini@20"], 3),
        answer.number(arm["seconds"], 1),
        answer.number(arm["peak_mb"], 0),
    )


def _shop_arms(arms: Mapping[str, Document]) -> list[str]:
    return [name for name in ("federated", "federated-dp") if name in arms]


def _shop_rows(arms: Mapping[str, Document]) -> list[tuple[str, list[str]]]:
    """Return a row for each merchant: customers, local, then each federated arm."""
    local = arms.get("local", {"per_shop": {}})["per_shop"]
    merchants = sorted({key for arm in arms.values() for key in arm["per_shop"]})
    rows = []
    for key in merchants:
        anywhere = next(arm["per_shop"][key] for arm in arms.values() if key in arm["per_shop"])
        own = local.get(key, {})
        cells = [
            str(anywhere["customers"]),
            str(anywhere["customers_with_targets"]),
            answer.number(own.get("ndcg@20")),
            answer.number(own.get("tail_ndcg@20")),
        ]
        for name in _shop_arms(arms):
            cells += _shop_cells(arms[name]["per_shop"].get(key))
        rows.append((key, cells))
    return rows


def _shop_cells(shop: Document | None) -> list[str]:
    if shop is None:
        return [answer.DASH] * 3 + ["not in this arm"]
    gains = shop["vs_local"] or {}
    state = "yes" if shop["took_part"] else "no"
    return [
        answer.interval(gains.get("ndcg@20")),
        answer.interval(gains.get("tail_ndcg@20")),
        answer.spent(shop["epsilon"]),
        f"{state}: {shop['reason']}" if shop["reason"] else state,
    ]


def facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return nested facts as flat (name, text) pairs."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            pairs += [(f"{key}.{name}", text) for name, text in facts(value)]
        else:
            pairs.append((key, f"{value:,}" if isinstance(value, int) else str(value)))
    return pairs
