"""Choose the rungs of codec = "adaptive" that fit a recipe and a model.

Where updates are visible, one error feedback holds all rungs. Where sums hide them, each rung has a chain of its own,
and a cohort is sorted into groups of one rung.
"""

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
from edgewise.plan.codec_choice.rungs import MASKED_RUNGS, RUNGS, PlannedMaskedRung, PlannedRung, layout_after_recipe
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.stages import build_stages
from edgewise.privacy.clip import clamp, clip
from edgewise.secagg.merge import smallest_masked_sum

# Clamp at 4 standard deviations of a rotated coordinate of an update at the clip. It cuts about 1 in 16,000.
CLAMP_STDS = 4.0
# A random share of an update at the clip has a typical length. Clip it at so many times that length.
CUT = 1.5
# Beyond this factor the random choice adds more noise than the updates of a few devices can carry.
STRETCH_MOST = 20.0


@dataclass(frozen=True)
class OfferedRung:
    """A rung for one recipe and model.

    Attributes:
        name: the rung's name.
        stages: its stages. Where a sum hides single updates, they are all stages after the recipe's own.
        size_bytes: bytes of one contribution, with the rung's number. Under secure aggregation the number travels with
            the keys.
    """

    name: str
    stages: tuple[Stage, ...]
    size_bytes: float


def offered_rungs(
    recipe: Recipe, spec: Spec, before: Space, catalogue: Catalogue, hidden: bool = False
) -> list[OfferedRung]:
    """Return the rungs that the recipe names, or all where it names none, from the most bytes to the fewest.

    Rungs above ``adaptive.max_upload_mb`` are among them.

    Args:
        before: the space at the ladder.
        hidden: True for the rungs of masked sums.
    Raises:
        RecipeError: E-NAME for a rung that does not exist, E-VALUE for one named twice.
        CompositionError: E-NO-BOUND for a masked rung without a clip.
    """
    known: Mapping[str, PlannedRung | PlannedMaskedRung] = {
        rung.name: rung for rung in (MASKED_RUNGS if hidden else RUNGS)
    }
    names = recipe.adaptive.ladder or list(known)
    for i, name in enumerate(names):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f'did you mean "{near[0]}"? ' if near else ""
            rungs = f"The rungs are: {', '.join(known)}."
            raise RecipeError("E-NAME", f'adaptive.ladder: no rung is called "{name}".', hint + rungs)
        if name in names[:i]:
            raise RecipeError("E-VALUE", f'adaptive.ladder names the rung "{name}" twice.', "name each once.")
    layout = layout_after_recipe(spec, recipe.stage)
    found = []
    for name in names:
        rung = known[name]
        if isinstance(rung, PlannedMaskedRung):
            chain = _masked_rung_stages(rung, before)
            found.append(OfferedRung(name, chain, pack.size_bytes(fold(before, chain))))
            continue
        stages = tuple(build_stages(rung.stages, layout, catalogue.stages))
        space = fold(before, stages)
        found.append(OfferedRung(name, stages, 1 + pack.size_bytes(space)))  # The rung's number takes one byte.
    return sorted(found, key=lambda offer: -offer.size_bytes)


def _masked_rung_stages(rung: PlannedMaskedRung, before: Space) -> tuple[Stage, ...]:
    """Build the stages of a masked rung: a random choice of coordinates, a shared grid, and a ring.

    There is no error feedback. The group makes the choice, so the rest would come back rounds later, from a model that
    no longer exists. A rotated coordinate of a vector of length l2 has a standard deviation of l2 / sqrt(d), and the
    grid ends at ``CLAMP_STDS`` of them.
    """
    if not math.isfinite(before.l2):
        raise CompositionError(
            "E-NO-BOUND",
            'codec = "adaptive" behind a hidden sum: a grid that all devices share needs a bound on the update.',
            'put a clip before the ladder: [[stage]] kind = "clip" with l2.',
        )
    choice = [] if rung.keep == 1.0 else [random_k(rung.keep, most=STRETCH_MOST)]
    space = fold(before, choice)
    length = space.l2 * math.sqrt(space.dim / before.dim)
    cut = [clip(CUT * length)] if choice else []
    grid = [rotate(), clamp(CLAMP_STDS * length / math.sqrt(space.dim)), quantize(rung.bits, "shared")]
    return *choice, *cut, *grid, wrap()


def space_at_ladder(recipe: Recipe, start: Space, stages: Sequence[Stage], hidden: bool = False) -> Space:
    """Return the space between the recipe's stages and the ladder.

    Where updates are visible, it is the space inside error feedback, which has no bounds.

    Raises:
        CompositionError: E-ORDER for a stage that is a codec already, because the ladder chooses the codec.
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


def most_rung_groups(recipe: Recipe, merge: Merge, minimum: int, corrupt: int) -> tuple[int, int]:
    """Return the largest number of groups of one rung in a hidden cohort, and the size of the smallest group.

    A device is in the group that it asks for, so all ``corrupt`` devices of a cohort may be in one group.

    Raises:
        RecipeError: E-COMBO where there can be no groups.
    """
    kind = recipe.merge["kind"]
    if recipe.privacy != "hidden" or merge.hides != ByMasks() or recipe.post:
        what = f'codec = "adaptive" with privacy = "{recipe.privacy}", [merge] {kind} and posts: {len(recipe.post)}.'
        fix = 'hidden rungs need privacy = "hidden", [merge] kind = "secure_sum" and no [[post]]; or codec = "stages".'
        raise RecipeError("E-COMBO", what, fix)
    groups = recipe.adaptive.groups
    return groups, min(
        minimum, max(minimum // groups, smallest_masked_sum(corrupt, dropout=recipe.trust.dropout_fraction))
    )


def rungs_within_recipe(
    recipe: Recipe, spec: Spec, start: Space, stages: Sequence[Stage], catalogue: Catalogue, hidden: bool
) -> tuple[tuple[str, ...], list[tuple[Stage, ...]]]:
    """Return the names of the rungs within ``adaptive.max_upload_mb``, and the stages that follow the recipe's own.

    Where updates are visible, one chain follows: error feedback around the ladder of all rungs. Where sums hide them,
    one chain follows for each rung.

    Raises:
        RecipeError: E-RUNG where no rung is small enough, and as ``offered_rungs``.
        CompositionError: as ``offered_rungs`` and ``space_at_ladder``.
    """
    offered = offered_rungs(recipe, spec, space_at_ladder(recipe, start, stages, hidden), catalogue, hidden)
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
