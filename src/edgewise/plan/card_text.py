"""The privacy card of a plan: what it promises, to whom, and on what that rests, in words and numbers."""

from __future__ import annotations

from math import sqrt

from edgewise.core.space import Space
from edgewise.plan.promise import Noiser, Promise
from edgewise.plan.recipe import Recipe
from edgewise.plan.sampling import Sampling
from edgewise.privacy import accountant, card
from edgewise.privacy.ledger import Budget
from edgewise.privacy.spend import Event

_ADJACENCY = {
    "zero_out": "one device's updates are all zero or not; who takes part is public",
    "add_remove": "one device is in the population or not",
    "replace_one": "one device has other text",
}


def card_of(
    recipe: Recipe,
    promise: Promise,
    space: Space,
    sampling: Sampling,
    z: float,
    budget: Budget,
    spent: float,
    event: Event,
) -> card.Card:
    """The card of a run.

    Args:
        space: behind the private ending. z: noise multiplier. spent: epsilon of all rounds. event: one release.
    """
    dp, who_noises = recipe.dp, promise.who_noises
    rounds_each = sampling.rounds_each(recipe.round.rounds)
    server: float | None = spent
    unit, adjacency, drawn = "device: all its text, in all rounds", _ADJACENCY[event.adjacency], sampling.earns
    fewer: tuple[tuple[int, float], ...] = ()
    honest, continuous, blocks = 0, 0.0, ""
    bound = f"the clip of {dp.clip_l2:g}"
    if dp.tensor_l2:
        bound = f"what tensors clipped to {dp.tensor_l2:g} can have together"
    if who_noises is Noiser.SERVER:
        summary = "the server adds noise to the sum: readers of the models learn no more of a device than epsilon "
        summary += "allows, the server itself is trusted"
        how = f"a clip that follows the updates, from {dp.clip_l2:g}" if dp.adaptive_clip else bound
        who, server = f"the server, {z:.4g} times how far one device can move the sum, by {how}", None
        if event.kind == "matrix":
            who = f"the server, {z:.4g} times how far one device in all its rounds can move the run's encoded sums, by "
            who += f"{bound}; rounds take back noise of earlier ones"
    elif who_noises is Noiser.COHORT:
        honest = space.quorum.honest
        each = space.noise.std
        summary = "every device adds its share of noise before its update is hidden: neither the server nor readers of "
        summary += "the models learn more of a device than epsilon allows"
        who = f"each device, {each:.4g} per coordinate; at least {each * sqrt(honest):.4g} in every sum"
        least = each * sqrt(honest) / space.l2
        fewer = card.degradation(least, honest, dp.delta)
        continuous = accountant.gaussian(least / sqrt(rounds_each), dp.delta)
    elif who_noises is Noiser.STEPS:
        summary = "every step on a device is noised: what it sends says no more of one block of its text than epsilon "
        summary += "allows"
        unit = "block of text of one device, in all rounds"
        blocks = " and for the n blocks of text on them, counted before the first step"
        adjacency = "one block is on the device or not; how many there are is public"
        drawn = f"each step takes each block with probability {dp.sample_rate:g}, unknown to others"
        who = f"each device in each step, {z:.4g} times the clip of {dp.clip_l2:g} of one block's gradient"
    else:
        summary = "every device adds noise to its own update, which says no more of its text than epsilon allows, "
        summary += "whatever the server does"
        who = f"each device, {z:.4g} times {bound}"
    return card.Card(
        word=recipe.privacy,
        summary=summary,
        against_server=server,
        of_release=spent,
        delta=dp.delta,
        below=f"below 1 / n^1.1 for n = {space.population:,} devices{blocks}",
        unit=unit,
        adjacency=adjacency,
        sampling=drawn,
        noise=who,
        honest=honest,
        rounds_each=rounds_each,
        fewer=fewer,
        budget=budget.epsilon,
        continuous=continuous,
        z=z,
        derived="noise_multiplier" if dp.epsilon else "epsilon",
    )
