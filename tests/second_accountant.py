"""Google's ``dp-accounting``, which nothing of ours asks: what our ε is held against."""

from collections import Counter
from collections.abc import Iterable, Sequence

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant

from common.accountants.composition import ORDERS
from common.accounting import Spend

# Beyond these its numerical accountant (PLD) takes minutes, and its Rényi bound has to do.
_LARGEST_EPSILON, _MOST_SEGMENTS = 60.0, 12


def second_opinion(spends: Iterable[Spend], delta: float) -> float:
    """Return ε: by PLD, or RDP where PLD is too slow."""
    steps: Counter[tuple[float, float]] = Counter()
    for spend in spends:
        if spend.steps:
            steps[spend.noise_multiplier, spend.sample_rate] += spend.steps

    def ask(accountant: PLDAccountant | RdpAccountant) -> float:
        for (sigma, rate), count in steps.items():
            gaussian = GaussianDpEvent(sigma)
            accountant.compose(
                gaussian if rate == 1 else PoissonSampledDpEvent(rate, gaussian), count
            )
        return float(accountant.get_epsilon(delta))

    if not steps:
        return 0.0
    bound = ask(RdpAccountant(orders=[float(order) for order in ORDERS if order % 1 == 0]))
    if len(steps) > _MOST_SEGMENTS or not bound <= _LARGEST_EPSILON:
        return bound
    return ask(PLDAccountant(value_discretization_interval=1e-4))


def second_opinion_if_added(spends: Iterable[Spend], delta: float, mesh: float = 1e-4) -> float:
    """Return ε by PLD of a unit added; :func:`second_opinion` takes the dearer of both."""
    losses = [
        pld.from_gaussian_mechanism(
            s.noise_multiplier, sampling_prob=s.sample_rate, value_discretization_interval=mesh
        ).self_compose(s.steps)
        for s in spends
    ]
    total = losses[0]
    for loss in losses[1:]:
        total = total.compose(loss)
    return float(total._pmf_add.get_epsilon_for_delta(delta))


def second_opinion_on_sums(
    noise_steps: int, multipliers: Sequence[float], delta: float, mesh: float = 1e-4
) -> float:
    """Return ε of sums with discrete Gaussian noise, by an analysis of that noise itself.

    For a unit whose contribution is one coordinate of ``noise_steps``, under one discrete Gaussian
    of the whole variance: what the shares' sum is but for a factor of ``1 + 10^-250``.
    """
    losses = [
        pld.from_discrete_gaussian_mechanism(
            sigma * noise_steps, sensitivity=noise_steps, value_discretization_interval=mesh
        )
        for sigma in multipliers
    ]
    total = losses[0]
    for loss in losses[1:]:
        total = total.compose(loss)
    return float(total.get_epsilon_for_delta(delta))
