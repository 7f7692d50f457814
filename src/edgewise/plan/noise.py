"""Add differential privacy to a plan: place the noise, calibrate it to the budget, and write the privacy card.

chains, posts, spend = with_mechanism(recipe, spec, start, phases, sampling, promise, mechanism)
spend.z            # the noise multiplier
spend.budget       # (epsilon, delta) of the whole run
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgewise.core.errors import RecipeError
from edgewise.core.space import Kind, Space
from edgewise.core.stage import Post, Stage, fold
from edgewise.core.vector import Spec
from edgewise.plan.facts import StatedNoise
from edgewise.plan.mechanisms.base import ADJACENT, BuiltMechanism, Mechanism, MechanismSetting
from edgewise.plan.promise import Noiser, Promise
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.recipe.sections import LARGEST_EPSILON, DpSection
from edgewise.plan.sampling import Sampling
from edgewise.privacy import accountant, card, rules
from edgewise.privacy.ledger import RUN_LONG, Budget
from edgewise.privacy.spend import PrivacyEvent


@dataclass(frozen=True, slots=True)
class PlannedClipping:
    """The bounds of one contribution before noise.

    Attributes:
        l2: bound of an update's L2 norm, or of the gradient of one example. It is the first clip where ``follows``.
        tensor_l2: bound of the L2 norm of each tensor, in place of the whole update's; 0 = off.
        follows: True where the clip follows the median of the updates from round to round.
        records: largest number of records that a device adds up, where the clip is that of one record; 0 elsewhere.
    """

    l2: float
    tensor_l2: float
    follows: bool
    records: int = 0

    @property
    def largest(self) -> float:
        """The largest L2 norm of a part that is clipped by itself."""
        return max(self.l2, self.tensor_l2)


@dataclass(frozen=True)
class PlannedSpend:
    """The privacy cost of a plan.

    Attributes:
        events: the privacy events of one release, by phase.
        budget: the enforced budget of all rounds.
        rounds_each: largest number of rounds that one device takes part in.
        divisor: fixed divisor of the sum. None divides by the number of contributions.
        z: noise multiplier.
        card: the guarantee in words.
        clipping: the bounds that size the noise.
        buffers: memory of correlated noise, in models.
        bits: bits of the ring, where the recipe gives them; 0 = the smallest number that will do.
    """

    events: tuple[PrivacyEvent, ...]
    budget: Budget
    rounds_each: int
    divisor: float | None
    z: float
    card: card.PrivacyCard
    clipping: PlannedClipping
    buffers: int
    bits: int

    @property
    def delta(self) -> float:
        """The delta of all epsilons."""
        return self.budget.delta

    @property
    def correlated(self) -> bool:
        """True where a round takes back part of earlier noise. One event then stands for the whole run."""
        return self.events[0].kind in RUN_LONG


def with_mechanism(
    recipe: Recipe,
    spec: Spec,
    start: Space,
    phases: Sequence[Sequence[Stage]],
    sampling: Sampling,
    promise: Promise,
    mechanism: Mechanism,
    stated: StatedNoise | None = None,
) -> tuple[list[list[Stage]], list[Post], PlannedSpend]:
    """Add a mechanism to the stages of each phase, and account for it.

    Args:
        start: the space before the first stage.
        phases: the recipe's own stages, for each phase.
        stated: the noise that the run's facts state. None derives it from the recipe.
    Returns:
        Each phase's stages with those of the mechanism, its posts, and the privacy cost.
    Raises:
        CompositionError: for stages that do not compose with the mechanism.
        RecipeError: E-VALUE for a delta that promises nothing, E-BUDGET where no noise keeps the budget.
    """
    dp, rounds_each = recipe.dp, sampling.rounds_each(recipe.round.rounds)
    rules.refuse_delta(dp.delta, sampling.population, "device")  # ``drivers.workers.records`` checks it for records.
    by_server = mechanism.who is Noiser.SERVER
    rules.refuse_amplification(dp.amplification, sampling.kind, seen_by_reader=not by_server)
    if dp.noise == "correlated":
        rules.refuse_correlated_noise(recipe.privacy, by_server=by_server)
    before = [fold(start, stages) for stages in phases]
    mechanism.check_values(before)
    setting = MechanismSetting(
        spec, before, sampling, recipe.round.rounds, recipe.training.local_steps, promise.hidden, dp.delta
    )
    built = mechanism.build(setting, **{key: getattr(dp, key) for key in mechanism.keys})

    def all_rounds(z: float) -> Counter[PrivacyEvent]:
        out: Counter[PrivacyEvent] = Counter()
        for phase, event in enumerate(built.events(z)):
            turns = len(range(phase, rounds_each, len(phases)))  # Phases take turns as in ``Plan.phase``.
            out[replace(event, steps=1)] += 1 if event.kind in RUN_LONG else turns * event.steps
        return out

    if stated is not None:
        z, budget = stated.multiplier, Budget(stated.epsilon, dp.delta)
    else:
        z, budget = _derived_multiplier(dp, all_rounds)
    events = built.events(z)
    chains: list[list[Stage]] = []
    posts: list[Post] = []
    for stages in phases:
        more, posts = built.ending(z)
        at = _noised_at(start, stages) if mechanism.before_quantizers else len(stages)
        chains.append([*stages[:at], *more, *stages[at:]])
    divisor = float(sampling.expected) if mechanism.expected else None
    rules.refuse_noised_divisor(divisor is None, events[0].adjacency, promise.noised_before_leaving)
    spend = PlannedSpend(
        events=events,
        budget=budget,
        rounds_each=rounds_each,
        divisor=divisor,
        z=z,
        card=_privacy_card(recipe, mechanism, built, fold(start, chains[0]), setting, z, budget, all_rounds(z)),
        clipping=PlannedClipping(dp.clip_l2, dp.tensor_l2, dp.adaptive_clip, dp.records),
        buffers=dp.buffers,
        bits=dp.bits,
    )
    return chains, posts, spend


def _privacy_card(
    recipe: Recipe,
    mechanism: Mechanism,
    built: BuiltMechanism,
    after: Space,
    setting: MechanismSetting,
    z: float,
    budget: Budget,
    all_rounds: Counter[PrivacyEvent],
) -> card.PrivacyCard:
    """Write the privacy card of a run. ``after``: the space after the mechanism's stages."""
    dp, text, spent = recipe.dp, built.card(z, after), accountant.epsilon(all_rounds, recipe.dp.delta)
    return card.PrivacyCard(
        word=recipe.privacy,
        summary=mechanism.summary,
        against_server=spent if text.against_server else None,
        of_release=spent,
        delta=dp.delta,
        below=f"below 1 / n^1.1 for n = {setting.sampling.population:,} devices{text.blocks}",
        unit=text.unit,
        adjacency=text.adjacency or ADJACENT[built.events(z)[0].adjacency],
        sampling=text.sampling or setting.sampling.earns,
        noise=text.noise,
        honest=text.honest,
        rounds_each=setting.rounds_each,
        fewer=text.fewer,
        budget=budget.epsilon,
        continuous=text.continuous,
        z=z,
        distilled=recipe.distill.says,
        derived="noise_multiplier" if dp.epsilon else "epsilon",
    )


