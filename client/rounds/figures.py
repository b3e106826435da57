"""The figures of the global model that a shop releases, at a price that it set itself.

Only a shop with an ``[evaluation]`` section releases any. Whether it does is a setting: the answer
of a shop without one is the same whatever its records are, and they are not even read for it.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import sparse

from client.privacy.evaluation import evaluation_event, release_evaluation
from client.privacy.ledger import Ledger
from client.privacy.noise import NoiseSource
from client.privacy.plan import check_event_paid
from client.settings import ShopSettings
from common.code import code_digest
from common.evaluation import EVALUATION
from common.features import Catalogue
from common.model import GlobalModel
from common.protocol import Arrays, RoundHeader, TrainingPlan
from common.schema import ShopEvents


def release_figures(
    header: RoundHeader,
    plan: TrainingPlan,
    state: Arrays,
    records: Callable[[], ShopEvents],
    catalogue: Catalogue,
    settings: ShopSettings,
    noise: NoiseSource,
) -> tuple[str, float, Arrays]:
    """Charge the shop's ledger, then measure; return its head, the noise multiplier and figures.

    Parameters
    ----------
    state
        Checked against the plan and the catalogue.
    records
        Reads the shop's; called before the charge, which can't be taken back.

    Raises
    ------
    PrivacyError, BudgetError, LedgerError
        If the release would break the shop's own rules, or the ledger does not hold its price.
    """
    assert settings.evaluation is not None
    event = evaluation_event(
        settings.evaluation, settings.unit, header.run_id, noise=settings.noise
    )
    model = GlobalModel(plan.model, catalogue, state)
    # Whatever of a plan does not fit the catalogue fails here, at a shop without customers too: the
    # first one's history would fail later, and the status tell of them.
    model.scores(sparse.csr_matrix((1, catalogue.size), dtype=np.float32))
    events = records()
    with Ledger.open(settings.ledger, known_head=header.ledger_head) as ledger:
        head = ledger.charge(
            replace(event, code_digest=code_digest()),
            cap_epsilon=settings.cap_epsilon,
            delta=settings.cap_delta,
        )
    figures = release_evaluation(model, events, catalogue, event.noise_multiplier, noise)
    with Ledger.open(settings.ledger, known_head=head) as ledger:
        entry = ledger.entry(head)
    check_event_paid(event, [EVALUATION], entry.event if entry else None, figures)
    return head, event.noise_multiplier, figures
