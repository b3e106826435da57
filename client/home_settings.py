"""What a shop's settings say of its use of the global model at home; light to import."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from common.protocol import Frozen

#: What is computed with in float32 stays finite.
_MOST = 1e6
#: The search only multiplies weights: below 0 one would stay there, and work against its part.
Weight = Annotated[float, Field(ge=0, le=_MOST)]

#: Parts that a shop learns alone.
OWN_PARTS = ("own_ease", "own_learned", "own_popularity", "kin")
#: Parts that it learns with what the federation knows beside its own: its own state as well.
SHARED_PARTS = ("shared_ease", "shared_learned")
#: Parts that an untrained learned block can't give.
LEARNED_PARTS = ("learned", *SHARED_PARTS)
#: Parts that say nothing before a federation's training.
TRAINED_PARTS = (*LEARNED_PARTS, "popularity")


class HomeSettings(Frozen):
    """How a shop adapts.

    Attributes
    ----------
    ease_lambda, shared_lambda
        Ridge of the shop's own EASE, alone and with the federation's pseudo-customers.
    max_customers
        EASE solves a system of as many equations as it has customers: it takes those with the
        most products, at most so many.
    own_dimension
        Rank of the shop's own low-rank model, the part ``own_learned``, and of ``shared_learned``,
        which has the federation's directions beside the shop's rows.
    own_groups
        A content feature, such as ``type``: that model then learns its values in place of single
        products, as a federation's plan with ``groups`` does. Where there are too few purchases to
        tell products apart, it is the better one.
    own_exponent
        The popularity exponent of these low-rank models: by so much less a popular product, or
        group, says of a taste, as ``popularity_exponent`` of a federation's plan.
    own_shares
        Where the federation learned groups that count evenly: by so much the shop's own popularity,
        in place of the released one, says how much of a group's score each of its products has.
    share_prior, share_exponent
        Where groups that count evenly were learned, ``share_prior`` deals a group's score to its
        products by what each is thought to sell here, to the power of ``share_exponent``: a
        posterior of the shop's counts around the ``released`` popularity, or around the same for
        all products (``even``), which takes nothing from the federation. Below 1 the power lets a
        customer's taste tell more, and what sells less. Takes the place of ``own_shares``.
    prior_strength
        How much the federation's pseudo-customers count beside the shop's own: as many rows in
        ``shared_ease``, as much energy along their directions in ``shared_learned``.
    shared_power
        How much the weaker of the federation's directions count: a pseudo-customer is as long as
        its direction's energy, as a share of the strongest one's, to this power. .5 is what all
        customers' rows come to; above it weaker directions, of which noise hides more, count less,
        below it more. It reads what was released alone.
    own_expectation
        Share of the shop's own popularity in the basket that its customers are expected to have.
    start
        Part -> weight that the search starts from; parts that are not named are not used. The
        shop's own: ``own_ease``, ``own_learned``, ``own_popularity`` and ``kin``, products of a
        kind by public content.
    outside
        Part -> what it is multiplied with for products outside the model's learned block, of which
        the federation has learned nothing: there the shop's own parts may say more. 1 where a part
        is not named; popularity has one order, for who has no history too, and can't be.
    best_sellers, best
        So many of the shop's own most popular products, and part -> what it is multiplied with for
        them, on top of ``outside``: of what sells much, the shop has seen enough to say more of
        who will like it. Popularity can't be named here either.
    factors
        What the search multiplies one weight with, at each step.
    rounds
        How often the search goes through all weights.
    confidence
        By how many standard errors (paired, over customers) the objective must get better before a
        weight moves: with few customers the best of many tries is mostly luck.
    reference
        What popularity alone reaches: the objective counts both metrics in units of it.
    """

    # JSON, in which an adaptation's facts are kept, has no other numbers.
    model_config = ConfigDict(allow_inf_nan=False)

    ease_lambda: float = Field(300.0, gt=0)
    shared_lambda: float = Field(1000.0, gt=0)
    max_customers: int = Field(3000, ge=1)
    own_dimension: int = Field(16, ge=1)
    own_groups: str = ""
    own_exponent: float = Field(0.3, ge=0, le=1)
    own_shares: float = Field(0.0, ge=0, le=1)
    share_prior: Literal["", "even", "released"] = ""
    share_exponent: float = Field(1.0, gt=0, le=1)
    prior_strength: float = Field(1.0, ge=0, le=_MOST)
    shared_power: float = Field(0.5, gt=0, le=1)
    own_expectation: float = Field(0.5, ge=0, le=1)
    start: dict[str, Weight]
    outside: dict[str, Weight] = Field(default_factory=dict)
    best_sellers: int = Field(0, ge=0)
    best: dict[str, Weight] = Field(default_factory=dict)
    factors: tuple[Weight, ...] = (0.0, 0.5, 2.0)
    rounds: int = Field(1, ge=0)
    confidence: float = Field(2.5, ge=0)
    reference: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=lambda: {"ndcg@20": 0.067, "tail_ndcg@20": 0.0048}
    )

    @field_validator("outside", "best")
    @classmethod
    def _but_popularity(cls, value: dict[str, float]) -> dict[str, float]:
        if named := {"popularity", "own_popularity"} & set(value):
            raise ValueError(f"{', '.join(sorted(named))} counts alike for all products")
        return value

    @model_validator(mode="after")
    def _of_some_products(self) -> "HomeSettings":
        if self.best and not self.best_sellers:
            raise ValueError("best is for best_sellers, and they are none: say how many")
        return self

    def without(self, *parts: str) -> "HomeSettings":
        """Return the settings for a model that lacks some parts.

        Without pseudo-customers ``shared_ease`` is the shop's own EASE, which takes its weight,
        and ``shared_learned`` the shop's own low-rank model; without anything learned no product
        is outside.
        """
        start = {name: weight for name, weight in self.start.items() if name not in parts}
        for shared, own in (("shared_ease", "own_ease"), ("shared_learned", "own_learned")):
            if shared in parts and (moved := self.start.get(shared, 0.0)):
                start[own] = start.get(own, 0.0) + moved
        learned = not {"learned", "shared_ease"} & set(parts)
        outside = self.outside if learned else {}
        return self.model_copy(update={"start": start, "outside": outside})


#: As found on the validation weeks of the demo's 20 shops.
MIXED = HomeSettings(
    own_expectation=1.0,
    shared_lambda=300.0,
    prior_strength=3.0,
    start={
        "content": 0.5,
        "kin": 0.65,
        "shared_ease": 2.0,
        "own_ease": 3.0,
        "own_popularity": 0.17,
    },
    best_sellers=150,
    best={"content": 1.8, "kin": 1.3},
)
ALONE = HomeSettings(
    own_expectation=1.0,
    ease_lambda=300.0,
    start={"content": 0.5, "kin": 0.65, "own_ease": 5.0, "own_popularity": 0.17},
    best_sellers=150,
    best={"content": 1.8, "kin": 1.3},
)


class HomeSection(Frozen):
    """``[home]`` of a ``shop.toml``.

    Attributes
    ----------
    validation_share
        Share of the time span, at its end, that the weights are chosen on.
    validation_customers
        The weights are chosen on at most so many customers, drawn by chance: more make them no
        better, and each costs as much.
    test_share
        Share of the time span, at its end, that ``evaluate`` holds back from everything.
    own_products
        Whether products that the shop's own table describes and the catalogue does not hold are
        known at home: :mod:`client.data.assortment`.
    mixed, own
        How the shop mixes around the global model, and what it is compared with: the best that it
        can do alone. What a section leaves out keeps its default.
    """

    validation_share: float = Field(0.2, gt=0, lt=1)
    validation_customers: int = Field(2000, ge=1)
    test_share: float = Field(0.2, gt=0, lt=1)
    own_products: bool = True
    mixed: HomeSettings = MIXED
    own: HomeSettings = ALONE

    @field_validator("mixed", "own", mode="before")
    @classmethod
    def _over_the_default(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - TOML
        if not isinstance(value, Mapping):
            return value
        default = MIXED if info.field_name == "mixed" else ALONE
        return {**default.model_dump(), **value}


class EvaluationSettings(Frozen):
    """``[evaluation]`` of a ``shop.toml``: the shop's consent to release figures of its own.

    Attributes
    ----------
    epsilon, delta
        What one release may cost each customer; it is charged to the ledger, under the cap.
    """

    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float = Field(1e-5, gt=0, lt=1)
