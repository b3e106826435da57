"""How much of a group's score each of its products has: what sells of it at this shop.

A federation that learns groups of products says nothing of the products in one. A shop of few
purchases knows little of them either: its counts are Poisson, and most are 0 or 1. What is known
of them elsewhere, such as the released popularity with its noise, is the mean of a gamma prior;
how far products stray from it is fitted to the shop's own counts, so a release that noise has
drowned counts little, and an exact one takes over. With the same mean for all products the prior
is that of a shop alone (Efron & Morris 1973 shrink in the same way; Robbins 1956 began it).

All of it is local state: it is made of the shop's own counts.
"""

import numpy as np

from client.home_settings import HomeSettings
from common.blocks import GroupBlock
from common.model import GlobalModel

# Of the mean prior: what a product has of which nothing was sold anywhere.
_FLOOR = 1e-3
# Beyond these the gamma is a point, or says nothing.
_SHAPES = (1e-4, 1e6)


def posterior_counts(
    counts: np.ndarray, prior: np.ndarray, stock: np.ndarray | None = None
) -> np.ndarray:
    """Return (n,) float64 what products sell here: the mean of a gamma-Poisson posterior.

    A count is Poisson around a rate that is gamma with mean ``m`` and shape ``a m^b``; ``a`` and
    ``b`` are those of the greatest likelihood (the counts are negative binomial). The mean is
    ``m (count + shape) / (m + shape)``.

    Parameters
    ----------
    counts
        (n,) customers of each product at this shop.
    prior
        (n,) what each is thought to sell, in any unit; scaled to the shop's total.
    stock
        (n,) bool of what is sold here: of no other product does a count of 0 tell anything. The
        others are taken for products that nobody has bought. Without it, everything is.
    """
    from scipy.optimize import minimize  # Only to fit: asking does without.
    from scipy.special import gammaln

    sold = np.ones(len(counts), bool) if stock is None else stock
    mean = np.maximum(prior.astype(np.float64), 0.0)
    mean = mean + _FLOOR * max(float(mean.mean()), 1e-12)
    total = float(counts[sold].sum())
    if not total:
        return mean
    mean *= total / float(mean[sold].sum())
    seen, expected = counts[sold].astype(np.float64), mean[sold]

    def shape(place: np.ndarray, of: np.ndarray) -> np.ndarray:
        raw = np.exp(np.clip(place[0] + place[1] * np.log(of), -30.0, 30.0))
        return np.asarray(np.clip(raw, *_SHAPES))

    def surprise(place: np.ndarray) -> float:
        own = shape(place, expected)
        likelihood = gammaln(seen + own) - gammaln(own)
        likelihood += own * np.log(own / (own + expected))
        likelihood += seen * np.log(expected / (own + expected))
        return -float(likelihood.sum())

    found = minimize(surprise, np.zeros(2), method="Nelder-Mead", options={"maxiter": 200}).x
    own = shape(found, mean)
    here = np.where(sold, counts, 0.0)
    posterior: np.ndarray = mean * (here + own) / (mean + own)
    return posterior


def product_shares(
    model: GlobalModel, counts: np.ndarray, settings: HomeSettings, stock: np.ndarray | None
) -> np.ndarray | None:
    """Return (n,) float32 what each product weighs in its group; None where a setting says less.

    See :attr:`client.home_settings.HomeSettings.share_prior`; the parameters are those of
    :func:`posterior_counts`.
    """
    if not settings.share_prior:
        return None
    released = settings.share_prior == "released"
    prior = model.popularity_part if released else np.ones(len(counts))
    weight = posterior_counts(counts, prior, stock)
    weight /= max(float((weight if stock is None else weight[stock]).mean()), 1e-12)
    shares: np.ndarray = (weight**settings.share_exponent).astype(np.float32)
    return shares


def dealt(model: GlobalModel, shares: np.ndarray | None) -> GlobalModel:
    """Return the model with its groups' scores dealt to products by (n,) shares.

    A model without groups of even weights comes back as it is.
    """
    block = model.block
    if shares is None or not isinstance(block, GroupBlock) or model.plan.group_weights != "even":
        return model
    return model.around(block.with_weights(shares))
