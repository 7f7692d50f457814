"""The chains of stages that a recipe's updates take: one per phase where parts of the model take turns, one per rung
where a hidden cohort is sorted by what its devices can send, else one for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgewise.core.errors import RecipeError
from edgewise.core.space import Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Segment, Spec
from edgewise.plan.catalogue import Catalogue
from edgewise.plan.codec_choice.choice import adaptive
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.sampling import Sampling
from edgewise.plan.stages import build_stages, schedule


class Chains(NamedTuple):
    """The chains of a recipe.

    Attributes:
        stages: one chain per phase, or per rung.
        groups: for each phase the segments that it moves; empty where nothing takes turns.
        rungs: names of the rungs that a device may choose from; empty where the codec is fixed.
    """

    stages: Sequence[Sequence[Stage]]
    groups: tuple[tuple[Segment, ...], ...] = ()
    rungs: tuple[str, ...] = ()


def chains_of(
    recipe: Recipe, spec: Spec, start: Space, sampling: Sampling, catalogue: Catalogue, hidden: bool
) -> Chains:
    """The chains of a recipe's stages.

    Args:
        spec: layout of what travels. start: the space before the first stage. hidden: whether sums hide their parts.
    Raises:
        RecipeError: as ``build_stages``; E-COMBO for a run that ends before every part was trained by every cohort, and
            for rungs beside parts that take turns.
        CompositionError: as ``schedule`` and ``adaptive``.
    """
    tables = [{"kind": "factors"}, *recipe.stage] if recipe.trainable.kind == "rolora" else recipe.stage
    groups = schedule(tables, spec, catalogue.stages)
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
        return Chains(phases, groups)
    if groups:
        raise RecipeError(
            "E-COMBO",
            'codec = "adaptive" with segments that take turns: the rungs would be others in every round.',
            'leave out cycle, or fix the codec: codec = "stages".',
        )
    rungs, endings = adaptive(recipe, spec, start, phases[0], catalogue, hidden)
    return Chains([[*phases[0], *ending] for ending in endings], groups, rungs)