def _derived_multiplier(dp: DpSection, all_rounds: Callable[[float], Counter[PrivacyEvent]]) -> tuple[float, Budget]:
    """Derive the noise multiplier from the budget, or the budget from the noise multiplier.

    The epsilon of a given noise is the ledger's own count for all rounds (on the coarse grid, an upper bound), so that
    a run reaches its last round. Raises RecipeError(E-BUDGET) where the given number has no counterpart.
    """
    if not dp.noise_multiplier:
        try:
            return accountant.calibrate(all_rounds, dp.epsilon, dp.delta), Budget(dp.epsilon, dp.delta)
        except ValueError as e:
            fix = "raise dp.epsilon, or play fewer rounds."
            raise RecipeError("E-BUDGET", f"the budget cannot be kept: {e}.", fix) from None
    epsilon = accountant.epsilon(all_rounds(dp.noise_multiplier), dp.delta, accountant.COARSE)
    if not epsilon <= LARGEST_EPSILON:
        raise RecipeError(
            "E-BUDGET",
            f"dp.noise_multiplier = {dp.noise_multiplier:g} is so little noise that all rounds together take an "
            f"epsilon above {LARGEST_EPSILON:g}, which promises nothing.",
            "raise dp.noise_multiplier, play fewer rounds, or give dp.epsilon in its place.",
        )
    return dp.noise_multiplier, Budget(epsilon, dp.delta)


def _noised_at(start: Space, stages: Sequence[Stage]) -> int:
    """Count the stages before a device's own noise: those before the first quantizer, or all.

    The quantizer then works on noised values, and reveals no more than they do.
    """
    space = start
    for i, stage in enumerate(stages):
        after = stage.infer(space)
        if after.grid.kind is not Kind.REAL and not after.residual:
            return i
        space = after
    return len(stages)
