"""Differential privacy in a plan: where the noise goes, how much of it the budget asks for, what is then promised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgewise.codecs.rotate import BLOCK, rotate
from edgewise.codecs.wrap import wrap
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.space import Adjacency, Kind, Space
from edgewise.core.stage import WEIGHT, Post, Stage
from edgewise.core.vector import Spec
from edgewise.plan.card_text import card_of
from edgewise.plan.facts import StatedNoise
from edgewise.plan.promise import Noiser, Promise
from edgewise.plan.recipe import Recipe
from edgewise.plan.sampling import Sampling
from edgewise.plan.section import LARGEST_EPSILON, DpSection
from edgewise.privacy import accountant, card, grid, matrix, rules
from edgewise.privacy.adaptive import adaptive_clip
from edgewise.privacy.clip import clip, clip_tensors
from edgewise.privacy.distributed import discrete_gaussian_noise
from edgewise.privacy.ledger import RUN_LONG, Budget
from edgewise.privacy.noise import local_noise, noise
from edgewise.privacy.spend import Event

MOST_CORRELATED = 100_000  # rounds: some seconds


@dataclass(frozen=True, slots=True)
class Clipping:
    """How far one contribution can reach before noise is added.

    Attributes:
        l2: bound of an update's L2 norm, or of the gradient of one example; where the clip begins, if it follows.
        tensor_l2: bound of every tensor by itself, in place of the whole's; 0 = off.
        follows: whether the clip follows the updates' median from round to round.
    """

    l2: float
    tensor_l2: float
    follows: bool

    @property
    def largest(self) -> float:
        """The largest bound of a part of an update that is clipped by itself."""
        return max(self.l2, self.tensor_l2)


@dataclass(frozen=True)
class Spend:
    """What a plan spends.

    Attributes:
        events: of a release, by phase. budget: enforced, of all rounds. rounds_each: rounds that a device is in at
            most.
        divisor: what the sum is divided by; None: the number of contributions. z: noise multiplier. card: in words.
        clipping: what the noise is sized for. buffers: memory of correlated noise, in models. bits: of the ring, where
            the recipe gives them; 0 = the smallest that will do.
    """

    events: tuple[Event, ...]
    budget: Budget
    rounds_each: int
    divisor: float | None
    z: float
    card: card.Card
    clipping: Clipping
    buffers: int
    bits: int

    @property
    def delta(self) -> float:
        """Of all epsilons."""
        return self.budget.delta

    @property
    def correlated(self) -> bool:
        """Whether a round takes back part of the noise of those before it: one event then stands for the run."""
        return self.events[0].kind in RUN_LONG


def adjacency(promise: Promise, sampler: str) -> Adjacency:
    """What a device sends in the neighbouring data set: the fold's ``sensitivity`` and the accountant's events rest on
    this one answer. Where single examples are protected, neighbours differ in one, and the noise is in the steps; the
    fold is of devices.
    """
    if promise.who_noises is Noiser.DEVICE:
        return "replace_one"
    return "add_remove" if promise.who_noises is Noiser.SERVER and sampler == "poisson" else "zero_out"


def fold(space: Space, stages: Sequence[Stage]) -> Space:
    """The space behind ``stages``."""
    for stage in stages:
        space = stage.infer(space)
    return space


def private(
    recipe: Recipe,
    spec: Spec,
    start: Space,
    phases: Sequence[Sequence[Stage]],
    sampling: Sampling,
    promise: Promise,
    stated: StatedNoise | None = None,
) -> tuple[list[list[Stage]], list[Post], Spend]:
    """Each phase's stages with the private ending, the posts that belong to it, and the spend.

    ``stated``: the noise by the run's facts; None where it is derived from the recipe.

    Raises CompositionError and RecipeError: what does not compose; E-VALUE for a delta that promises nothing; E-BUDGET
    where no noise keeps the budget.
    """
    dp, word, who = recipe.dp, recipe.privacy, promise.who_noises
    rules.metrics(start.head)
    rules.delta(dp.delta, start.population, "device")  # the trainer's side counts records: ``drivers.records``
    rules.amplification(dp.amplification, sampling.kind, seen_by_reader=who is not Noiser.SERVER)
    if dp.noise == "correlated":
        rules.correlated_noise(word, by_server=who is Noiser.SERVER)
        rules.participation_gap(sampling.groups, sampling.kind)
    before = [fold(start, stages) for stages in phases]
    if any(space.sparse for space in before) and who in (Noiser.COHORT, Noiser.DEVICE):
        raise CompositionError(
            "E-TOPK-SECAGG",
            f'privacy = "{word}": positions chosen per device say what it holds, and noise hides values only.',
            "use random_k, or shared_top_k, which chooses from what was released.",
        )
    mechanism = {
        Noiser.SERVER: _central,
        Noiser.COHORT: _distributed,
        Noiser.DEVICE: _local,
        Noiser.STEPS: _example,
    }[who]
    ending, events = mechanism(recipe, spec, before, sampling, promise)

    rounds_each = sampling.rounds_each(recipe.round.rounds)

    def all_rounds(z: float, each: int = rounds_each) -> Counter[Event]:
        out: Counter[Event] = Counter()
        for phase, event in enumerate(events(z)):
            turns = len(range(phase, each, len(phases)))  # as ``Plan.phase``
            out[replace(event, steps=1)] += 1 if event.kind in RUN_LONG else turns * event.steps
        return out

    if stated is not None:
        z, budget = stated.multiplier, Budget(stated.epsilon, dp.delta)
    else:
        z, budget = _derived(dp, all_rounds)
    first = events(z)[0]
    chains: list[list[Stage]] = []
    posts: list[Post] = []
    for stages in phases:
        more, posts = ending(z)
        at = _noised_at(start, stages) if who is Noiser.DEVICE else len(stages)
        chains.append([*stages[:at], *more, *stages[at:]])
    divisor = float(sampling.expected) if who is Noiser.SERVER else None
    rules.divisor(divisor is None, first.adjacency, promise.noised_before_leaving)
    spent = accountant.epsilon(all_rounds(z), dp.delta)
    shown = card_of(recipe, promise, fold(start, chains[0]), sampling, z, budget, spent, first)
    clipping = Clipping(dp.clip_l2, dp.tensor_l2, dp.adaptive_clip)
    return (
        chains,
        posts,
        Spend(events(z), budget, rounds_each, divisor, z, shown, clipping=clipping, buffers=dp.buffers, bits=dp.bits),
    )


def _derived(dp: DpSection, all_rounds: Callable[[float], Counter[Event]]) -> tuple[float, Budget]:
    """The noise multiplier and the budget of a run: the recipe gives one, and the other follows from it.

    The epsilon of a given noise is what the ledger counts for all rounds (on the coarse grid, an upper bound), so that
    a run reaches its last round. Raises RecipeError(E-BUDGET) where the one has no other.
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
    """How many stages stand before a device's own noise: all, or those before a quantizer, which then is given noised
    values and says no more than they do."""
    space = start
    for i, stage in enumerate(stages):
        after = stage.infer(space)
        if after.grid.kind is not Kind.REAL and not after.residual:
            return i
        space = after
    return len(stages)


