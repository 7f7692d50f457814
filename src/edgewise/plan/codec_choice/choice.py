"""codec = "adaptive": the rungs that fit a recipe and a model; in error feedback where sums are visible, and where they
are hidden a way of its own for each, with the groups that a cohort is sorted into."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.ladder import ladder
from edgewise.codecs.project.rotate import rotate
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.quantize.wrap import wrap
from edgewise.codecs.select.random_k import random_k
from edgewise.codecs.wire import pack
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.space import ByMasks, Space
from edgewise.core.stage import Merge, Stage, fold
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import Catalogue
from edgewise.plan.codec_choice.rungs import MASKED_RUNGS, RUNGS, MaskedRung, Rung, remaining
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.stages import build_stages
from edgewise.privacy.clip import clamp, clip
from edgewise.secagg.merge import fewest

CLAMP_STDS = 4.0  # of a rotated coordinate of an update at the clip: beyond, one in 16,000 is cut
CUT = 1.5  # times the length that a random share of an update at the clip has: longer ones are clipped
STRETCH_MOST = 20.0  # of what travels for all: beyond, a choice adds more noise than a few devices' updates can carry


@dataclass(frozen=True)
class Offer:
    """A rung for one recipe and model: its stages and the bytes of one contribution by it, its number included. Where
    a sum hides its parts ``stages`` are all that is left of the way, and the number travels with the keys."""

    name: str
    stages: tuple[Stage, ...]
    size_bytes: float


def offers(recipe: Recipe, spec: Spec, before: Space, catalogue: Catalogue, hidden: bool = False) -> list[Offer]:
    """The rungs that the recipe names (all where it names none), from the most bytes to the fewest; also those above
    ``adaptive.max_upload_mb``. ``before``: the space at the ladder. ``hidden``: those for masked sums.

    Raises:
        RecipeError: E-NAME for a rung that does not exist, E-VALUE for one named twice. CompositionError: E-NO-BOUND.
    """
    known: Mapping[str, Rung | MaskedRung] = {rung.name: rung for rung in (MASKED_RUNGS if hidden else RUNGS)}
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
        rung = known[name]
        if isinstance(rung, MaskedRung):
            chain = _masked(rung, before)
            found.append(Offer(name, chain, pack.size_bytes(fold(before, chain))))
            continue
        stages = tuple(build_stages(rung.stages, left, catalogue.stages))
        space = fold(before, stages)
        found.append(Offer(name, stages, 1 + pack.size_bytes(space)))  # a rung's number takes one byte
    return sorted(found, key=lambda offer: -offer.size_bytes)


def _masked(rung: MaskedRung, before: Space) -> tuple[Stage, ...]:
    """A random choice of coordinates that stands for all, and a shared grid; then a ring.

    Nothing is remembered: the choice is the group's, so what it leaves out would come back rounds later, from a model
    that is no more. A rotated coordinate of a vector of length l2 has a standard deviation of l2 / sqrt(d), and the
    grid ends at ``CLAMP_STDS`` of them.
    """
    if not math.isfinite(before.l2):
        raise CompositionError(
            "E-NO-BOUND",
            'codec = "adaptive" behind a hidden sum: a grid that all devices share needs a bound on the update.',
            'put a clip before the ladder: [[stage]] kind = "clip" with l2.',
        )
    chosen = [] if rung.keep == 1.0 else [random_k(rung.keep, most=STRETCH_MOST)]
    kept = fold(before, chosen)
    length = kept.l2 * math.sqrt(kept.dim / before.dim)
    cut = [clip(CUT * length)] if chosen else []
    grid = [rotate(), clamp(CLAMP_STDS * length / math.sqrt(kept.dim)), quantize(rung.bits, "shared")]
    return *chosen, *cut, *grid, wrap()


def at_ladder(recipe: Recipe, start: Space, stages: Sequence[Stage], hidden: bool = False) -> Space:
    """The space between the recipe's stages and the ladder; where sums are visible as feedback shows it to what is
    inside, without bounds.

    Raises CompositionError(E-ORDER) for a stage that is a codec already: choosing it is the ladder's part.
    """
    space = start
    for i, stage in enumerate(stages):
        before, space = space, stage.infer(space)
        coded = space.grid.kind is not before.grid.kind or space.sparse or space.moving or space.memory or stage.server
        if coded:
            raise CompositionError(
                "E-ORDER",
                f'[[stage]] {i + 1} ({recipe.stage[i]["kind"]}): with codec = "adaptive" the ladder chooses the codec, '
                "in feedback of its own.",
                'leave the stage out (weigh, clip, clamp and segments may stay), or set codec = "stages".',
            )
    return space if hidden else space.but(l2=math.inf, linf=math.inf)


def sorting(recipe: Recipe, merge: Merge, minimum: int, corrupt: int) -> tuple[int, int]:
    """Into how many groups of one rung a hidden cohort may be sorted, and devices of the smallest group.

    A device is in the group that it asks for, so all ``corrupt`` ones of a cohort may be in one.
    Raises RecipeError(E-COMBO) where there can be no groups.
    """
    kind = recipe.merge["kind"]
    if recipe.privacy != "hidden" or merge.hides != ByMasks() or recipe.post:
        what = f'codec = "adaptive" with privacy = "{recipe.privacy}", [merge] {kind} and posts: {len(recipe.post)}.'
        fix = 'hidden rungs need privacy = "hidden", [merge] kind = "secure_sum" and no [[post]]; or codec = "stages".'
        raise RecipeError("E-COMBO", what, fix)
    groups = recipe.adaptive.groups
    return groups, min(minimum, max(minimum // groups, fewest(corrupt, dropout=recipe.trust.dropout_fraction)))


def adaptive(
    recipe: Recipe, spec: Spec, start: Space, stages: Sequence[Stage], catalogue: Catalogue, hidden: bool
) -> tuple[tuple[str, ...], list[tuple[Stage, ...]]]:
    """The names of the rungs within ``adaptive.max_upload_mb``, and how the stages go on: in one way, feedback around
    the ladder of them, or where a sum hides its parts in a way of its own for each."""
    offered = offers(recipe, spec, at_ladder(recipe, start, stages, hidden), catalogue, hidden)
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
    names = tuple(offer.name for offer in fitting)
    if hidden:
        return names, [offer.stages for offer in fitting]
    return names, [(feedback([ladder([offer.stages for offer in fitting])]),)]
