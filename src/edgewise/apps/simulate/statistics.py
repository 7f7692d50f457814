"""Statistics of a federation's text before training, as a hidden and noised sum.

    found = play_statistics(recipe, recipe_dir, out)
    found["parts"]["lengths"]          # one value for each bucket, with the noise on it

The recipe's words on privacy, its text and its cohorts decide a run of two rounds, in which devices contribute
histograms (``learn.text.statistics``) instead of updates. So stages, secure aggregation, noise, ledger and budget are
those of any run. The run's folder can be looked at and verified as others can.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewise.apps.runs.statistics import MODULES, read_statistics
from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.learn.text import statistics as text
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.statistics import counting_recipe


def statistics_recipe(recipe: Recipe, recipe_dir: Path, what: str = "text") -> Recipe:
    """Make the recipe of the statistics, with absolute paths. ``what`` as in ``play_statistics``. Raises as
    ``counting_recipe``."""
    return counting_recipe(recipe, what, MODULES[what].BOUND_L2, lambda path: _placed(path, recipe_dir))


def play_statistics(
    recipe: Recipe, recipe_dir: Path, out: Path, what: str = "text", sinks: tuple[events.Sink, ...] = ()
) -> dict[str, Any]:
    """Play the run of the statistics in a new folder ``out``, and read the result.

    Args:
        what: ``text`` counts text, and ``loss`` measures the recipe's model at every site.
    Returns:
        As ``read_statistics``.
    Raises:
        RecipeError: as ``statistics_recipe``. Others as ``simulation.play``.
    """
    made = statistics_recipe(recipe, recipe_dir, what)
    simulation.run(made, out=out, recipe_dir=recipe_dir, sinks=sinks, report=False)
    return read_statistics(out)


def token_names(recipe: Recipe, recipe_dir: Path) -> dict[int, str]:
    """Return the text of each bucket of the vocabulary. Empty where ids are hashed."""
    known = text.statistics_tokenizer(recipe, recipe_dir)
    return {} if known.size > text.VOCABULARY else {i: known.decode([i]) for i in range(known.size)}


def _placed(path: str, recipe_dir: Path) -> str:
    """Make a path of the recipe absolute, because the counting does not know the recipe's folder."""
    if not path or path == "bundled" or ":" in path:
        return path
    return str((recipe_dir / Path(path).expanduser()).resolve())
