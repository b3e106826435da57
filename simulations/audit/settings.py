"""What an audit does: the ``[audit]`` section of an experiment."""

from typing import Annotated

from pydantic import Field, model_validator

from common.protocol import Frozen


class AuditSection(Frozen):
    """How hard an audit tries.

    Attributes
    ----------
    canaries, guesses
        Of each one-run audit; ``guesses`` is fixed before anything is looked at.
    claims
        ε that the steps of the one-run audits claim, at ``claimed_delta``.
    models
        How many models the membership attacks are shown, of each kind.
    shops
        How many of the experiment's shops they attack: the first by merchant id.
    also_epsilon
        ``federated-dp`` is attacked at this ε too, where a promise binds more; 0: only at the
        experiment's own.
    control_rounds
        ``federated`` is attacked after so many rounds at most: more only help the attacker, who
        needs no help there.
    recovery_customers, recovery_shops
        How many customers a shop has whose products are read off one update, and how many such
        shops are drawn.
    """

    canaries: int = Field(20_000, ge=10)
    guesses: int = Field(400, ge=2)
    claims: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = (0.5, 1.0, 2.0)
    claimed_delta: float = Field(1e-5, gt=0, lt=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    models: int = Field(8, ge=3)
    shops: int = Field(3, ge=1)
    also_epsilon: float = Field(1.0, ge=0, allow_inf_nan=False)
    control_rounds: int = Field(2, ge=1)
    recovery_customers: tuple[Annotated[int, Field(ge=1)], ...] = (1, 3, 10)
    recovery_shops: int = Field(20, ge=2)

    @model_validator(mode="after")
    def _each_is_named_once(self) -> "AuditSection":
        for name in ("claims", "recovery_customers"):
            # As finished parts are named: what these digits don't tell apart would be read twice.
            shown = [f"{value:g}" for value in getattr(self, name)]
            if len(set(shown)) < len(shown):
                raise ValueError(
                    f"{name} is {', '.join(shown)}: name each just once, in six digits at most"
                )
        return self
