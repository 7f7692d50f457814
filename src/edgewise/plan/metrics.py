"""Choose the metrics that travel with updates, and the bound of each on its way."""

from __future__ import annotations

from math import sqrt

from edgewise.core.errors import RecipeError
from edgewise.core.metric import BUILT_IN, HELD_METRICS, LOSS_METRICS, Metric, Metrics
from edgewise.core.space import HEAD_BOUND
from edgewise.core.stage import BELOW, WEIGHT
from edgewise.plan.promise import Noiser, Promise
from edgewise.plan.recipe.recipe import Recipe
from edgewise.privacy import rules
from edgewise.strategies.client import Client

SHARE = 0.2  # The length of all metrics together, in clips. Noise that covers them too grows by 2 %.
LOSS = "loss"  # The name of the train losses among the metrics of a script.
_TAKEN = frozenset({LOSS, WEIGHT, BELOW, *BUILT_IN})


def recipe_metrics(recipe: Recipe, promise: Promise, client: Client, sampler: str) -> Metrics:
    """Return the metrics of a recipe.

    One noise covers an update and its metrics as one vector, so metrics are scaled to a share of the clip C. All
    together are at most ``SHARE`` C long, and the noise is z sqrt(1 + SHARE^2) C. Devices that add the noise put the
    metrics behind the update first (``privacy.joined``).

    Args:
        client: the strategy's client half, whose scalars have names of their own.
        sampler: kind of sampling (``Sampling.kind``).
    Raises:
        RecipeError: E-VALUE for a name that is taken or comes twice.
        CompositionError: E-STATS as ``rules.refuse_unnoised_metrics``.
    """
    own = tuple(Metric(one.name, one.lower, one.upper) for one in recipe.metric)
    names = [metric.name for metric in own]
    for name in names:
        if name in _TAKEN or name in client.head or names.count(name) > 1:
            what = f"[[metric]] {name}: the name {'comes twice' if names.count(name) > 1 else 'has a meaning already'}."
            raise RecipeError("E-VALUE", what, "take another name.")
    losses = LOSS_METRICS if recipe.metrics == "sum" else ()
    each = (*losses, *(HELD_METRICS if recipe.eval.on_devices else ()), *own)
    if promise.who_noises is Noiser.NOBODY or not each:
        return Metrics(each)
    rules.refuse_unnoised_metrics(
        [metric.name for metric in each], in_steps=promise.who_noises is Noiser.STEPS, sampler=sampler
    )
    clip = 1.0 if recipe.dp.adaptive_clip else recipe.dp.clip_l2  # An adaptive clip is the unit of the update.
    return Metrics(each, min(HEAD_BOUND, SHARE * clip / sqrt(len(each))))
