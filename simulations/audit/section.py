"""What an audit's document looks like: its words, the cells of its tables and its plots."""

from html import escape

import plotly.graph_objects as go

from common.wording import counted
from simulations.documents import Document
from simulations.report.answer import DASH, number, spent
from simulations.report.plots import COLOURS, html

#: The steps that shops run; all others have a mistake planted.
SOUND = ("exact", "training", "shared")
_DASHES = {"updates": "solid", "model": "dash"}
# One in so many points of a curve has its interval drawn.
_BARRED = 6
_MISTAKE = "#c23b3b"
_SOUND = "#1a8f5a"

CANARIES = ("ε claimed", "ε refuted below", "right", "guesses", "canaries", "verdict")
MEMBERSHIP = ("told from", "ε", "AUC", "TPR at 1% FPR", "models", "in", "out", "above the bound")
RECOVERY = ("ε", "customers", "shops", "precision", "recall", "precision by popularity alone")

#: What an audit cannot say.
LIMITS = (
    "An audit refutes claims; it proves none. A lower bound of 0 means that these guesses failed.",
    "Of the claims of all sound steps together, one in twenty may be refuted by chance.",
    (
        "ε is promised for a customer added or removed. To change one product in a history is one "
        "of each, so attacks on a single product are held against twice that ε."
    ),
    (
        "The membership attacker knows every candidate's records and all else in the shop. Without "
        "that, attacks are weaker."
    ),
    (
        "Intervals take a model for the cluster: candidates of one model share its noise and each "
        "other, and only between models all is drawn anew. Candidates are the same in all models, "
        "so the figures are of these shops."
    ),
    (
        "Each interval is of one figure. Of many points of a curve that touched their bound some "
        "would lie above it by chance; and of a rate of exactly 0 or 1 no spread between models is "
        "seen: its interval is that of independent decisions, too narrow where those of a model go "
        "together."
    ),
)


def audit_section(audit: Document | None) -> Document | None:
    """Return what the template shows of an audit; None where a run was not audited."""
    if audit is None:
        return None
    return {
        "sentences": audit_words(audit),
        "limits": LIMITS,
        "canaries": (CANARIES, [_canary(r) for r in audit["canaries"]]),
        "membership": (MEMBERSHIP, [_member(r) for r in audit["membership"]]),
        "recovery": (RECOVERY, [_recovered(r) for r in audit["recovery"]]),
        "figures": _figures(audit),
    }


def verdict(audit: Document) -> str:
    """Return ``no`` if a claim of what shops run was refuted or an attack broke a bound."""
    sound = [r for r in audit["canaries"] if r["step"] in SOUND]
    broken = any(r["refuted"] for r in sound) or any(
        r["bound_violations"] or r["curve_violations"] for r in _private(audit)
    )
    weak = any(not r["refuted"] for r in audit["canaries"] if r["step"] not in SOUND)
    return "no" if broken else "mixed" if weak else "yes"


def audit_words(audit: Document) -> list[str]:
    """Return what the audit found, in plain words."""
    sound = [r for r in audit["canaries"] if r["step"] in SOUND]
    planted = [r for r in audit["canaries"] if r["step"] not in SOUND]
    refuted = sum(r["refuted"] for r in sound)
    caught = sum(r["refuted"] for r in planted)
    words = [
        f"{refuted or 'None'} of {counted(len(sound), 'claim')} of the deployed step and round "
        f"{'were' if refuted > 1 else 'was'} refuted by canaries, at "
        f"{sound[0]['confidence']:.0%} confidence each; of the steps with a planted mistake, "
        f"{caught} of {counted(len(planted), 'claim')} {'was' if caught == 1 else 'were'}."
        if sound
        else "No claim was put to canaries."
    ]
    words += [
        f"Who is a customer, told from a shop's updates under {_arm(record)}: AUC "
        f"{_between(record, 'auc')}."
        for record in audit["membership"]
        if record["surface"] == "updates" and record["level"] == "customer"
    ]
    private = _private(audit)
    above = sum(r["bound_violations"] + r["curve_violations"] for r in private)
    if private:
        words.append(
            f"{counted(above, 'point') if above else 'No point'} of {len(private)} ROC curves "
            f"under federated-dp {'lie' if above > 1 else 'lies'} above what its promise allows."
        )
    words += [
        f"Products of a lone customer read off one update under {_arm(record)}: precision "
        f"{number(record['precision'], 2)}, recall {number(record['recall'], 2)}; guessing by "
        f"popularity elsewhere has precision {number(record['prior_precision'], 2)}."
        for record in audit["recovery"]
        if record["customers"] == 1
    ]
    return words


def _private(audit: Document) -> list[Document]:
    return [r for r in audit["membership"] if r["epsilon"] is not None]


def _arm(record: Document) -> str:
    if record["epsilon"] is None:
        return str(record["arm"])
    return f"{record['arm']} (ε = {spent(record['epsilon'])})"


