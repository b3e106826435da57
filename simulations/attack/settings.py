"""What ``simulations attack`` does: the ``[attack]`` section of an experiment."""

from typing import Literal, get_args

from pydantic import Field, model_validator

from common.protocol import Frozen
from server.defence.choice import DefenceName

AttackName = Literal[
    "noise",
    "in-concert",
    "sign-flip",
    "silent",
    "inflate",
    "push",
    "push-row",
    "push-quiet",
]
Use = Literal["global", "home"]
#: Attacks that have a product to sell; the others ruin the model.
PUSHES: tuple[AttackName, ...] = ("inflate", "push", "push-row", "push-quiet")


class AttackSection(Frozen):
    """Which shops send what, against which defence.

    Attributes
    ----------
    attacks
        See :mod:`simulations.attack.attackers`.
    shares
        Shares of the shops that are bad; those of a smaller share are among those of a larger one.
    full_shares, full_attacks
        At these shares these attacks meet every defence; all others meet ``none`` and ``chosen``.
    defences, chosen, bad_share
        What the server does about it; the share is what it allows for, not what there is.
    federations
        Whose training is attacked: ``federated``, ``federated-dp``.
    uses
        How a model is measured: ``global``, by itself; ``home``, mixed by each shop with what it
        learned alone.
    targets
        How many products are pushed, one a run; figures are their means.
    publish_stock
        Whether what shops stock is published, so that each sends the rows of that alone. The bad
        ones, those of the largest share, say that they stock everything. False: all send all rows.
    band
        The targets are drawn from the tail products between these shares of the catalogue, in the
        order of the popularity that a clean run releases, most popular first.
    """

    attacks: tuple[AttackName, ...] = ("noise", "sign-flip", *PUSHES)
    shares: tuple[float, ...] = (0.01, 0.05, 0.2)
    full_shares: tuple[float, ...] = (0.05,)
    full_attacks: tuple[AttackName, ...] = ("noise", "sign-flip", "push")
    defences: tuple[DefenceName, ...] = get_args(DefenceName)
    chosen: DefenceName = "tail-aware"
    bad_share: float = Field(0.25, gt=0, lt=0.5)
    federations: tuple[Literal["federated", "federated-dp"], ...] = ("federated",)
    uses: tuple[Use, ...] = ("global", "home")
    targets: int = Field(3, ge=1)
    publish_stock: bool = False
    band: tuple[float, float] = (0.4, 0.6)

    @model_validator(mode="after")
    def _there_is_something_to_compare(self) -> "AttackSection":
        if not {"none", self.chosen} <= set(self.defences):
            raise ValueError(f'defences must hold "none" and chosen, "{self.chosen}"')
        if not all(0 < share < 1 for share in self.shares) or not self.shares:
            raise ValueError("shares are between 0 and 1")
        if strange := [share for share in self.full_shares if share not in self.shares]:
            raise ValueError(
                f"full_shares hold {strange[0]:g}, which is none of shares: name some of "
                "shares, at which every defence is met"
            )
        if not self.full_shares:
            raise ValueError("full_shares is empty: name one of shares, of which the page speaks")
        for name in ("attacks", "shares", "full_shares", "defences", "federations", "uses"):
            named = getattr(self, name)
            if not named or len(set(named)) < len(named):
                raise ValueError(f"{name} is {list(named)}: name at least one, and each just once")
        if not 0 <= self.band[0] < self.band[1] <= 1:
            raise ValueError("band is two shares of the catalogue, the smaller one first")
        return self
