"""Build the chains of stages for a recipe's updates.

There is one chain per phase where parts of the model take turns. There is one per rung where a hidden cohort is sorted
by the links of its devices. Otherwise there is one for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgewise.core.errors import RecipeError
from edgewise.core.space import Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Segment, Spec
from edgewise.plan.catalogue import Catalogue
from edgewise.plan.codec_choice.choice import rungs_within_recipe
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.sampling import Sampling
from edgewise.plan.stages import build_stages, planned_segment_turns


class RecipeChains(NamedTuple):
    """The chains of a recipe.

    Attributes:
        stages: one chain per phase, or per rung.
        groups: for each phase the segments that it moves. Empty where nothing takes turns.
        rungs: names of the rungs that a device may choose from. Empty where the codec is fixed.
    """

    stages: Sequence[Sequence[Stage]]
    groups: tuple[tuple[Segment, ...], ...] = ()
    rungs: tuple[str, ...] = ()


def recipe_chains(
    recipe: Recipe, spec: Spec, start: Space, sampling: Sampling, catalogue: Catalogue, hidden: bool
) -> RecipeChains:
    """Build the chains of a recipe's stages.

    Args:
        spec: layout of the vector that travels.
        start: the space before the first stage.
        hidden: True where sums hide single updates.
    Raises:
        RecipeError: E-COMBO for a run that ends before every cohort trained every part, and for rungs beside parts that
            take turns; and as ``build_stages``.
        CompositionError: as ``schedule`` and ``adaptive``.
    """
    tables = [{"kind": turns}, *recipe.stage] if (turns := recipe.trainable.turns) else recipe.stage
    if recipe.split.local:
        tables = [{"kind": "cut_parts", "cut": recipe.split.cut}, *tables]
    if recipe.trainable.moves_base:  # The product of two weighed factors has to be divided by the weight once.
        at = int(bool(tables) and tables[0].get("kind") == "weigh")
        tables = [*tables[:at], {"kind": "products"}, *tables[at:]]
    groups = planned_segment_turns(tables, spec, catalogue.stages)
    phases = [build_stages(tables, spec, catalogue.stages, phase) for phase in range(max(1, len(groups)))]
    needed = sampling.groups * len(phases)
    if len(phases) > 1 and sampling.groups > 1 and recipe.round.rounds < needed:
        raise RecipeError(
            "E-COMBO",
            f"{recipe.round.rounds} rounds of {sampling.groups} cohorts in turn end before each of the {len(phases)} "
            "parts of the model that take turns was trained by all of them.",
            f"play {needed} rounds or more, take larger cohorts, or train the parts together.",
        )
    if recipe.codec != "adaptive":
        return RecipeChains(phases, groups)
    if groups:
        raise RecipeError(
            "E-COMBO",
            'codec = "adaptive" with segments that take turns: the rungs would be others in every round.',
            'leave out cycle, or fix the codec: codec = "stages".',
        )
    rungs, endings = rungs_within_recipe(recipe, spec, start, phases[0], catalogue, hidden)
    return RecipeChains([[*phases[0], *ending] for ending in endings], groups, rungs)
