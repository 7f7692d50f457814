"""[[downlink]]: the pipeline of the model's change on its way to devices, checked for what cannot work there."""

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

DELTA_FRAME_BYTES = 75  # of a ``frame.Delta``: all but its payload, give or take the digits of its integers


def delta_bytes(pipe: Pipeline) -> float:
    """Expected bytes of one round's delta, its frame included."""
    return pack.size_bytes(pipe.encoded) + DELTA_FRAME_BYTES


def downlink(recipe: Recipe, spec: Spec, catalogue: Catalogue) -> Pipeline | None:
    """The way down: one contribution, the server's, with nothing beside it. None where there are no stages.

    Raises:
        CompositionError: E-ORDER for what cannot work there, besides whatever the stages refuse by themselves.
        E-COMBO for a quantizer that does not contract.
        RecipeError: E-COMBO where a delta would be no smaller than the model; as ``build_stages``.
    """
    stages = build_stages(recipe.downlink, spec, catalogue.stages, label="[[downlink]]")
    if not stages:
        return None
    if any(stage.server is not None for stage in stages):
        _refuse(stages, "a stage has its own memory on the server: it undoes a mean, and nothing is averaged here")
    start = Space(dim=spec.dim, quorum=Quorum(1, 1))
    pipe = pipeline(start, stages, plain_sum())
    out = pipe.encoded
    if out.memory or pipe.init():
        _refuse(
            stages, "what a delta leaves out comes back by itself, as the next one is taken against what devices hold"
        )
    if out.head:
        _refuse(stages, "there is one model to send and nothing to weigh")
    if out.announced:
        _refuse(stages, "a stage needs the positions of the last release, and a late device has only the newest")
    # A support is chosen by size and other projections are drawn anew; what is fixed, or would take turns, stays here.
    if any(space.universe < spec.dim and not space.moving for space in pipe.spaces):
        _refuse(stages, "every delta would leave out the same coordinates, so their changes would never reach devices")
    if any(space.l2 < inf or space.linf < inf for space in pipe.spaces):
        _refuse(stages, "a delta longer than the bound would never arrive whole: devices would fall behind for good")
    if out.gain > 1.0:
        raise CompositionError(
            "E-ORDER",
            f"[[downlink]]: a stage stretches what it keeps {out.gain:.3g} times, so what deltas leave out would grow.",
            "set unbiased = false for random_k.",
        )
    require.contracting(out, f"[[downlink]] {', '.join(stage.name for stage in stages)}")
    size, snapshot = delta_bytes(pipe), 4 * spec.dim
    if size >= snapshot:
        raise RecipeError(
            "E-COMBO", f"[[downlink]]: a delta would have {size:.0f} bytes, the whole model has {snapshot}.",
            "compress more, or leave out [[downlink]].",
        )  # fmt: skip
    return pipe


def _refuse(stages: Sequence[Stage], why: str) -> Never:
    names = ", ".join(stage.name for stage in stages)
    raise CompositionError("E-ORDER", f"[[downlink]] {names}: {why}.", "take it out of [[downlink]].")