Ending = Callable[[float], tuple[list[Stage], list[Post]]]
Events = Callable[[float], tuple[Event, ...]]


def _clip(recipe: Recipe, spec: Spec) -> Stage:
    """What bounds an update, by the recipe: it is as long as ``dp.clip_l2`` at most.

    Raises CompositionError(E-PERTENSOR).
    """
    dp = recipe.dp
    if not dp.tensor_l2:
        return clip(dp.clip_l2)
    rules.per_tensor(len(spec.segments), dp.tensor_l2, dp.clip_l2)
    return clip_tensors(spec, dp.tensor_l2)


def _central(
    recipe: Recipe, spec: Spec, before: Sequence[Space], sampling: Sampling, promise: Promise
) -> tuple[Ending, Events]:
    """The server adds Gaussian noise to the sum."""
    real = all(space.grid.kind is Kind.REAL for space in before)
    if not real and any(space.l2 == float("inf") for space in before):
        raise CompositionError(
            "E-NOISE-NOCLIP",
            "the stages quantize what nothing has clipped.",
            f"put clip with l2 = {recipe.dp.clip_l2:g} before quantize.",
        )

    if (recipe.dp.adaptive_clip or recipe.dp.tensor_l2) and not real:
        what = "an adaptive clip" if recipe.dp.adaptive_clip else "dp.tensor_l2"
        raise CompositionError("E-NOT-REAL", f"{what} stands behind a quantizer.", "quantize nothing, or use clip.")

    bound = _clip(recipe, spec)
    blt = None
    if recipe.dp.noise == "correlated":
        if recipe.dp.adaptive_clip or len(before) > 1:
            what = "a clip that moves" if recipe.dp.adaptive_clip else "layers that take turns"
            raise CompositionError(
                "E-COMBO",
                f"correlated noise with {what}: a round could not take back what an earlier one added.",
                'dp.noise = "independent", or the same coordinates and clip in all rounds.',
            )
        if recipe.round.rounds > MOST_CORRELATED:
            what = f"correlated noise is worked out round by round, for at most {MOST_CORRELATED} of them."
            raise RecipeError("E-VALUE", what, 'play fewer rounds, or take dp.noise = "independent".')
        blt = matrix.choose(
            recipe.round.rounds, sampling.groups, sampling.rounds_each(recipe.round.rounds), recipe.dp.buffers
        )

    def ending(z: float) -> tuple[list[Stage], list[Post]]:
        if blt is not None:
            return ([bound] if real else []), [matrix.correlated_noise(z, blt)]
        if recipe.dp.adaptive_clip:
            return [adaptive_clip(recipe.dp.clip_l2, z, sampling.expected)], [noise(z)]
        return ([bound] if real else []), [noise(z)]

    def events(z: float) -> tuple[Event, ...]:
        if blt is not None:
            return (matrix.event(blt, z),)
        if sampling.kind == "poisson":
            event = Event("gaussian", before[0].adjacency, z=z, sampling="poisson", rate=sampling.rate)
            return (event,) * len(before)
        return (Event("gaussian", before[0].adjacency, z=z),) * len(before)

    return ending, events


