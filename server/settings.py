"""The server's own settings: of one run (from the run config) and of its machine.

Defaults of a run stand in ``pyproject.toml`` under ``[tool.flwr.app.config]`` and nowhere else.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from common.config import parse, read_toml
from common.errors import ConfigError
from common.protocol import Frozen, TrainingPlan, check_run_name, parse_plan
from server.aggregation import OptimizerName, ServerOptimizer
from server.catalogue.versions import Catalogues
from server.defence.choice import Defence, DefenceName, share_of
from server.subspace import SubspaceOptimizer
from server.variables import ROSTER_FILE, SERVER_VARIABLE

#: One line of public facts for each exchange: what progress bars and reports read.
EVENTS_FILE = "rounds.jsonl"
EVALUATION_FILE = "evaluation.json"


_NOT_OF_THE_FIGURES = {
    *("evaluate", "min_shops", "run_name", "send_home", "timeout_seconds", "wait_seconds")
}


class RunSettings(Frozen):
    """How the server runs one plan; public, the same for a resumed run.

    Attributes
    ----------
    clients_per_round
        Share of the shops that joined which is asked in each round.
    quorum
        Share of the asked shops whose replies must be good, or the old model is kept.
    min_shops
        The run waits, ``wait_seconds`` at most, until so many shops are connected.
    max_update_norm
        Replies of a larger Euclidean norm are refused; 0 switches the bound off.
    defence, bad_share
        How updates and popularity counts are put together (:mod:`server.defence.choice`), and the
        largest share of the shops of an exchange that may send poison.
    timeout_seconds
        How long one exchange waits for replies.
    run_name
        Names the run's folder, on a server that keeps its runs apart; empty: Flower's number.
    initial_model
        Folder of the model to go on from, below the folder of ``server.toml``; empty: from the
        plan's seed.
    send_home
        Whether the finished model is sent to every shop; a server without run folders keeps no
        model, and sends none.
    evaluate
        Whether shops are asked for figures of the finished model; only those answer that release
        some, at a price of their own.
    """

    run_name: str = ""
    initial_model: str = ""
    send_home: bool = True
    evaluate: bool = False
    seed: int = 0
    clients_per_round: float = Field(gt=0, le=1)
    quorum: float = Field(gt=0, le=1)
    min_shops: int = Field(ge=1)
    max_update_norm: float = Field(ge=0)
    defence: DefenceName = "none"
    bad_share: float = Field(0.25, gt=0, lt=0.5)
    server_optimizer: OptimizerName | Literal["subspace"]
    server_learning_rate: float = Field(gt=0)
    server_momentum: float = Field(ge=0, le=1)
    server_beta_2: float = Field(ge=0, lt=1)
    server_tau: float = Field(gt=0)
    timeout_seconds: float = Field(gt=0)
    wait_seconds: float = Field(gt=0)

    def identity(self) -> str:
        """Return, as JSON, what a resumed run must share: all that can change its figures."""
        return self.model_dump_json(exclude=_NOT_OF_THE_FIGURES)

    def asked_of(self, shops: int) -> int:
        """Return how many of so many shops are asked in a round."""
        return share_of(self.clients_per_round, shops)

    def shops_for(self, asked: int) -> int:
        """Return how few shops there may be for so many to be asked in a round."""
        return math.floor((asked - 1) / Fraction(str(self.clients_per_round))) + 1

    def quorum_of(self, asked: int) -> int:
        """Return how many of so many asked shops must answer well."""
        return share_of(self.quorum, asked)

    def defender(self, plan: TrainingPlan) -> Defence:
        """Return the rule that these settings name.

        Raises
        ------
        ConfigError
            If the plan hides what it would look at, or a run could begin with too few shops.
        """
        defence = Defence(self.defence, self.bad_share)
        if self.defence != "none" and plan.trust == "federation":
            raise ConfigError(
                f'defence = "{self.defence}" compares single shops\' updates, and under trust = '
                '"federation" the server sees only their sum: set defence = "none"'
            )
        if not defence.holds(self.min_shops):
            raise ConfigError(
                f'defence = "{self.defence}" means nothing among {self.min_shops} shops: set '
                f"min_shops to {defence.fewest} at least"
            )
        asked = self.asked_of(self.min_shops)
        if not defence.holds(asked):
            # Each of them would pay for a round that nothing comes of.
            raise ConfigError(
                f'defence = "{self.defence}" means nothing among {asked} shops, which is what '
                f"clients_per_round = {self.clients_per_round:g} asks of {self.min_shops} in a "
                f"round: set it to 1, or min_shops to {self.shops_for(defence.fewest)} at least"
            )
        return defence

    def optimizer(self, plan: TrainingPlan) -> ServerOptimizer | SubspaceOptimizer:
        """Return the server optimiser that these settings name.

        Raises
        ------
        ConfigError
            If the optimiser does not fit the plan's model.
        """
        if self.server_optimizer == "subspace":
            model = plan.model
            if model.tower != "linear" or model.feature_rows or model.customer_rows:
                raise ConfigError(
                    'server_optimizer = "subspace" trains item vectors of a linear tower alone: '
                    "set feature_rows and customer_rows to 0, or choose another optimiser"
                )
            return SubspaceOptimizer(plan, self.server_momentum)
        if self.server_optimizer != "none" and self.server_momentum == 1.0:
            # The mean of all updates would never move from zero, or momentum never end.
            raise ConfigError(
                f'server_optimizer = "{self.server_optimizer}" needs server_momentum below 1, such '
                "as 0.9"
            )
        return ServerOptimizer(
            self.server_optimizer,
            self.server_learning_rate,
            self.server_momentum,
            self.server_beta_2,
            self.server_tau,
        )


@dataclass(frozen=True)
class RunPlace:
    """Where one run keeps its files.

    Attributes
    ----------
    checkpoints, events
        The folder of its checkpoints, and the file of its public events.
    model
        Where the finished model goes; None on a server that makes none.
    evaluation
        Where the figures go that shops release of it.
    """

    checkpoints: Path
    events: Path
    model: Path | None
    evaluation: Path


class ServerHome(Frozen):
    """What the server knows on its own machine (``server.toml``).

    Attributes
    ----------
    runs
        Folder with a folder for each run; or else
    checkpoints
        the folder of the one run.
    catalogues
        Folder with a numbered folder for each version of the catalogue; or else
    catalogue
        the folder of the one catalogue.
    ledger_heads
        File of the shops' last known ledger heads, kept over all runs; by default
        ``ledger-heads.json`` beside the checkpoints or the runs.
    roster
        File of the shops that may take part in secure sums, the same that the shops hold; by
        default ``roster`` beside ``server.toml``.
    folder
        Of ``server.toml`` itself; not to be set there.
    """

    folder: Path

    runs: Path | None = None
    checkpoints: Path | None = None
    catalogues: Path | None = None
    catalogue: Path | None = None
    ledger_heads: Path | None = None
    roster: Path | None = None

    @model_validator(mode="after")
    def _each_is_in_one_place(self) -> "ServerHome":
        for many, one in (("runs", "checkpoints"), ("catalogues", "catalogue")):
            if (getattr(self, many) is None) == (getattr(self, one) is None):
                raise ValueError(f'give either {many} = "FOLDER" or {one} = "FOLDER"')
        return self

    @property
    def heads_file(self) -> Path:
        """The file of ledger heads."""
        beside = self.runs or self.checkpoints
        assert beside is not None
        return self.ledger_heads or beside.parent / "ledger-heads.json"

    @property
    def roster_file(self) -> Path:
        """The file of the shops that may take part in secure sums; only those need it."""
        return self.roster or self.folder / ROSTER_FILE

    def place(self, run_name: str) -> RunPlace:
        """Return where a run keeps its files."""
        if self.runs is None:
            assert self.checkpoints is not None
            one = self.checkpoints
            return RunPlace(one, one / EVENTS_FILE, None, one / EVALUATION_FILE)
        folder = self.runs / check_run_name(run_name)
        return RunPlace(
            folder / "checkpoints",
            folder / EVENTS_FILE,
            folder / "model",
            folder / EVALUATION_FILE,
        )

    def model(self, path: str) -> Path:
        """Return the folder of an earlier model.

        Raises
        ------
        ConfigError
            If it lies outside the server's own folder: a run config may come from elsewhere.
        """
        found = (self.folder / path).resolve()
        if not found.is_relative_to(self.folder.resolve()):
            raise ConfigError(
                f"initial-model is {path!r}: give a folder below {self.folder}, such as "
                '"runs/<name>/model"'
            )
        return found

    def published(self, fingerprint: str | None) -> Path:
        """Return the folder of the catalogue of a fingerprint; of the newest one without.

        Raises
        ------
        ConfigError
            If none is published, or none of this fingerprint.
        """
        if self.catalogues is None:
            assert self.catalogue is not None
            return self.catalogue
        versions = Catalogues(self.catalogues)
        return versions.current() if fingerprint is None else versions.path(fingerprint)


def read_run_config(run_config: Mapping[str, object]) -> tuple[TrainingPlan, RunSettings]:
    """Split a Flower run config into the plan and the server's settings.

    Raises
    ------
    ConfigError, ProtocolError
        If a value is out of its range or the plan is not valid.
    """
    values = {key.replace("-", "_"): value for key, value in run_config.items()}
    plan = parse_plan(str(values.pop("plan", "")))
    return plan, parse(RunSettings, values, "run config")


def read_home(environment: Mapping[str, str]) -> ServerHome:
    """Read ``server.toml`` from the folder that ``FEDTAIL_SERVER`` names.

    Raises
    ------
    ConfigError
        If the variable is not set, or the file does not say what it should.
    """
    if not (folder := environment.get(SERVER_VARIABLE)):
        raise ConfigError(f"set {SERVER_VARIABLE} to the folder of the server's server.toml")
    path = Path(folder) / "server.toml"
    values = read_toml(path)
    if "folder" in values:
        raise ConfigError(f"{path}: folder is not a setting; take it out")
    values["folder"] = path.parent
    for key in ServerHome.model_fields:
        if isinstance(values.get(key), str):
            values[key] = path.parent / values[key]
    return parse(ServerHome, values, str(path))
