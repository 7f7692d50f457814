"""Compile [[downlink]]: the pipeline that compresses the model's change for devices.

A delta is taken against the model that devices hold, so what one delta leaves out comes with the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Never

from edgewise.codecs.wire import pack
from edgewise.core import require
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Spec
from edgewise.merges.plain import plain_sum
from edgewise.plan.catalogue import Catalogue
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.stages import build_stages

DELTA_FRAME_BYTES = 75  # A ``frame.Delta`` without its payload. The digits of its integers change it a little.


def planned_delta_bytes(pipe: Pipeline) -> float:
    """Return the expected bytes of one round's delta, with its frame."""
    return pack.size_bytes(pipe.encoded) + DELTA_FRAME_BYTES


def planned_downlink(recipe: Recipe, spec: Spec, catalogue: Catalogue) -> Pipeline | None:
    """Build the download pipeline. Its one contribution is the server's.

    Returns:
        None where the recipe has no [[downlink]] stages.
    Raises:
        CompositionError: E-ORDER for a stage that cannot work in a download, E-COMBO for a quantizer that does not
            contract, and the refusals of the stages themselves.
        RecipeError: E-COMBO where a delta would be no smaller than the model, and as ``build_stages``.
    """
    stages = build_stages(recipe.downlink, spec, catalogue.stages, label="[[downlink]]")
    if not stages:
        return None
    if any(stage.server is not None for stage in stages):
        _refuse_downlink(stages, "a stage has a memory on the server to undo a mean, and nothing is averaged here")
    start = Space(dim=spec.dim, quorum=Quorum(1, 1))
    pipe = pipeline(start, stages, plain_sum())
    out = pipe.encoded
    if out.memory or pipe.init():
        _refuse_downlink(stages, "it remembers what a delta left out, and that comes back by itself in the next delta")
    if out.head:
        _refuse_downlink(stages, "a download has one model and nothing to weigh")
    if out.announced:
        _refuse_downlink(
            stages, "a stage needs the positions of the last release, and a late device has only the newest ones"
        )
    # A support follows the sizes of coordinates, and other projections are drawn anew in each round. A fixed choice
    # would leave out the same coordinates for good.
    if any(space.universe < spec.dim and not space.moving for space in pipe.spaces):
        _refuse_downlink(
            stages, "every delta would leave out the same coordinates, so their changes would never reach devices"
        )
    if any(space.l2 < inf or space.linf < inf for space in pipe.spaces):
        _refuse_downlink(stages, "a bound would cut every longer delta, so devices would fall behind for good")
    if out.gain > 1.0:
        raise CompositionError(
            "E-ORDER",
            f"[[downlink]]: a stage scales coordinates up {out.gain:.3g} times, so the error of deltas would grow.",
            "set unbiased = false for random_k.",
        )
    require.contracting(out, f"[[downlink]] {', '.join(stage.name for stage in stages)}")
    size, snapshot = planned_delta_bytes(pipe), 4 * spec.dim
    if size >= snapshot:
        raise RecipeError(
            "E-COMBO", f"[[downlink]]: a delta would have {size:.0f} bytes, the whole model has {snapshot}.",
            "compress more, or leave out [[downlink]].",
        )  # fmt: skip
    return pipe


def _refuse_downlink(stages: Sequence[Stage], why: str) -> Never:
    """Refuse stages of [[downlink]]."""
    names = ", ".join(stage.name for stage in stages)
    raise CompositionError("E-ORDER", f"[[downlink]] {names}: {why}.", "take it out of [[downlink]].")