def _between(record: Document, name: str) -> str:
    value, low, high = (number(record[name + end], 3) for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"


def _canary(record: Document) -> tuple[str, list[str]]:
    sound = record["step"] in SOUND
    words = {
        (True, False): "holds",
        (True, True): "refuted",
        (False, True): "mistake found",
        (False, False): "mistake not found",
    }[sound, record["refuted"]]
    return record["step"], [
        spent(record["claimed_epsilon"]),
        number(record["lower_bound"], 2),
        str(record["correct"]),
        str(record["guesses"]),
        f"{record['canaries']:,}",
        words,
    ]


def _member(record: Document) -> tuple[str, list[str]]:
    private = record["epsilon"] is not None
    violations = record["bound_violations"] + record["curve_violations"] if private else DASH
    return f"{record['arm']}: {record['level']}", [
        {"updates": "updates", "model": "the model"}[record["surface"]],
        spent(record["epsilon"]),
        _between(record, "auc"),
        _between(record, "tpr_at_1_fpr"),
        str(record["models"]),
        f"{record['members']:,}",
        f"{record['others']:,}",
        f"{violations} of {len(record['roc'])} points" if private else DASH,
    ]


def _recovered(record: Document) -> tuple[str, list[str]]:
    return record["arm"], [
        spent(record["epsilon"]),
        str(record["customers"]),
        str(record["shops"]),
        _between(record, "precision"),
        _between(record, "recall"),
        _between(record, "prior_precision"),
    ]


def _figures(audit: Document) -> list[tuple[str, str, str]]:
    found = [
        (
            "What canaries refute",
            (
                "Lower bound on ε against the ε claimed. Above the line a claim is refuted: what "
                "shops run must stay below, the planted mistakes should lie above."
            ),
            _bounds(audit["canaries"]),
        ),
        *(
            (
                f"Membership, level {level}",
                (
                    "Members found against others taken for members, log scales; bars are 95% "
                    "intervals. Dotted: the most that the promise allows."
                ),
                _roc([r for r in audit["membership"] if r["level"] == level]),
            )
            for level in ("customer", "interaction")
        ),
        (
            "A customer's products from one update",
            "Precision by customers in the shop; popularity alone in grey. Bars: 95% intervals.",
            _recovery(audit["recovery"]),
        ),
    ]
    return [(title, words, fragment) for title, words, fragment in found if fragment]


def _bounds(canaries: list[Document]) -> str:
    figure = go.Figure()
    for step in dict.fromkeys(r["step"] for r in canaries):
        points = [r for r in canaries if r["step"] == step]
        # The line goes from point to point: claims may be given in any order.
        points.sort(key=lambda record: float(record["claimed_epsilon"]))
        figure.add_scatter(
            x=[r["claimed_epsilon"] for r in points],
            y=[r["lower_bound"] for r in points],
            name=escape(step),
            mode="lines+markers",
            line={"color": _SOUND if step in SOUND else _MISTAKE},
            marker={"symbol": _SYMBOLS.get(step, "circle"), "size": 9},
        )
    if canaries:
        top = max(r["claimed_epsilon"] for r in canaries)
        figure.add_scatter(
            x=[0, top],
            y=[0, top],
            name="claimed",
            mode="lines",
            line={"dash": "dot", "color": "#444"},
        )
    return html(figure, x="ε claimed", y="lower bound on ε")


_SYMBOLS = {
    "exact": "circle",
    "training": "diamond",
    "clipping-per-table": "x",
    "table-without-noise": "square",
    "half-noise": "triangle-up",
}


def _roc(records: list[Document]) -> str:
    figure = go.Figure()
    shades: dict[str, str] = {}
    for record in records:
        arm = _arm(record)
        first = COLOURS.get(record["arm"], "#777")
        shades.setdefault(arm, first if first not in shades.values() else "#c98a00")
        # A log axis has no 0: the curve begins where somebody is called a member.
        points = [p for p in record["intervals"] if p["fpr"] and p["tpr"]]
        barred = [k % _BARRED == 0 for k in range(len(points))]
        figure.add_scatter(
            x=[p["fpr"] for p in points],
            y=[p["tpr"] for p in points],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": _where(barred, [p["tpr_high"] - p["tpr"] for p in points]),
                "arrayminus": _where(barred, [p["tpr"] - p["tpr_low"] for p in points]),
                "thickness": 1,
                "width": 0,
            },
            name=escape(f"{arm}, {record['surface']}"),
            mode="lines",
            line={"color": shades[arm], "dash": _DASHES[record["surface"]]},
        )
        if record["epsilon"] is not None and record["surface"] == "updates":
            curve = [(x, y) for x, y in record["curve"] if x > 0]
            figure.add_scatter(
                x=[x for x, _ in curve],
                y=[y for _, y in curve],
                name=escape(f"allowed at ε = {spent(record['epsilon'])}"),
                mode="lines",
                line={"color": shades[arm], "dash": "dot", "width": 1},
            )
    figure.update_xaxes(type="log", range=[-3, 0])
    figure.update_yaxes(type="log", range=[-3, 0.02])
    return html(figure, x="others called members (FPR)", y="members found (TPR)", height=460)


def _where(chosen: list[bool], values: list[float]) -> list[float]:
    return [value if shown else 0.0 for shown, value in zip(chosen, values, strict=True)]


def _recovery(records: list[Document]) -> str:
    figure = go.Figure()
    for arm in dict.fromkeys(r["arm"] for r in records):
        points = [r for r in records if r["arm"] == arm]
        figure.add_bar(
            x=[str(r["customers"]) for r in points],
            y=[r["precision"] for r in points],
            error_y=_bars(points, "precision"),
            name=escape(arm),
            marker_color=COLOURS.get(arm, "#777"),
        )
    known = [r for r in records if r["arm"] == records[0]["arm"]]
    figure.add_bar(
        x=[str(r["customers"]) for r in known],
        y=[r["prior_precision"] for r in known],
        error_y=_bars(known, "prior_precision"),
        name="by popularity elsewhere",
        marker_color=COLOURS["popularity"],
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(range=[0, 1.02])
    return html(figure, x="customers in the shop", y="precision") if records else ""


def _bars(records: list[Document], name: str) -> Document:
    return {
        "type": "data",
        "symmetric": False,
        "array": [r[f"{name}_high"] - r[name] for r in records],
        "arrayminus": [r[name] - r[f"{name}_low"] for r in records],
        "thickness": 1,
    }
