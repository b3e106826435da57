"""What a privacy promise is, and what it is not, in words and as plain JSON values.

The model's statement (:func:`statement`) follows from the public plan alone and goes into its
manifest. A shop's own follows from its ledger and stays at home (``client.statement``); both are
made of the same parts.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

from common.accounting import Epsilon, epsilon, plan_spends
from common.protocol import Noise, TrainingPlan
from common.wording import counted

UNITS = {
    "customer": "one customer of one shop, with all of their records",
    "basket": "one basket (session) of one customer",
    "interaction": "one interaction of one customer with one product",
}
TRUST = {
    "shop": "each shop makes every update private by itself, whatever the server does with it",
    "federation": "the server sees only the sum over shops; each adds a share of the noise",
}
NOISES = {
    "system": "drawn in each shop from the keystream of AES-256 in counter mode, under a key from "
    "the operating system that never leaves the process",
    "seeded": "drawn from a seed, as simulations do: it can be replayed",
}
_SHARED = (
    "drawn in each shop by an exact sampler of the discrete Gaussian (OpenDP), from the operating "
    "system's generator"
)
RELEASES = {
    "gaussian-histogram": "each unit's distinct products, scaled to norm 1, summed once",
    "dp-sgd": "gradients clipped per unit over all parameters together",
    "shared-gaussian-histogram": "each unit's distinct products, scaled to norm 1 and cut to whole "
    "steps, summed over shops once",
    "shared-gaussian-step": "gradients clipped per unit over all parameters together and cut to "
    "whole steps, summed over shops",
    "gaussian-evaluation": "how well the released model and popularity foresee each customer's "
    "last products, figures and counts scaled to norm 1, summed once",
}
_SEVERAL_SHOPS = (
    "A person who shops at several shops is one unit in each: their loss adds up over the shops."
)
_TUNED = "Hyperparameters that were tuned on the same data outside this plan are not counted."
_FLOATING_POINT = (
    "Floating point: the bound is for real numbers. Clipped contributions are summed in 64 bits "
    "and rounded to 32 once a step, which blunts attacks that drive sums of neighbouring data "
    "apart (Casacuberta et al. 2022). Noise is made in 64 bits before it is added, and what leaves "
    "is rounded to a fixed grid that no data choose, which blunts those that read data off the "
    "lowest bits of noisy values (Mironov 2012). Neither is a proof, as an exact discrete Gaussian "
    "would be."
)
_NOISE_SHARES = (
    "Sums with fewer honest shops' noise than the plan's number of honest survivors, which is what "
    "each shop's share of it follows from: more shops that collude with the observer than the plan "
    "allows for. A shop that sees its own model released knows its own share of the noise."
)
_TIMING = "Timing, memory use and availability of a shop."
_AT_HOME = "What a shop shows its own customers, and what it keeps and fits at home."
_OTHER_RUNS = (
    "Other runs, rounds of this one that broke off and were done again, and figures that a shop "
    "releases at a price of its own: each shop's own ledger counts all of them together."
)
_SAMPLED_RUNS = (
    "Runs that were planned in view of what earlier ones had released, since steps of some are "
    "sampled: for all of them together the bound is proven for plans that were fixed beforehand. "
    "Within one plan whose rounds are done once, and for runs of which none is or could have been "
    "sampled under one cap, it holds whatever was seen before."
)
_DATES = (
    "The plan's dates: in this simulation they follow from the times of the first and last record "
    "of all shops, which one customer more may be the one to have. A deployment's plan names them."
)
_OTHER_UNITS = (
    "Releases for another unit than the one that an epsilon is of: each counts those that were "
    "made for its own unit alone. What leaves for customers tells of their baskets and "
    "interactions too, and what leaves for these of their customer."
)
_SEEDED = (
    "Anyone who knows the seed: noise was drawn from one, as simulations do, and whoever replays "
    "it can take the noise off."
)
_WIDTH = 96
# Digits of an epsilon in words.
_DIGITS = 4
# From here on e^epsilon is no number that tells anybody anything.
_LARGEST_EXPONENT = 30.0
#: What the words of a statement that lacks something, or holds something else, end with.
UNREADABLE = (ArithmeticError, AttributeError, KeyError, TypeError, ValueError)


def statement(
    plan: TrainingPlan,
    *,
    noise: Noise = "system",
    catalogue_from_purchases: bool = False,
    dates_from_records: bool = False,
    earlier: Sequence[TrainingPlan] = (),
) -> dict[str, Any]:
    """Return the privacy statement of the model that a plan trains, as plain JSON values.

    Parameters
    ----------
    noise
        The shops' source of noise.
    earlier
        Plans of the runs that the model was trained in before, the first one first. It holds what
        all of them learned, so all of them count.
    catalogue_from_purchases
        Whether the products or the shops themselves were chosen by looking at purchases, as in the
        built-in data sets.
    dates_from_records
        Whether dates of the plan were worked out from the records' own times.

    Returns
    -------
    dict
        ``private``; ``epsilon`` (null without a bound), ``delta``, ``unit``, ``unit_means``,
        ``relation``, ``trust``, ``trust_means``, ``noise``, ``noise_means``, ``rounds``,
        ``accountant`` (``method``, ``upper_bound``), ``mechanisms`` and ``not_covered``; under
        trust ``federation`` ``honest_shops`` and ``colluding_shops``; with ``earlier``, ``rounds``
        and ``mechanisms`` are those of all runs, and ``runs`` says how many.
    """
    plans = [*earlier, plan]
    if not all(each.private for each in plans):
        return {
            "private": False,
            "epsilon": None,
            "delta": None,
            "unit": None,
            "mechanisms": [],
            "not_covered": ["Everything: this model was trained without differential privacy."],
        }
    cost = epsilon([spend for each in plans for spend in plan_spends(each)], plan.target_delta)
    return {
        "private": True,
        **promise(cost, plan.target_delta, plan.unit),
        **_trust(plans),
        "noise": noise,
        "noise_means": noise_means(noise, [each.trust for each in plans]),
        "rounds": sum(each.rounds for each in plans),
        **({"runs": len(plans)} if earlier else {}),
        "mechanisms": [part for each in plans for part in _mechanisms(each)],
        "not_covered": not_covered(
            [each.unit for each in plans],
            [each.trust for each in plans],
            [noise],
            catalogue_from_purchases=catalogue_from_purchases,
            dates_from_records=dates_from_records,
            this_run_only=True,
            sampled_runs=len(plans) > 1
            and any(each.sample_rate < 1 and each.rounds > 0 for each in plans),
        ),
    }


def _trust(plans: Sequence[TrainingPlan]) -> dict[str, Any]:
    """Return whom the promise has to trust, and what each shop's share of a sum follows from.

    Of all runs that a model holds: one of secure sums among them, and it rests on what sums rest
    on. Of several the fewest shops are named, on which nobody counts in vain.
    """
    sums = [plan for plan in plans if plan.trust == "federation"]
    if not sums:
        return {"trust": "shop", "trust_means": TRUST["shop"]}
    honest = min(plan.honest_shops for plan in sums)
    colluding = min(plan.colluding_shops for plan in sums)
    few = min(honest, *(plan.honest_stockers for plan in sums))
    means = (
        f"{TRUST['federation']}. Nothing is unmasked unless {honest} shops that do not collude "
        f"with whoever looks at the sum are in it, though {colluding} that do may be. Where a "
        f"stock table is published, a product's row may be of fewer of them, {few} at least, with "
        "as much noise"
    )
    if len(sums) < len(plans):
        means += f". So in {len(sums)} of {len(plans)} runs; in the others {TRUST['shop']}"
    return {
        "trust": "federation",
        "trust_means": means,
        "honest_shops": honest,
        "colluding_shops": colluding,
    }


def noise_means(noise: str, trusts: Iterable[str]) -> str:
    """Return in words where noise comes from, under these kinds of trust."""
    trusts = set(trusts)
    if noise != "system" or "federation" not in trusts:
        return NOISES.get(noise, noise)
    return _SHARED if trusts == {"federation"} else f"{NOISES[noise]}; in secure sums {_SHARED}"


def promise(cost: Epsilon, delta: float, unit: str) -> dict[str, Any]:
    """Return the part of a statement that says how much, of what, and by which accountant."""
    return {
        "epsilon": cost.value if math.isfinite(cost.value) else None,
        "delta": delta,
        "unit": unit,
        "unit_means": UNITS.get(unit, unit),
        "relation": "add-or-remove",
        "accountant": {"method": cost.method, "upper_bound": cost.upper_bound},
    }


def not_covered(
    units: Iterable[str],
    trusts: Iterable[str],
    noises: Iterable[str],
    *,
    catalogue_from_purchases: bool = False,
    dates_from_records: bool = False,
    this_run_only: bool = False,
    sampled_runs: bool,
) -> list[str]:
    """Return what a promise does not say, the gravest first.

    Parameters
    ----------
    sampled_runs
        Whether it is of several runs, or of rounds that were done again, and any has steps on
        samples of the units: one is enough, for how its noise and rate trade off can follow from
        what the others released.
    """
    units = set(units)
    found = [_SEEDED] if "seeded" in noises else []
    found += [_OTHER_UNITS] if len(units) > 1 else []
    found += [
        f"A customer as a whole: one with n {unit}s has n times this epsilon only at a larger "
        "delta, of (e^(n epsilon) - 1) / (e^epsilon - 1) times this one. At this delta it is more "
        "than n times: noise that hides one shift hides n at once by far less."
        for unit in ("basket", "interaction")
        if unit in units
    ]
    trusts = set(trusts)
    found += [_SEVERAL_SHOPS, _TUNED]
    if sampled_runs:
        found.append(_SAMPLED_RUNS)
    if trusts != {"federation"}:
        # Sums of whole numbers with discrete noise have no lowest bits to read.
        found.append(_FLOATING_POINT)
    found += [_TIMING, _AT_HOME]
    if this_run_only:
        found.append(_OTHER_RUNS)
    if "federation" in trusts:
        found.append(_NOISE_SHARES)
    if catalogue_from_purchases:
        found.append(
            "The catalogue and the shops: in this data set both were built from purchases, and are "
            "taken as given."
        )
    if dates_from_records:
        found.append(_DATES)
    return found


def render_statement(found: Mapping[str, Any]) -> str:
    """Return a model's statement as plain text for people."""
    if not found["private"]:
        return "Privacy: none. This model was trained without differential privacy.\n"
    return wrapped(
        [
            f"Privacy: {promise_words(found)}.",
            "",
            protected_words(found),
            f"Trust ({found['trust']}): {found['trust_means']}.",
            f"Accountant: {accountant_words(found)}.",
            f"Noise ({found['noise']}): {found['noise_means']}.",
            "",
            f"Mechanisms, in each shop that takes part, over {_rounds(found)}:",
            *(mechanism_words(part) for part in found["mechanisms"]),
            "",
            "Not covered:",
            *(f"- {text}" for text in found["not_covered"]),
        ]
    )


