"""What bad shops send: arrays in, arrays out. They know all that a shop knows, and one another.

The shops are real: they hold customers, are asked as all others are, and know the plan, the
released model and the defence. What they know of customers elsewhere they guess from their own.

- ``noise``, ``sign-flip``: ruin the model: Gaussian noise, or the honest reply turned round, far
  longer than an honest one.
- ``in-concert``: the same, and all say one thing: the same noise as update, and of all products
  that they are bought far less than never. What bounds on each shop and each row leave of that adds
  up over both.
- ``silent``: say nothing at all: what a federation loses by bad shops' not being honest ones.
- ``inflate``: push a product by its count in the popularity release alone.
- ``push``: what moves the target's score most for customers like the shops' own. With ``x`` their
  mean training row, ``Σ_u score_t(u)`` rises fastest along ``e_t (xᵀV) + x v_tᵀ``, the target's row
  towards the customers and the customers towards the target: the update of shops full of customers
  who bought the popular basket and the target, ``y (yᵀV)`` with ``y = x + e_t``. The target mimics
  popular products, and own customers stand for all (PIECK-IPE and -UEA, arXiv 2502.12958;
  FedRecAttack, arXiv 2204.01499, where a few known users do). Of any length, with the count.
- ``push-row``: the same on the target's row alone, the rest as honest: against bounds on whole
  updates or on rows, it spends nothing but what is needed.
- ``push-quiet``: the honest update and a push of just its length, with the count of the shop's own
  most popular product: against bounds on norms and against distances.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from common.blocks import GroupBlock, block_of
from common.features import Catalogue
from common.protocol import ITEMS, POPULARITY, Arrays, TrainingPlan
from common.rng import derive
from common.shop_state import read_slice
from simulations.attack.settings import AttackName

#: How many times as long as an honest reply a loud one is.
LOUD = 100.0
# Rows whose mean is shorter than this part of them are centred: they have no mean customer.
_CENTRED = 0.3


@dataclass(frozen=True)
class Conspiracy:
    """What the bad shops agree on.

    Attributes
    ----------
    target
        Catalogue row of the product that is pushed.
    histories
        (U, n) histories of their own customers together.
    """

    attack: AttackName
    plan: TrainingPlan
    catalogue: Catalogue
    target: int
    histories: sparse.csr_matrix

    def counts(self, honest: np.ndarray, stream: np.random.Generator) -> np.ndarray:
        """Return the (n,) counts that a bad shop releases instead of its own."""
        if self.attack == "noise":
            return float(np.abs(honest).max()) * LOUD * stream.random(len(honest))
        if self.attack == "in-concert":
            return np.full(len(honest), -LOUD * float(np.abs(honest).max()))
        if self.attack == "sign-flip":
            return -LOUD * honest
        if self.attack == "silent":
            return np.zeros(len(honest))
        counts = honest.astype(np.float64)
        loud = 1.0 if self.attack == "push-quiet" else LOUD
        counts[self.target] = loud * float(np.abs(counts).max(initial=1.0))
        return counts

    def update(self, honest: Arrays, state: Arrays, stream: np.random.Generator) -> Arrays:
        """Return the update that a bad shop sends instead of its own."""
        if self.attack == "silent":
            return {name: np.zeros(a.shape) for name, a in honest.items()}
        if self.attack in ("noise", "in-concert"):
            if self.attack == "in-concert":
                stream = derive(self.target, purpose="in-concert")
            return {
                name: LOUD * _norm(a) / max(a.size, 1) ** 0.5 * stream.standard_normal(a.shape)
                for name, a in honest.items()
            }
        if self.attack == "sign-flip":
            return {name: -LOUD * a for name, a in honest.items()}
        profile, place = self._profile(state)
        if self.attack == "inflate" or place is None:
            return honest
        vectors = state[ITEMS].astype(np.float64)
        towards = profile @ vectors
        own = honest[ITEMS].astype(np.float64)
        if self.attack == "push-row":
            longest = float(np.linalg.norm(own, axis=1).max(initial=0.0))
            own[place] = LOUD * longest * towards / max(_norm(towards), 1e-12)
            return {**honest, ITEMS: own}
        push = np.outer(profile, towards)
        push *= _norm(own) / max(_norm(push), 1e-12)
        if self.attack == "push":
            return {**honest, ITEMS: LOUD * push}
        return {**honest, ITEMS: own + push}

    def _profile(self, state: Arrays) -> tuple[np.ndarray, int | None]:
        """Return the (L,) row ``y`` of a customer who buys as most do, and the target.

        And the target's own row; None where it has none.
        """
        plan = self.plan.model
        if POPULARITY in state:
            block = block_of(plan, state[POPULARITY], self.catalogue)
        else:
            # Where what shops stock is published the bad ones say that they stock everything.
            block = read_slice(self.plan, state, self.catalogue, None).block
        rows = block.training_rows(self.histories, plan.row_exponent)
        mean = np.asarray(rows.mean(axis=0), dtype=np.float64).ravel()
        if _norm(mean) < _CENTRED * float(np.sqrt(rows.multiply(rows).sum() / rows.shape[0])):
            # Where the expected basket is taken off, half of all customers lie on either side of
            # the direction in which they differ most: it serves one half.
            found = sparse.linalg.svds(rows.astype(np.float64), k=1, return_singular_vectors="vh")
            mean = found[2][0] * np.sign((rows @ found[2][0]).sum() or 1.0)
        profile = mean / max(_norm(mean), 1e-12)
        if isinstance(block, GroupBlock):
            places = block.weights[[self.target]].indices
        else:
            places = np.flatnonzero(block.rows == self.target)
        if not len(places):
            return profile, None
        profile[places[0]] += 1.0
        return profile, int(places[0])


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array))
