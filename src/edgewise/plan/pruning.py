"""Masks of a run that prunes between rounds. A mask is nothing but the zeros of the broadcast model.

dead(plan, round, params)              # what stays zero in the updates of a round
pruned_by_plan(plan, round, before, after)     # the model after the server's step of a round
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import RecipeError
from edgewise.core.pipeline import Pipeline
from edgewise.core.vector import Segment, Spec, Vector
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import Recipe
from edgewise.strategies.base import Strategy


def matrices_of_plan(spec: Spec) -> Iterator[Segment]:
    """Iterate over the segments that are pruned: matrices of numbered layers, so no embedding, output head or gain."""
    for s in spec.segments:
        if len(s.shape) == 2 and any(part.isdecimal() for part in s.name.split(".")):
            yield s


def pruned_positions(plan: Plan, round: int, params: Vector) -> NDArray[np.bool_] | None:
    """Find the coordinates that stay zero in a round: bool[d]. None before the first pruning.

    Args:
        params: float32[d], the model that devices train from.
    Edge cases: a live weight of a matrix that training moved to exactly zero counts as pruned. A matrix of zeros alone
        lives: no pruning leaves one, but a model may begin with one, and the rounds before may have been abandoned.
    """
    if not plan.recipe.prune.pruned(round, plan.rounds):
        return None
    out = np.zeros(params.size, np.bool_)
    for s in matrices_of_plan(plan.spec):
        zero = params[s.start : s.stop] == 0.0
        out[s.start : s.stop] = zero & ~zero.all()
    return out


def zero_pruned(mask: NDArray[np.bool_], x: Vector) -> Vector:
    """Make a copy of ``x`` (float32[d]) with exact zeros where the mask (bool[d]) is true."""
    return np.where(mask, np.float32(0.0), x)


def pruned_by_plan(plan: Plan, round: int, before: Vector, after: Vector) -> Vector:
    """Prune the model after the server's step of a round, float32[d].

    Weights that are zero in ``before`` stay zero. Then each matrix loses its weights of least magnitude, until
    floor(s n) of its n weights are zero, where s is the schedule's share (``PruneSection.pruned``). A round that was
    abandoned is made up for by the next one, because s depends on the number of the round alone.
    Guarantees: equal arguments give equal bytes. Of equal magnitudes the earlier weight goes.
    """
    share = plan.recipe.prune.pruned(round + 1, plan.rounds)
    if not share:
        return after
    mask = pruned_positions(plan, round, before)
    out = after.copy() if mask is None else zero_pruned(mask, after)
    for s in matrices_of_plan(plan.spec):
        part = out[s.start : s.stop]
        part[np.argsort(np.abs(part), kind="stable")[: int(share * s.size + 1e-9)]] = 0.0
    return out


def check_planned_pruning(
    recipe: Recipe, spec: Spec, strategy: Strategy, pipes: Sequence[Pipeline], cycles: bool
) -> None:
    """Check that nothing in the run holds on to the positions that pruning changes.

    Args:
        cycles: True where parts of the model take turns.
    Raises:
        RecipeError: E-COMBO where something does, and for a model without matrices to prune.
    """
    if not recipe.prune.active:
        return
    client = strategy.client
    faults = (
        (any(pipe.encoded.memory for pipe in pipes), "a stage that keeps memory on devices: it would send what it kept "
         "of weights that are pruned since", "leave out feedback, or prune the base: edgewise shrink."),
        (any(pipe.encoded.announced for pipe in pipes), "a stage that sends the positions of the last release: it "
         "would choose pruned weights", "leave the stage out."),
        (cycles, "parts of the model that take turns: weights would be pruned in rounds in which they rest",
         "train all parts together."),
        (bool(client.memory or client.sends or client.given or strategy.directions), "a strategy whose vectors or "
         "directions move pruned weights", "use fedavg, fedprox or a server optimizer."),
        (not any(True for _ in matrices_of_plan(spec)),
            "a model without a matrix in a numbered layer (a masked base has none)",
         "take a dense base."),
    )  # fmt: skip
    for found, what, fix in faults:
        if found:
            raise RecipeError("E-COMBO", f"[prune] cannot be used with {what}.", fix)