def any_statement(found: Mapping[str, Any]) -> str:
    """Return :func:`render_statement` of whatever a model was published with by force."""
    try:
        return render_statement(found)
    except UNREADABLE:
        return "Privacy: this model's statement is incomplete; as JSON it shows what it has.\n"


def _rounds(found: Mapping[str, Any]) -> str:
    rounds = counted(found["rounds"], "round")
    if "runs" not in found:
        return rounds
    return f"{rounds} of {found['runs']} runs, each of which went on from the one before"


def at_most(value: float) -> str:
    """Return a number in four digits that are not below it: what was spent is never less."""
    return _in_digits(value, ROUND_CEILING)


def at_least(value: float) -> str:
    """Return a number in four digits that are not above it: what is left is never more."""
    return _in_digits(value, ROUND_FLOOR)


def _in_digits(value: float, rounding: str) -> str:
    """Return a number in four digits; :class:`float`'s own way rounds to the nearest."""
    if not math.isfinite(value):
        return f"{value:g}"
    return f"{float(Context(_DIGITS, rounding).plus(Decimal(str(value)))):.{_DIGITS}g}"


def promise_words(found: Mapping[str, Any]) -> str:
    """Return ε, δ and the unit in words."""
    if found["epsilon"] is None:
        return f"no bound, per {found['unit']}: a mechanism adds no noise"
    bound = "at most " if found["accountant"]["upper_bound"] else ""
    epsilon_words = f"epsilon {bound}{at_most(found['epsilon'])}"
    return f"{epsilon_words}, delta {found['delta']:g}, per {found['unit']}"


