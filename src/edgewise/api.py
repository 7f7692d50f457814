"""The Python API in one call: ``edgewise.simulate(recipe)``. Objects: ``edgewise.Federation``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewise.apps.federation.run import Run
    from edgewise.apps.federation.settings import Recipe
    from edgewise.core.events import Sink
    from edgewise.plan.recipe import recipe as recipes


def simulate(
    recipe: str | Path | Mapping[str, Any] | Recipe | recipes.Recipe,
    *,
    out: str | Path | None = None,
    sinks: Sequence[Sink] = (),
    extensions: Sequence[str] = (),
    resume: bool = False,
) -> Run:
    """Play a recipe on this machine, from loading to the report: ``Federation(recipe, ...).run(out)`` in silence.

    Args:
        recipe: path of a TOML file, plain tables, or a Recipe.
        out: run directory; default ``runs/<name>-<hash>``.
        sinks: callables that get every event (``edgewise.core.events``) as it happens.
        extensions: modules that define ``EDGEWISE = Extension(...)`` with codecs, strategies or a trainer of your own,
            by name or by file (``"signs.py"``); looked for also in the current folder and beside the recipe.
        resume: go on with an unfinished run in ``out``.
    Raises:
        edgewise.EdgewiseError: with a stable code; ``edgewise explain CODE`` says more.
    """
    from edgewise.apps.federation.federation import Federation

    return Federation(recipe, extensions=extensions, sinks=sinks).run(out, resume=resume, progress=False)
