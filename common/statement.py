"""What a model's privacy promise is, and what it is not: from the public plan alone."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any, Literal

from common.accounting import epsilon, plan_spends
from common.protocol import TrainingPlan

_UNITS = {
    "customer": "one customer of one shop, with all of their records",
    "basket": "one basket (session) of one customer",
    "interaction": "one interaction of one customer with one product",
}
_TRUST = {
    "shop": "each shop makes every update private by itself, whatever the server does with it",
    "federation": "the server sees only the sum over shops; each adds a share of the noise",
}
_ALWAYS = (
    "A person who shops at several shops is one unit in each: their loss adds up over the shops.",
    "Hyperparameters that were tuned on the same data outside this plan are not counted.",
    "Floating point: noise is drawn in 64 bits and added in 32; the bound is for real numbers.",
    "Timing, memory use and availability of a shop.",
    "What a shop shows its own customers, and what it keeps and fits at home.",
    "Other runs: each shop's own ledger counts all of them together.",
)


def statement(
    plan: TrainingPlan,
    *,
    noise: Literal["system", "seeded"] = "system",
    catalogue_from_purchases: bool = False,
) -> dict[str, Any]:
    """Return the privacy statement of the model that a plan trains, as plain JSON values.

    Parameters
    ----------
    noise
        The shops' source of noise.
    catalogue_from_purchases
        Whether the products or the shops themselves were chosen by looking at purchases, as in the
        built-in data sets.

    Returns
    -------
    dict
        ``private``; ``epsilon`` (null without a bound), ``delta``, ``unit``, ``unit_means``,
        ``relation``, ``trust``, ``trust_means``, ``noise``, ``accountant`` (``method``,
        ``upper_bound``), ``mechanisms`` and ``not_covered``.
    """
    if not plan.private:
        return {
            "private": False,
            "epsilon": None,
            "delta": None,
            "unit": None,
            "mechanisms": [],
            "not_covered": ["Everything: this model was trained without differential privacy."],
        }
    cost = epsilon(plan_spends(plan), plan.target_delta)
    return {
        "private": True,
        "epsilon": cost.value if math.isfinite(cost.value) else None,
        "delta": plan.target_delta,
        "unit": plan.unit,
        "unit_means": _UNITS[plan.unit],
        "relation": "add-or-remove",
        "trust": plan.trust,
        "trust_means": _TRUST[plan.trust],
        "noise": noise,
        "accountant": {"method": cost.method, "upper_bound": cost.upper_bound},
        "mechanisms": _mechanisms(plan),
        "not_covered": _not_covered(plan, noise, catalogue_from_purchases),
    }


def render_statement(found: Mapping[str, Any]) -> str:
    """Return a statement as plain text for people."""
    if not found["private"]:
        return "Privacy: none. This model was trained without differential privacy.\n"
    value, accountant = found["epsilon"], found["accountant"]
    promise = f"epsilon {value:.4g}, delta {found['delta']:g}" if value is not None else "no bound"
    reason = "" if value is not None else ": a mechanism adds no noise"
    tightness = ", an upper bound that is not tight" if accountant["upper_bound"] else ""
    meaning = (
        f"Protected: {found['unit_means']}. Whether it was there at all ({found['relation']}) can "
        "hardly be told from what leaves a shop."
    )
    lines = [
        f"Privacy: {promise}, per {found['unit']}{reason}.",
        "",
        meaning,
        f"Trust ({found['trust']}): {found['trust_means']}.",
        f"Accountant: {accountant['method'].upper()}{tightness}.",
        f"Noise: from the shops' {found['noise']} generator.",
        "",
        "Mechanisms, in each shop that takes part:",
        *(_describe(part) for part in found["mechanisms"]),
    ]
    lines += ["", "Not covered:", *(f"- {text}" for text in found["not_covered"])]
    wrapped = (
        textwrap.fill(line, 96, subsequent_indent="  " if line.startswith("-") else "")
        for line in lines
    )
    return "\n".join(wrapped) + "\n"


def _describe(part: Mapping[str, Any]) -> str:
    return (
        f"- {part['mechanism']}: {part['what']}; noise multiplier {part['noise_multiplier']:.4g}, "
        f"sample rate {part['sample_rate']:g} (Poisson), {part['steps']} in all, clipping norm "
        f"{part['max_norm']:g}"
    )


def _mechanisms(plan: TrainingPlan) -> list[dict[str, Any]]:
    histogram, *steps = plan_spends(plan)
    found: list[dict[str, Any]] = [
        {
            "mechanism": "gaussian-histogram",
            "what": f"each {plan.unit}'s distinct products, scaled to norm 1, summed once",
            "noise_multiplier": histogram.noise_multiplier,
            "sample_rate": histogram.sample_rate,
            "steps": histogram.steps,
            "max_norm": 1.0,
        }
    ]
    found += [
        {
            "mechanism": "dp-sgd",
            "what": f"gradients clipped per {plan.unit} over all parameters together",
            "noise_multiplier": spend.noise_multiplier,
            "sample_rate": spend.sample_rate,
            "steps": spend.steps,
            "max_norm": plan.max_grad_norm,
        }
        for spend in steps
    ]
    return found


def _not_covered(plan: TrainingPlan, noise: str, catalogue_from_purchases: bool) -> list[str]:
    found = list(_ALWAYS)
    if plan.unit == "basket":
        found.insert(0, "A customer as a whole: one with n baskets has n times this epsilon.")
    if plan.unit == "interaction":
        found.insert(0, "A customer as a whole: one with n interactions has n times this epsilon.")
    if plan.trust == "federation":
        found.append("Shops that collude with the server beyond the number the plan allows for.")
    if noise == "seeded":
        found.insert(
            0,
            "Anyone who knows the seed: this run drew its noise from one, as simulations do, and "
            "whoever replays it can take the noise off.",
        )
    if catalogue_from_purchases:
        found.append(
            "The catalogue and the shops: in this data set both were built from purchases, and are "
            "taken as given."
        )
    return found