def protected_words(found: Mapping[str, Any]) -> str:
    """Return what is protected in words, and what that means."""
    protected = f"Protected: {found['unit_means']}"
    if found["epsilon"] is None:
        return (
            f"{protected}. But nothing bounds what can be told of it from what leaves a shop: a "
            "mechanism adds no noise."
        )
    times = "e^epsilon"
    if found["epsilon"] < _LARGEST_EXPONENT:
        times += f" = {at_most(math.exp(found['epsilon']))}"
    return (
        f"{protected}. With it or without it ({found['relation']}), whatever may leave a shop is "
        f"no more than {times} times as likely, and delta more."
    )


def accountant_words(found: Mapping[str, Any]) -> str:
    """Return the accountant, and whether its bound is known not to be tight."""
    accountant = found["accountant"]
    tightness = ", an upper bound that is not tight" if accountant["upper_bound"] else ""
    return f"{accountant['method'].upper()}{tightness}"


def mechanism_words(part: Mapping[str, Any]) -> str:
    """Return one mechanism as an item of a list."""
    norms = " then ".join(f"{norm:g}" for norm in part["max_norms"])
    return (
        f"- {part['mechanism']}: {part['what']}; noise multiplier {part['noise_multiplier']:.4g}, "
        f"sample rate {part['sample_rate']:g} (Poisson), {part['steps']} in all, clipping norm "
        f"{norms}"
    )


