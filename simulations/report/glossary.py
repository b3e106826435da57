"""What the page's words mean, for who reads nothing else."""

from collections.abc import Iterable

_ARMS = {
    "popularity": "what sells most in each shop",
    "local": "one shop's own records and public product data: what a shop has by itself",
    "home-only": "what a shop fits at home, around a model that no federation has trained",
    "centralized": "all records in one place, which nobody is allowed: the ceiling",
    "federated": "all shops through the federation, without privacy, then fitted at each shop",
    "federated-dp": "federated, where all that leaves a shop hides each customer behind noise",
    "federated-global": "federated's model as it is, without what shops fit at home",
    "federated-dp-global": "federated-dp's model as it is, without what shops fit at home",
}
_FIGURES = {
    "ndcg@20": "how many of the products that a customer first came to in the test period are "
    "among the 20 recommended, and how near the top: from 0 to 1, a mean over customers",
    "recall@20": "the share of those products (of 20 at most) that is among the 20",
    "tail_ndcg@20, tail_recall@20": "the same, of tail products recommended among themselves",
    "coverage@20": "share of all products that is recommended to anybody",
    "tail_share@20": "share of the recommended that is of the tail",
    "gini@20": "how unevenly recommendations fall on products: 0 on all alike, 1 on a single one",
    "ε, δ": "what leaves a shop is at most e to the power of ε times as likely with one customer "
    "as without (2.7 times for ε = 1, 2,981 for 8), but for a chance of about δ: less is safer",
}


def words_of(arms: Iterable[str]) -> list[tuple[str, str]]:
    """Return (word, meaning) of a page's arms and figures."""
    return [*((name, _ARMS[name]) for name in arms if name in _ARMS), *_FIGURES.items()]
