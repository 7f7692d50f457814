"""Differential privacy in a plan: where the noise goes, how much of it the budget asks for, what is then promised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt

from edgewise.codecs.rotate import BLOCK, rotate
from edgewise.codecs.wrap import wrap
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.space import Kind, Space
from edgewise.core.stage import Post, Stage
from edgewise.plan.recipe import Recipe
from edgewise.privacy import accountant, card
from edgewise.privacy.adaptive import adaptive_clip
from edgewise.privacy.clip import clip
from edgewise.privacy.distributed import discrete_gaussian_noise, honest_survivors
from edgewise.privacy.ledger import Budget
from edgewise.privacy.noise import local_noise, noise
from edgewise.privacy.spend import Event


@dataclass(frozen=True)
class Spend:
    """What a plan spends.

    Attributes:
        events: of a release, by phase. budget: enforced. rounds_each: rounds that a device is in at most.
        divisor: what the sum is divided by, 0 = by the number of contributions. z: noise multiplier. card: in words.
    """

    events: tuple[Event, ...]
    budget: Budget
    rounds_each: int
    divisor: float
    z: float
    card: card.Card


@dataclass(frozen=True)
class Taking:
    """How devices take part: a plan's ``Sampling``, as far as it matters here."""

    kind: str
    rate: float
    expected: int
    rounds_each: int
    words: str


def fold(space: Space, stages: Sequence[Stage]) -> Space:
    """The space behind ``stages``."""
    for stage in stages:
        space = stage.infer(space)
    return space


def private(
    recipe: Recipe, start: Space, phases: Sequence[list[Stage]], taking: Taking, hidden: bool
) -> tuple[list[Post], Spend]:
    """Append the private ending to each phase's stages; the posts that belong to it, and the spend.

    Raises CompositionError and RecipeError: what does not compose; E-BUDGET where no noise keeps the budget.
    """
    dp, word = recipe.dp, recipe.privacy
    if start.head:
        raise CompositionError(
            "E-STATS",
            f'metrics = "{recipe.metrics}": train losses are data about a person, and their bound of 20 nats would ask '
            "for more noise than the update.",
            'write metrics = "none", or leave it out.',
        )
    if dp.amplification == "poisson" and (word != "central" or taking.kind != "poisson"):
        raise CompositionError(
            "E-AMP-VISIBLE",
            f'privacy = "{word}" with {taking.kind} cohorts: amplification needs Poisson sampling that the adversary '
            "does not see, and the server sees who takes part.",
            'only readers of the models can be kept in the dark: privacy = "central" and round.sampling = "poisson".',
        )
    before = [fold(start, stages) for stages in phases]
    if any(space.sparse for space in before) and word != "central":
        raise CompositionError(
            "E-TOPK-SECAGG",
            f'privacy = "{word}": positions chosen per device say what it holds, and noise hides values only.',
            "use random_k, or shared_top_k, which chooses from what was released.",
        )
    ending, events = {"central": _central, "distributed": _distributed, "local": _local, "record": _record}[word](
        recipe, before, taking, hidden
    )
    turns = Counter(round % len(phases) for round in range(taking.rounds_each))

    def all_rounds(z: float) -> Counter[Event]:
        out: Counter[Event] = Counter()
        for phase, event in enumerate(events(z)):
            out[replace(event, steps=1)] += turns[phase] * event.steps
        return out

    z = dp.noise_multiplier
    if not z:
        try:
            z = accountant.calibrate(all_rounds, dp.epsilon, dp.delta)
        except ValueError as e:
            fix = "raise dp.epsilon, or play fewer rounds."
            raise RecipeError("E-BUDGET", f"the budget cannot be kept: {e}.", fix) from None
    posts: list[Post] = []
    for stages in phases:
        more, posts = ending(z)
        stages += more
    divisor = float(taking.expected) if word == "central" else 0.0
    spent = accountant.epsilon(all_rounds(z), dp.delta)
    shown = _card(recipe, fold(start, phases[0]), taking, z, spent, events(z)[0])
    return posts, Spend(events(z), Budget(dp.epsilon, dp.delta), taking.rounds_each, divisor, z, shown)


Ending = Callable[[float], tuple[list[Stage], list[Post]]]
Events = Callable[[float], tuple[Event, ...]]


def _central(recipe: Recipe, before: Sequence[Space], taking: Taking, hidden: bool) -> tuple[Ending, Events]:
    """The server adds Gaussian noise to the sum."""
    real = all(space.kind is Kind.REAL for space in before)
    if not real and any(space.l2 == float("inf") for space in before):
        raise CompositionError(
            "E-NOISE-NOCLIP",
            "the stages quantize what nothing has clipped.",
            f"put clip with l2 = {recipe.dp.clip_l2:g} before quantize.",
        )

    if recipe.dp.adaptive_clip and not real:
        raise CompositionError(
            "E-NOT-REAL", "an adaptive clip stands behind a quantizer.", "quantize nothing, or fix the clip."
        )

    def ending(z: float) -> tuple[list[Stage], list[Post]]:
        if recipe.dp.adaptive_clip:
            return [adaptive_clip(recipe.dp.clip_l2, z, taking.expected)], [noise(z)]
        return ([clip(recipe.dp.clip_l2)] if real else []), [noise(z)]

    def events(z: float) -> tuple[Event, ...]:
        if taking.kind == "poisson":
            return (Event("gaussian", "add_remove", z=z, sampling="poisson", rate=taking.rate),) * len(before)
        return (Event("gaussian", "zero_out", z=z),) * len(before)

    return ending, events