def wrapped(lines: Sequence[str]) -> str:
    """Return lines broken to a readable width, items of lists with a hanging indent."""
    return (
        "\n".join(
            textwrap.fill(line, _WIDTH, subsequent_indent="  " if line.startswith("-") else "")
            for line in lines
        ).rstrip("\n")
        + "\n"
    )


def mechanism(
    name: str, noise_multiplier: float, sample_rate: float, steps: int, norms: Iterable[float]
) -> dict[str, Any]:
    """Return one mechanism of a statement; ``norms`` are those of its clipping, in order."""
    return {
        "mechanism": name,
        "what": RELEASES.get(name, name),
        "noise_multiplier": noise_multiplier,
        "sample_rate": sample_rate,
        "steps": steps,
        "max_norms": list(dict.fromkeys(norms)),
    }


def _mechanisms(plan: TrainingPlan) -> list[dict[str, Any]]:
    histogram, *steps = plan_spends(plan)
    norms = [plan.clipping_norm(server_round) for server_round in plan.unlike_rounds]
    names = ("gaussian-histogram", "dp-sgd")
    if plan.trust == "federation":
        names = ("shared-gaussian-histogram", "shared-gaussian-step")
    parts = [(names[0], histogram, [1.0]), *((names[1], s, norms) for s in steps)]
    return [
        mechanism(name, spend.noise_multiplier, spend.sample_rate, spend.steps, clipped)
        for name, spend, clipped in parts
    ]
