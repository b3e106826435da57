"""A shop's own settings, and the one function that reads them.

Data, ledger, cap, unit, merchant and noise come only from the shop's side: a ``shop.toml`` that
the node's own config or environment points at. The run config comes from whoever runs the
federation, so it must not even name one of them.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from client.database_settings import Database, from_folder
from client.home_settings import EvaluationSettings, HomeSection
from client.mapping_settings import CatalogueMapping
from common.addresses import Address
from common.config import parse, read_toml
from common.errors import ConfigError
from common.protocol import Frozen, Noise, Unit
from common.tables.contract import BadRows, fault_of_weights

#: Environment: a folder of ``<partition-id>/shop.toml``, set by the simulation runner only.
SHOPS_VARIABLE = "FEDTAIL_SHOPS"
#: Environment or node config: the path of this shop's ``shop.toml``.
SHOP_VARIABLE = "FEDTAIL_SHOP"
SHOP_KEY = "shop"
PARTITION_KEY = "partition-id"
#: Environment of all that `client run` starts: the shop's folder.
RUN_VARIABLE = "FEDTAIL_RUN"

# Section -> its files and where they lie by default, beside the settings.
_PLACES: Mapping[str, Mapping[str, str]] = {
    "federation": {"ca": "ca.crt", "key": "keys/node.key"},
    "secure_sum": {"key": "keys/node.key", "roster": "roster", "sessions": "sums/sessions.sqlite"},
}

# Words that only a shop's own settings may use.
_SHOP_WORDS = frozenset(
    {
        "merchant",
        "data",
        "database",
        "catalogue",
        "ledger",
        "cap",
        "unit",
        "noise",
        "insecure",
        "unprotected",
        "behavior",
        "roster",
        "sessions",
        "shop",
    }
)


class FederationSettings(Frozen):
    """Which federation a shop belongs to, and how it shows who it is.

    Attributes
    ----------
    address
        ``host:port`` of the operator's gateway.
    ca
        The operator's certificate authority; no other server is spoken to.
    key
        The shop's private key; its public key is enrolled by the operator.
    """

    address: Address
    ca: Path
    key: Path


class SecureSumSettings(Frozen):
    """How a shop takes part in sums that the server sees nothing else of.

    Attributes
    ----------
    key
        The shop's private key, the one that is enrolled.
    roster
        The shop's own copy of who may take part (:mod:`common.secure_sum.members`).
    sessions
        The file of what the shop answered so far; created when missing.
    colluding_shops
        How many shops that collude with the observer a plan must allow for, at least.
    """

    key: Path
    roster: Path
    sessions: Path
    colluding_shops: int = Field(0, ge=0)


class ShopSettings(Frozen):
    """What one shop decides for itself.

    Attributes
    ----------
    data
        Folder of the shop's tables; or else
    database
        the SQL database that holds them.
    catalogue
        Folder of the federation's public catalogue.
    catalogue_mapping
        What the shop's own product numbers are in the catalogue; without it they are the same.
    ledger
        The shop's SQLite ledger; created when missing.
    cap_epsilon
        What the shop's customers may lose over the shop's whole life, at ``cap_delta``: in releases
        for ``unit``. Another unit has a count of its own; neither holds the other's releases.
    noise
        ``system``: the operating system's generator. ``seeded``: replayable, simulations only.
    insecure_seeded_noise
        The shop's own consent to ``seeded``.
    allow_unprotected
        Whether a plan without any privacy may train here; simulations only.
    behavior_weights
        Behaviour -> weight of one such record; empty for the defaults.
    bad_rows
        ``refuse``: rows that break the contract stop all training. ``set-aside``: they are left
        out.
    home
        How the shop uses the global model for itself.
    evaluation
        Whether, and at which price, the shop's own figures of the global model may leave it.
    federation
        Where the shop's client connects to; not needed for a simulation.
    secure_sum
        What the shop needs for plans of trust ``federation``; without it, it takes part in none.
    models
        Folder of the models that the federation sends home; beside ``shop.toml`` by default.
    keep_models
        How many of the newest are kept whole, besides the one that the shop adapted to; 0: all.
    """

    merchant_id: str = Field(min_length=1)
    data: Path | None = None
    database: Database | None = None
    catalogue: Path
    catalogue_mapping: CatalogueMapping | None = None
    ledger: Path
    cap_epsilon: float = Field(gt=0, allow_inf_nan=False)
    cap_delta: float = Field(1e-5, gt=0, lt=1)
    unit: Unit = "customer"
    noise: Noise = "system"
    insecure_seeded_noise: bool = False
    noise_seed: int = 0
    allow_unprotected: bool = False
    behavior_weights: dict[str, float] = Field(default_factory=dict)
    rating_scale: float = Field(5.0, gt=0, allow_inf_nan=False)
    bad_rows: BadRows = "refuse"
    home: HomeSection = Field(default_factory=HomeSection)
    evaluation: EvaluationSettings | None = None
    federation: FederationSettings | None = None
    secure_sum: SecureSumSettings | None = None
    models: Path = Path("models")
    keep_models: int = Field(3, ge=0)

    @field_validator("behavior_weights")
    @classmethod
    def _can_be_used(cls, weights: dict[str, float]) -> dict[str, float]:
        if weights and (fault := fault_of_weights(weights)):
            raise ValueError(fault)
        return weights

    @model_validator(mode="after")
    def _data_are_in_one_place(self) -> "ShopSettings":
        if (self.data is None) == (self.database is None):
            raise ValueError('give either data = "FOLDER" or a [database] section')
        return self

    @model_validator(mode="after")
    def _seeded_noise_needs_consent(self) -> "ShopSettings":
        if self.noise == "seeded" and not self.insecure_seeded_noise:
            raise ValueError(
                'noise = "seeded" can be replayed by whoever knows the seed; it needs '
                "insecure_seeded_noise = true"
            )
        return self


def shop_settings(
    node_config: Mapping[str, object], environment: Mapping[str, str]
) -> ShopSettings:
    """Return the settings of the shop that this process serves.

    The node config's ``shop`` wins over the environment's ``FEDTAIL_SHOP``; a simulation sets
    ``FEDTAIL_SHOPS`` and its nodes are told apart by ``partition-id``.

    Raises
    ------
    ConfigError
        If there are no settings, or they are wrong.
    """
    if path := node_config.get(SHOP_KEY) or environment.get(SHOP_VARIABLE):
        return read_settings(Path(str(path)))
    if (folder := environment.get(SHOPS_VARIABLE)) and PARTITION_KEY in node_config:
        return read_settings(Path(folder) / str(node_config[PARTITION_KEY]) / "shop.toml")
    raise ConfigError(
        f"this node has no shop: set {SHOP_KEY!r} in its node config, or {SHOP_VARIABLE} in its "
        "environment, to the path of a shop.toml"
    )


def read_settings(path: Path) -> ShopSettings:
    """Read a ``shop.toml``; relative paths in it start from its folder."""
    values = read_toml(path)
    values.setdefault("models", "models")
    for key in ("data", "catalogue", "ledger", "models"):
        if isinstance(values.get(key), str):
            # One spelling for one place: simulated shops share a catalogue, and its cache.
            values[key] = (path.parent / values[key]).resolve()
    for name, places in _PLACES.items():
        if isinstance(values.get(name), dict):
            section = {**places, **values[name]}
            for key in places:
                if isinstance(section[key], str):
                    section[key] = (path.parent / section[key]).resolve()
            values[name] = section
    mapping = values.get("catalogue_mapping")
    if isinstance(mapping, dict) and isinstance(mapping.get("table"), str):
        table = (path.parent / mapping["table"]).resolve()
        values["catalogue_mapping"] = {**mapping, "table": table}
    if isinstance(values.get("database"), dict):
        values["database"] = from_folder(values["database"], path.parent, str(path))
    return parse(ShopSettings, values, str(path))


def secure_sum_settings(path: Path, settings: ShopSettings) -> SecureSumSettings:
    """Return how a shop would take part in secure sums: as it says, or as a new shop's file does.

    Parameters
    ----------
    path
        Of the settings.
    """
    if settings.secure_sum is not None:
        return settings.secure_sum
    found = {key: (path.parent / name).resolve() for key, name in _PLACES["secure_sum"].items()}
    return SecureSumSettings(**found)


def refuse_run_config(run_config: Iterable[str]) -> None:
    """Refuse a run config in which any key sounds like a setting of a shop.

    Raises
    ------
    ConfigError
        Naming the first such key.
    """
    for key in sorted(run_config):
        if _SHOP_WORDS & set(re.split(r"[^a-z]+", key.lower())):
            raise ConfigError(
                f"run config key {key!r} names a setting that only a shop itself may make"
            )
