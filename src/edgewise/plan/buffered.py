"""Check that a plan's parts work in asynchronous rounds, whose contributions start from several models."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.core.errors import RecipeError
from edgewise.core.pipeline import Pipeline
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.sampling import Sampling
from edgewise.strategies.base import Strategy

WORD = 'round.sampling = "buffered"'


def check(recipe: Recipe, sampling: Sampling, strategy: Strategy, pipes: Sequence[Pipeline]) -> None:
    """Check the strategy and the update pipelines of asynchronous rounds.

    The settings of a recipe that never go with them are found earlier (``plan.recipe.buffer``).
    Raises:
        RecipeError: E-COMBO, with the part and the reason.
    """
    if sampling.buffer is None:
        return
    client, kind = strategy.client, recipe.strategy["kind"]
    if strategy.directions is not None:
        raise _refused(f'strategy "{kind}"', "its directions are of one round", "take a server optimizer")
    if client.memory or client.given or client.sends or client.head:
        why = "its equations correct the drift from one model, and contributions start from several"
        raise _refused(f'strategy "{kind}"', why, "take fedavg, fedprox or a server optimizer")
    if len(pipes) > 1:
        why = "contributions of one buffer would be of several parts"
        raise _refused("parts of the model that take turns", why, "train all parts together")
    pipe = pipes[0]
    if pipe.encoded.announced:
        why = "they are those of one release, and devices lag behind it by several"
        raise _refused("stages that need the positions of the last release", why, "take top_k or random_k")
    if pipe.served is not None:
        name = pipe.stages[pipe.served].name
        why = "the server's half of it takes in the mean of one round's encodings"
        raise _refused(name, why, "take a stage without a server half, as feedback with ef14, or quantize")


def _refused(what: str, why: str, fix: str) -> RecipeError:
    """Make the error for a part that asynchronous rounds do not go with."""
    return RecipeError("E-COMBO", f"{WORD} with {what}: {why}.", f'{fix}, or write sampling = "fixed".')
