"""The round loop: who is asked, when enough have answered well, and what becomes of it.

Our own loop over Flower's ``Grid``: a run is one ``JOIN``, one ``RELEASE`` and a ``TRAIN`` a
round, each of the latter two a secure sum of five exchanges, or six, where the plan's trust is
``federation`` (:mod:`server.secure_sum.rounds`). Everything that
the loop decides follows from the seed and the shops' public keys, not from who answers first.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
from flwr.serverapp import Grid

from common.errors import ConfigError, RunError
from common.evaluation import EVALUATION, EVALUATION_NAMES
from common.protocol import (
    EVALUATE,
    HOME,
    ITEMS,
    JOIN,
    NO_FINGERPRINT,
    POPULARITY,
    RELEASE,
    TRAIN,
    Arrays,
    Noise,
)
from common.rng import derive
from common.stocked_rows import ByRow, products_of, sent_rows
from common.wording import counted
from server.aggregation import Contribution, senders, summed_rates
from server.checkpoints import Checkpoint
from server.figures import ShopFigures, figures_of
from server.job import Event, Job, Shapes
from server.rounds.bounds import check_start, refusal
from server.rounds.exchange import Exchange, weakest
from server.rounds.heads import LedgerHeads
from server.rounds.messenger import Messenger
from server.rounds.roster import Roster
from server.secure_sum.rounds import SecureSums, counts, mean_update, shops_of
from server.starting import with_popularity_alone
from server.subspace import update_noise

logger = logging.getLogger(__name__)


class Federation:
    """The server's side of one run.

    Parameters
    ----------
    grid
        Flower's, or one in this process.
    job
        What is run.
    heads
        What is remembered of the shops' ledgers, over runs; None remembers nothing.
    save
        Called with the checkpoint of every round, 0 being the state before training.
    report
        Called with public facts: ``join``, ``release``, ``round``, ``home``, ``evaluate`` and
        ``end`` events.
    settle
        Returns the state of round 0, from the one before and the released popularity.
    finish
        Called with the state of the last round and the weakest noise of the shops' updates in it;
        writes the model and returns its manifest as JSON text, which is sent home with the state
        unless the settings say otherwise. None: no model is made.
    measured
        Called with the figures of the finished model that shops released. None: they are not asked.
    """

    def __init__(
        self,
        grid: Grid,
        job: Job,
        *,
        save: Callable[[Checkpoint], object],
        report: Callable[[Event], object],
        heads: LedgerHeads | None = None,
        settle: Callable[[Arrays, np.ndarray], Arrays] = with_popularity_alone,
        finish: Callable[[Arrays, Noise], str] | None = None,
        measured: Callable[[Sequence[ShopFigures]], object] | None = None,
    ) -> None:
        self._job = job
        self._defence = job.settings.defender(job.plan)
        self._optimizer = job.settings.optimizer(job.plan)
        self._save, self._report = save, report
        self._settle, self._finish, self._measured = settle, finish, measured
        self._roster = Roster(grid)
        self._messenger = Messenger(grid, job, self._roster, heads)
        self._noise: Noise = "system"
        self._sums: SecureSums | None = None
        if job.plan.trust == "federation":
            if job.members is None:
                raise ConfigError(
                    'trust = "federation" needs the roster that the shops hold: name it as roster '
                    "in server.toml"
                )
            self._sums = SecureSums(self._messenger, job, job.members)

    def run(self, initial: Arrays, resume: Checkpoint | None = None) -> Arrays:
        """Run the plan from its start, or from ``resume``, and return the last round's state.

        Raises
        ------
        RunError
            If too few shops connect, join or release.
        """
        plan, optimizer = self._job.plan, self._optimizer
        self._messenger.prepare()
        if resume is None:
            memory = optimizer.start({name: self._job.shapes[name] for name in self._job.trained})
            # Before anyone pays for a release that could not be trained on.
            check_start(self._job, 0, initial, memory)
            self._wait_for_shops()
            self._join(0)
            state = self._release(initial)
            check_start(self._job, 0, state, memory)
            self._checkpoint(0, state, memory)
            done = 0
        else:
            state, memory, done = resume.state, resume.memory, resume.server_round
            self._noise = resume.noise
            check_start(self._job, done, state, memory)
            if done < plan.rounds:
                self._wait_for_shops()
                self._join(done + 1)
        for server_round in range(done + 1, plan.rounds + 1):
            started = time.monotonic()
            if server_round > done + 1:
                self._wait_for_return()
                self._join(server_round)
            exchange, mean, why = self._update(server_round, state)
            if mean is not None:
                new_state, new_memory, reason = self._apply(
                    server_round, state, mean, memory, exchange
                )
                if reason:
                    logger.warning("model=kept round=%d reason=%s", server_round, reason)
                    mean, why = None, {"reason": reason}
                else:
                    state, memory = new_state, new_memory
                    self._noise = weakest((self._noise, exchange.noise))
            self._checkpoint(server_round, state, memory)
            self._tell(
                "round",
                server_round,
                started,
                exchange,
                kept_old_model=mean is None,
                shops=exchange.failed,
                **why,
            )
        if self._finish is not None:
            manifest = self._finish(state, self._noise)
            if self._job.settings.send_home:
                self._bring_home(state, manifest)
            if self._measured is not None:
                self._measured(self._ask_for_figures(state))
        self._report({"event": "end", "server_round": plan.rounds})
        return state

    def _wait_for_shops(self) -> None:
        settings = self._job.settings
        connected = self._roster.wait_for(settings.min_shops, settings.wait_seconds)
        if connected < settings.min_shops:
            raise RunError(
                f"{connected} shops connected within {settings.wait_seconds:g} s; "
                f"the run needs {settings.min_shops}"
            )

    def _wait_for_return(self) -> None:
        """Wait while too few are connected for a quorum of those that took part so far.

        When SuperLink starts anew, every shop is gone for a moment. Those that do not come back in
        time are not waited for again, unless the defence takes no fewer: a round that asks nobody
        is over at once, and so would be all that are left.
        """
        settings = self._job.settings
        quorum = settings.quorum_of(len(self._roster.everyone))
        needed = max(quorum, settings.shops_for(self._defence.fewest))
        self._roster.wait_for(needed, settings.wait_seconds)

    def _join(self, server_round: int) -> None:
        """Ask every node that was not asked yet whether its shop takes part."""
        started = time.monotonic()
        roster = self._roster
        if not (new := roster.newcomers(roster.look())):
            return
        exchange = self._messenger.exchange(JOIN, server_round, new, {}, {})
        # A shop that did not answer may be asked once more; one that declined may not.
        roster.answered(exchange.answered)
        roster.silent(set(new) - exchange.answered)
        roster.join(exchange.accepted_nodes)
        shops: dict[str, str] = {
            h.shop: h.status for h in exchange.headers.values() if h.shop != NO_FINGERPRINT
        }
        shops |= exchange.unheard
        self._tell("join", server_round, started, exchange, shops=shops)
        if not roster.everyone:
            raise RunError(f"no shop takes part: {exchange.reasons}")

    def _update(
        self, server_round: int, state: Arrays
    ) -> tuple[Exchange, Arrays | None, dict[str, str]]:
        """Return what came back of a round, the mean update if there is one, or why there is none.

        Why is told of secure sums here, where it does not follow from the replies' codes.
        """
        nodes = self._sample(server_round)
        if why := self._too_few(len(nodes)):
            # Whoever answered would have paid for nothing.
            return Exchange(), None, {"reason": why}
        shapes = {name: self._job.shapes[name] for name in self._job.trained}
        slices = self._job.slices(state)
        if self._sums is None:
            rows = None if slices is None else self._rows(shapes, slices.learned)
            sent = self._job.sent(state, slices, shops_of(nodes, self._roster.shop).values())
            exchange = self._messenger.exchange(TRAIN, server_round, nodes, sent, shapes, rows=rows)
            if not self._has_quorum(exchange):
                return exchange, None, {}
            noise = update_noise(self._job.plan, server_round)
            mean = self._defence.update(exchange.contributions, noise)
            if ITEMS in mean:
                width = self._job.plan.model.dimension
                variances = self._variances(exchange.contributions, ITEMS, width)
                exchange.variances = None if variances is None else float(np.mean(variances))
            return exchange, mean, {}
        chosen = shops_of(nodes, self._roster.shop)
        summed = self._sums.collect(server_round, chosen, state, shapes, slices)
        if not summed.arrays or not self._has_quorum(summed.exchange):
            return summed.exchange, None, {"reason": summed.reason or "no quorum"}
        return summed.exchange, mean_update(self._job.plan, server_round, summed), {}

    def _apply(
        self, server_round: int, state: Arrays, mean: Arrays, memory: Arrays, exchange: Exchange
    ) -> tuple[Arrays, Arrays, str]:
        """Return the new state and memory, and why they are not to be used, if they are not.

        What bad shops add up to in many rounds, or in a sum of which only the sum is seen, is
        bounded by nothing: it may come to what every shop would refuse, for good.
        """
        job, shops = self._job, exchange.accepted
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                state, memory = self._optimizer.apply(
                    state, mean, memory, shops, server_round, exchange.variances
                )
        except np.linalg.LinAlgError:
            return state, memory, "the mean update has no directions"
        return state, memory, refusal(job, server_round, state, memory)

    def _release(self, initial: Arrays) -> Arrays:
        started = time.monotonic()
        job, nodes = self._job, self._roster.everyone
        if few := self._too_few(len(nodes)):
            raise RunError(f"{few}: nobody was asked to pay for anything")
        shape = {POPULARITY: job.shapes[POPULARITY]}
        why = ""
        if self._sums is None:
            rows = self._rows(shape)
            exchange = self._messenger.exchange(RELEASE, 0, nodes, {}, shape, rows=rows)
        else:
            summed = self._sums.collect(0, shops_of(nodes, self._roster.shop), {}, shape)
            exchange, why = summed.exchange, summed.reason
        self._tell("release", 0, started, exchange, shops=exchange.failed)
        if not self._has_quorum(exchange):
            raise RunError(
                f"{exchange.accepted} of {exchange.asked} shops released their popularity, too "
                f"few to train on: {why or exchange.reasons}"
            )
        self._noise = weakest((self._noise, exchange.noise))
        if self._sums is None:
            noise = job.plan.popularity_noise_multiplier if job.plan.private else 0.0
            total = self._defence.counts(exchange.contributions, noise)
            variances = self._variances(exchange.contributions, POPULARITY, 1)
            lost = np.isnan(total)
            total = np.where(lost, 0.0, total)
            if variances is not None:
                # Nothing was released of what no shop sent, or none that the rule takes.
                variances = np.where(lost, np.inf, variances)
                variances[variances == 0] = np.inf
        else:
            total, variances = counts(job.plan, summed), summed.variances.get(POPULARITY)
        found = summed_rates(job.plan, total, exchange.accepted, job.features, variances)
        return self._settle(initial, found)

    def _rows(
        self, shapes: Shapes, learned: np.ndarray | None = None
    ) -> Callable[[str], ByRow] | None:
        """Return which rows each shop sends; None where no stock table is published."""
        if (stock := self._job.stock) is None:
            return None
        products = products_of(self._job.plan, shapes, learned)
        return lambda shop: sent_rows(products, stock.rows.get(shop))

    def _variances(
        self, contributions: Sequence[Contribution], name: str, width: int
    ) -> np.ndarray | float | None:
        """Return how many times the plan's noise variance is in each row (R,) of an array's sum.

        One number where all shops send all rows. None: as the plan says of so many shops.
        """
        plan, shops = self._job.plan, len(contributions)
        if not plan.private:
            return None
        if (sent := senders(contributions, name)) is not None:
            return self._defence.row_variances(shops, width, sent)
        if self._defence.name == "none":
            return None
        return plan.noise_variances(shops) * self._defence.noise(shops, width)

    def _bring_home(self, state: Arrays, manifest: str) -> None:
        """Send the finished model to every shop that is connected, whether it trained or not.

        Nothing of a shop's records is asked for. A shop that does not get it is told of, and no
        more: the model is made, and the run has not failed.
        """
        started = time.monotonic()
        server_round = self._job.plan.rounds
        nodes = sorted(self._roster.look())
        exchange = self._messenger.exchange(HOME, server_round, nodes, state, {}, manifest=manifest)
        self._tell("home", server_round, started, exchange, shops=exchange.failed)

    def _ask_for_figures(self, state: Arrays) -> list[ShopFigures]:
        """Return the figures of the finished model that shops release, at their own price."""
        started = time.monotonic()
        server_round = self._job.plan.rounds
        nodes = sorted(self._roster.look())
        shape = {EVALUATION: (len(EVALUATION_NAMES),)}
        exchange = self._messenger.exchange(EVALUATE, server_round, nodes, state, shape)
        self._tell("evaluate", server_round, started, exchange, shops=exchange.failed)
        return figures_of(exchange)

    def _sample(self, server_round: int) -> list[int]:
        if not (nodes := self._roster.everyone):
            raise RunError(f"round {server_round}: no shop takes part any more")
        count = self._job.settings.asked_of(len(nodes))
        stream = derive(
            self._job.settings.seed, purpose="client-sampling", server_round=server_round
        )
        chosen = stream.choice(len(nodes), size=count, replace=False)
        return [nodes[i] for i in np.sort(chosen)]

    def _has_quorum(self, exchange: Exchange) -> bool:
        """Return whether enough answered well: of those asked, and for the defence to hold."""
        needed = self._job.settings.quorum_of(exchange.asked)
        enough = exchange.accepted >= max(needed, 1)
        return enough and (self._sums is not None or self._defence.holds(exchange.accepted))

    def _too_few(self, shops: int) -> str:
        """Return why so many shops cannot be asked: no answers of theirs would be used."""
        defence = self._defence
        if self._sums is not None or defence.holds(shops):
            return ""
        asked = counted(shops, "shop")
        return f'{asked} would be asked, and defence = "{defence.name}" needs {defence.fewest}'

    def _checkpoint(self, server_round: int, state: Arrays, memory: Arrays) -> None:
        job = self._job
        self._save(
            Checkpoint(
                server_round=server_round,
                run_name=job.run_name,
                plan=job.plan,
                settings_json=job.settings.identity(),
                catalogue_fingerprint=job.catalogue_fingerprint,
                noise=self._noise,
                state=state,
                memory=memory,
            )
        )

    def _tell(
        self, event: str, server_round: int, started: float, exchange: Exchange, **more: object
    ) -> None:
        facts: Event = {
            "event": event,
            "server_round": server_round,
            "seconds": round(time.monotonic() - started, 4),
            "asked": exchange.asked,
            "accepted": exchange.accepted,
            "declined": dict(sorted(exchange.declined.items())),
            "bytes_down": exchange.bytes_down,
            "bytes_up": exchange.bytes_up,
            **more,
        }
        logger.info("%s", json.dumps(facts))
        self._report(facts)
