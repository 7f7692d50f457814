"""codec = "adaptive": the rungs that fit a recipe and a model, in error feedback."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgewise.codecs import pack
from edgewise.codecs.feedback import feedback
from edgewise.codecs.ladder import ladder
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.space import Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import Catalogue
from edgewise.plan.ladder import RUNGS, remaining
from edgewise.plan.recipe import Recipe
from edgewise.plan.stages import build_stages


@dataclass(frozen=True)
class Offer:
    """A rung for one recipe and model: its stages and the bytes of one contribution by it, its number included."""

    name: str
    stages: tuple[Stage, ...]
    size_bytes: float


def offers(recipe: Recipe, spec: Spec, before: Space, catalogue: Catalogue) -> list[Offer]:
    """The rungs that the recipe names (all where it names none), from the most bytes to the fewest; also those above
    ``adaptive.max_upload_mb``. ``before``: the space at the ladder.

    Raises RecipeError: E-NAME for a rung that does not exist, E-VALUE for one named twice.
    """
    known = {rung.name: rung for rung in RUNGS}
    names = recipe.adaptive.ladder or list(known)
    for i, name in enumerate(names):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f'did you mean "{near[0]}"? ' if near else ""
            rungs = f"The rungs are: {', '.join(known)}."
            raise RecipeError("E-NAME", f'adaptive.ladder: no rung is called "{name}".', hint + rungs)
        if name in names[:i]:
            raise RecipeError("E-VALUE", f'adaptive.ladder names the rung "{name}" twice.', "name each once.")
    left = remaining(spec, recipe.stage)
    found = []
    for name in names:
        stages = tuple(build_stages(known[name].stages, left, catalogue.stages))
        space = before
        for stage in stages:
            space = stage.infer(space)
        found.append(Offer(name, stages, 1 + pack.size_bytes(space)))  # a rung's number takes one byte
    return sorted(found, key=lambda offer: -offer.size_bytes)


def at_ladder(recipe: Recipe, start: Space, stages: Sequence[Stage]) -> Space:
    """The space between the recipe's stages and the ladder, as feedback shows it to what is inside.

    Raises CompositionError(E-ORDER) for a stage that is a codec already: choosing it is the ladder's part.
    """
    space = start
    for i, stage in enumerate(stages):
        before, space = space, stage.infer(space)
        coded = space.kind is not before.kind or space.sparse or space.moving or space.memory or stage.server
        if coded:
            raise CompositionError(
                "E-ORDER",
                f'[[stage]] {i + 1} ({recipe.stage[i]["kind"]}): with codec = "adaptive" the ladder chooses the codec, '
                "in feedback of its own.",
                'leave the stage out (weigh, clip, clamp and segments may stay), or set codec = "stages".',
            )
    return space.but(l2=math.inf, linf=math.inf)


def adaptive(
    recipe: Recipe, spec: Spec, start: Space, stages: Sequence[Stage], catalogue: Catalogue
) -> tuple[tuple[str, ...], Stage]:
    """The names of the rungs within ``adaptive.max_upload_mb``, and feedback around the ladder of them."""
    offered = offers(recipe, spec, at_ladder(recipe, start, stages), catalogue)
    limit = recipe.adaptive.max_upload_mb * 1e6
    fitting = [offer for offer in offered if offer.size_bytes <= limit]
    if not fitting:
        least = offered[-1]
        raise RecipeError(
            "E-RUNG",
            f'adaptive.max_upload_mb = {recipe.adaptive.max_upload_mb:g}, but the smallest rung, "{least.name}", '
            f"takes {least.size_bytes / 1e6:.3g} MB.",
            "raise adaptive.max_upload_mb, name smaller rungs in adaptive.ladder, or train less.",
        )
    return tuple(offer.name for offer in fitting), feedback([ladder([offer.stages for offer in fitting])])