def _distributed(recipe: Recipe, before: Sequence[Space], taking: Taking, hidden: bool) -> tuple[Ending, Events]:
    """Devices add discrete noise, and the server sees the sum only."""
    if not hidden:
        raise RecipeError(
            "E-COMBO",
            'privacy = "distributed": a device\'s share of the noise hides it only in the sum.',
            '[merge] kind = "secure_sum" or "shared_sum".',
        )
    dp = recipe.dp

    def ending(z: float) -> tuple[list[Stage], list[Post]]:
        return [
            clip(dp.clip_l2),
            rotate(_block(before)),
            discrete_gaussian_noise(z, dp.corrupt, dp.bits or None),
            wrap(),
        ], []

    def events(z: float) -> tuple[Event, ...]:
        found = [fold(space, ending(z)[0]).zcdp for space in before]
        return tuple(Event("zcdp", "zero_out", rho=rho, xi=xi) for rho, xi in found)

    return ending, events


def _block(before: Sequence[Space]) -> int:
    """The largest usual block that the shortest phase fills."""
    shortest = min(space.dim for space in before)
    return max(64, min(BLOCK, 1 << max(0, shortest.bit_length() - 1)))


def _local(recipe: Recipe, before: Sequence[Space], taking: Taking, hidden: bool) -> tuple[Ending, Events]:
    """Every device hides itself."""

    def ending(z: float) -> tuple[list[Stage], list[Post]]:
        return [clip(recipe.dp.clip_l2), local_noise(z)], []

    return ending, lambda z: (Event("gaussian", "replace_one", z=z / 2.0),) * len(before)


def _record(recipe: Recipe, before: Sequence[Space], taking: Taking, hidden: bool) -> tuple[Ending, Events]:
    """Devices train with DP-SGD; what they send is theirs to send."""
    if any(space.residual for space in before):
        raise CompositionError(
            "E-EF-RECORD",
            "error feedback sends what a record left in the residual again, later and without noise of its own.",
            "leave out feedback, or protect whole devices.",
        )
    dp = recipe.dp

    def events(z: float) -> tuple[Event, ...]:
        one = Event("gaussian", "add_remove", z=z, sampling="poisson", rate=dp.sample_rate,
                    unit="record", steps=recipe.training.local_steps)  # fmt: skip
        return (one,) * len(before)

    return lambda z: ([], []), events


def _card(recipe: Recipe, space: Space, taking: Taking, z: float, spent: float, event: Event) -> card.Card:
    dp, word = recipe.dp, recipe.privacy
    server: float | None = spent
    unit, adjacency, sampling = "device: all its text, in all rounds", _ADJACENCY[event.adjacency], taking.words
    fewer: tuple[tuple[int, float], ...] = ()
    honest = 0
    if word == "central":
        summary = "the server adds noise to the sum: readers of the models are kept from learning about a device, the "
        summary += "server itself is trusted"
        how = f"{'a clip that follows the updates, from' if dp.adaptive_clip else 'the clip of'} {dp.clip_l2:g}"
        who, server = f"the server, {z:.4g} times {how}", None
    elif word == "distributed":
        quorum = space.quorum
        honest = honest_survivors(quorum.n_min, quorum.n_max, dp.corrupt)
        each = space.noise_std
        summary = "every device adds its share of noise before its update is hidden: neither the server nor readers of "
        summary += "the models learn more of a device than epsilon allows"
        who = f"each device, {each:.4g} per coordinate; at least {each * sqrt(honest):.4g} in every sum"
        fewer = card.degradation(each * sqrt(honest) / space.l2, honest, dp.delta)
    elif word == "record":
        summary = "every step on a device is noised: no single block of its text shows in what it sends"
        unit = "block of text of one device, in all rounds"
        adjacency = "one block is on the device or not; how many there are is public"
        sampling = f"each step takes each block with probability {dp.sample_rate:g}, unknown to others"
        who = f"each device in each step, {z:.4g} times the clip of {dp.clip_l2:g} of one block's gradient"
    else:
        summary = "every device adds enough noise to hide by itself, whatever the server does"
        who = f"each device, {z:.4g} times the clip of {dp.clip_l2:g}"
    return card.Card(
        word=word,
        summary=summary,
        against_server=server,
        of_release=spent,
        delta=dp.delta,
        unit=unit,
        adjacency=adjacency,
        sampling=sampling,
        noise=who,
        honest=honest,
        rounds_each=taking.rounds_each,
        fewer=fewer,
        budget=dp.epsilon,
    )


_ADJACENCY = {
    "zero_out": "one device's updates are all zero or not; who takes part is public",
    "add_remove": "one device is in the population or not",
    "replace_one": "one device has other text",
}
