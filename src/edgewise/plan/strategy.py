"""Make the strategy of a recipe.

strategy = strategy_of(recipe, catalogue, spec, population)
strategy.directions      # None where the run's vector holds parameters
"""

from __future__ import annotations

from typing import Literal

from edgewise.core import keys
from edgewise.core.errors import RecipeError
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import Catalogue, make
from edgewise.plan.recipe.privacy import DP_WORDS
from edgewise.plan.recipe.recipe import Recipe
from edgewise.strategies.alarms import of_alarms
from edgewise.strategies.base import Strategy
from edgewise.strategies.depths import of_depths
from edgewise.strategies.products import of_products
from edgewise.strategies.ranks import of_ranks


def strategy_of(recipe: Recipe, catalogue: Catalogue, spec: Spec, population: int) -> Strategy:
    """Make the strategy of a recipe, with its answer to drift (``drift.act_step``). Raises as ``_without_alarms``."""
    made, drift = _without_alarms(recipe, catalogue, spec, population), recipe.drift
    return made if drift.act_step == 1.0 else of_alarms(made, drift.act_at, drift.act_step)


def _without_alarms(recipe: Recipe, catalogue: Catalogue, spec: Spec, population: int) -> Strategy:
    """Make the strategy that a recipe names.

    Args:
        spec: layout of the trained vector, for strategies that ask for it.
        population: number of devices, for strategies that ask for it.
    Raises:
        RecipeError: as ``plan.catalogue.make``. E-COMBO where the strategy or the word of privacy does not go with
            devices of unequal rank.
    Guarantees:
        The number of directions, or their absence, follows from the recipe's keys alone.
    """
    made: Strategy = make(catalogue.strategies, "[strategy]", recipe.strategy, spec, population=population)
    section = recipe.trainable
    if section.moves_base:
        if recipe.strategy["kind"] not in ("fedavg", "fedprox") or recipe.strategy.get("lr", 1.0) != 1.0:
            what = (
                f'trainable.rule = "{section.rule}" makes the model the mean of the devices\' models, and [strategy] '
            )
            what += f'"{recipe.strategy["kind"]}" steps otherwise.'
            raise RecipeError("E-COMBO", what, 'write kind = "fedavg" or "fedprox", with lr = 1.')
        rule: Literal["fedex", "flora"] = "fedex" if section.rule == "fedex" else "flora"
        key = keys.derive(keys.root(recipe.seed), "adapters")
        return of_products(made, spec, rule, section.scale, key) if spec.segments else made
    if section.last_blocks and recipe.split.used:
        what = "trainable.last_blocks trains the end of the model, and [split] trains its first blocks on every device."
        raise RecipeError("E-COMBO", what, "leave out one of them.")
    if not section.unequal and not section.block_shares:
        return made
    if made.client.memory or made.client.sends or made.directions is not None:
        which = "unequal rank" if section.unequal else "unequal depth"
        what = f'strategy "{recipe.strategy["kind"]}" cannot be used with devices of {which}: '
        raise RecipeError(
            "E-COMBO", f"{what}its vectors are means of all devices.", "use fedavg, fedprox or a server optimizer."
        )
    if section.block_shares:
        _check_depths(recipe)
        public = section.depth_shares if recipe.privacy in DP_WORDS else None
        return of_depths(made, spec, section.depths, public)
    return of_ranks(made, spec, section.levels, _rank_denominators(recipe))


def _check_depths(recipe: Recipe) -> None:
    """Refuse devices of unequal depth beside what trains all blocks, or other blocks. Raises RecipeError(E-COMBO)."""
    why = ""
    if recipe.personal.method != "none":
        why = f'personal.method = "{recipe.personal.method}" trains all blocks on every device'
    elif any(table.get("kind") == "segments" for table in recipe.stage):
        why = "the stage segments leaves out blocks by itself, the same ones on all devices"
    if why:
        what = f"trainable.block_shares lets devices train fewer blocks, and {why}."
        raise RecipeError("E-COMBO", what, "leave out one of them.")


def _rank_denominators(recipe: Recipe) -> dict[int, float] | None:
    """Return the public share of devices at each rank or more, where noise forbids exact scalars. None: they travel.

    Raises RecipeError(E-COMBO) where updates are hidden or noised and the recipe gives patterns instead of shares.
    """
    if recipe.privacy == "none":
        return None
    section = recipe.trainable
    if not section.shares:
        what = f'trainable.ranks by patterns of ids cannot be used with privacy = "{recipe.privacy}". Nobody could say '
        what += "beforehand how many devices of a sum train a column, and it may be one alone."
        raise RecipeError("E-COMBO", what, "give shares of the devices: rank_shares = {4 = 0.75, 16 = 0.25}.")
    if recipe.privacy not in DP_WORDS:
        return None
    return {rank: sum(s for r, s in section.shares.items() if r >= rank) for rank in section.levels}
