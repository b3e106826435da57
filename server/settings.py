"""The server's own settings: of one run (from the run config) and of its machine.

Defaults of a run stand in ``pyproject.toml`` under ``[tool.flwr.app.config]`` and nowhere else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from common.config import parse, read_toml
from common.errors import ConfigError
from common.protocol import Frozen, TrainingPlan, parse_plan
from server.aggregation import OptimizerName, ServerOptimizer
from server.subspace import SubspaceOptimizer

#: Environment: the folder that holds ``server.toml``.
SERVER_VARIABLE = "FEDTAIL_SERVER"


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
    timeout_seconds
        How long one exchange waits for replies.
    """

    seed: int = 0
    clients_per_round: float = Field(gt=0, le=1)
    quorum: float = Field(gt=0, le=1)
    min_shops: int = Field(ge=1)
    max_update_norm: float = Field(ge=0)
    server_optimizer: OptimizerName | Literal["subspace"]
    server_learning_rate: float = Field(gt=0)
    server_momentum: float = Field(ge=0, le=1)
    server_beta_2: float = Field(ge=0, lt=1)
    server_tau: float = Field(gt=0)
    timeout_seconds: float = Field(gt=0)
    wait_seconds: float = Field(gt=0)

    def identity(self) -> str:
        """Return, as JSON, what a resumed run must share: all that can change its figures."""
        return self.model_dump_json(exclude={"min_shops", "timeout_seconds", "wait_seconds"})

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
        return ServerOptimizer(
            self.server_optimizer,
            self.server_learning_rate,
            self.server_momentum,
            self.server_beta_2,
            self.server_tau,
        )


class ServerHome(Frozen):
    """What the server knows on its own machine (``server.toml``).

    Attributes
    ----------
    checkpoints
        Folder of one run.
    catalogue
        Folder of the published one.
    ledger_heads
        File of the shops' last known ledger heads, kept over all runs; by default
        ``ledger-heads.json`` beside the checkpoints.
    """

    checkpoints: Path
    catalogue: Path
    ledger_heads: Path | None = None

    @property
    def heads_file(self) -> Path:
        """The file of ledger heads."""
        return self.ledger_heads or self.checkpoints.parent / "ledger-heads.json"


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
    """Read ``server.toml`` from the folder that ``FEDTAIL_SERVER`` names."""
    if not (folder := environment.get(SERVER_VARIABLE)):
        raise ConfigError(f"set {SERVER_VARIABLE} to the folder of the server's server.toml")
    path = Path(folder) / "server.toml"
    values = read_toml(path)
    for key in ServerHome.model_fields:
        if isinstance(values.get(key), str):
            values[key] = path.parent / values[key]
    return parse(ServerHome, values, str(path))