def _distributed(
    recipe: Recipe, spec: Spec, before: Sequence[Space], sampling: Sampling, promise: Promise
) -> tuple[Ending, Events]:
    """Devices add discrete noise, and the server sees the sum only."""
    if not promise.hidden:
        raise RecipeError(
            "E-COMBO",
            'privacy = "distributed_dp": a device\'s share of the noise hides it only in the sum.',
            '[merge] kind = "secure_sum" or "shared_sum".',
        )
    dp, bound = recipe.dp, _clip(recipe, spec)

    def ending(z: float) -> tuple[list[Stage], list[Post]]:
        return [
            bound,
            rotate(_block(before)),
            discrete_gaussian_noise(z, dp.bits or None),
            wrap(),
        ], []

    def events(z: float) -> tuple[Event, ...]:
        found = [fold(space, ending(z)[0]).noise for space in before]
        return tuple(Event("zcdp", before[0].adjacency, rho=noise.rho, xi=noise.xi) for noise in found)

    return ending, events


def _block(before: Sequence[Space]) -> int:
    """The largest usual block that the shortest phase fills."""
    shortest = min(space.dim for space in before)
    return max(64, min(BLOCK, 1 << max(0, shortest.bit_length() - 1)))


def _local(
    recipe: Recipe, spec: Spec, before: Sequence[Space], sampling: Sampling, promise: Promise
) -> tuple[Ending, Events]:
    """Every device hides itself."""

    bound = _clip(recipe, spec)

    def ending(z: float) -> tuple[list[Stage], list[Post]]:
        return [bound, local_noise(z)], []

    # z is noise over the clip, and to replace an update moves it by two clips.
    return ending, lambda z: (Event("gaussian", before[0].adjacency, z=z / 2.0),) * len(before)


def _example(
    recipe: Recipe, spec: Spec, before: Sequence[Space], sampling: Sampling, promise: Promise
) -> tuple[Ending, Events]:
    """Devices train with DP-SGD, and the noise is in the steps: an update is a function of noised gradients and of what
    everybody knows. Stages make of it what they like, and so does error feedback: what it remembers of earlier rounds
    are updates of theirs, each of which was charged when it was trained. All messages of a device together are
    post-processing of its noised steps. A weight is not: it counts the device's tokens.
    """
    rules.weight_of_records(any(WEIGHT in space.head for space in before))
    dp = recipe.dp

    def events(z: float) -> tuple[Event, ...]:
        one = Event("gaussian", "add_remove", z=z, sampling="poisson", rate=dp.sample_rate,
                    unit="example", steps=recipe.training.local_steps)  # fmt: skip
        return (one,) * len(before)

    def ending(z: float) -> tuple[list[Stage], list[Post]]:
        # Devices noise their steps on it; with this room int64 holds the sum of 2^20 records.
        grid.fit('dp.unit = "example"', z, dp.clip_l2, spec.dim, largest=2.0**10 * dp.clip_l2)
        return [], []

    return ending, events
