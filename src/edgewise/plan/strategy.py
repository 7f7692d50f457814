"""Make the strategy of a recipe.

strategy = strategy_of(recipe, catalogue, spec, population)
strategy.directions      # None where the run's vector holds parameters
"""

from __future__ import annotations

from edgewise.core.vector import Spec
from edgewise.plan.catalogue import Catalogue, make
from edgewise.plan.recipe.recipe import Recipe
from edgewise.strategies.base import Strategy


def strategy_of(recipe: Recipe, catalogue: Catalogue, spec: Spec, population: int) -> Strategy:
    """Make the strategy that a recipe names.

    Args:
        spec: layout of the trained vector, for strategies that ask for it.
        population: number of devices, for strategies that ask for it.
    Raises:
        RecipeError: as ``plan.catalogue.make``.
    Guarantees:
        The number of directions, or their absence, follows from the recipe's keys alone.
    """
    made: Strategy = make(catalogue.strategies, "[strategy]", recipe.strategy, spec, population=population)
    return made
