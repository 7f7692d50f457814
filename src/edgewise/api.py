"""Simulate a recipe in one call: ``edgewise.simulate(recipe)``. ``edgewise.Federation`` is the API for objects."""

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
    """Simulate a recipe on this machine, from loading to the report, without output.

        run = edgewise.simulate("recipe.toml", out="out")

    It is short for ``Federation(recipe, ...).run(out, progress=False)``.

    Args:
        recipe: path of a TOML file, plain tables, or a Recipe.
        out: run directory; the default is ``runs/<name>-<hash>``.
        sinks: functions that are called with every event (``edgewise.core.events``) as it happens.
        extensions: modules of your own that define ``EDGEWISE = Extension(...)`` with codecs, strategies or a trainer.
            Each is a module's name or a file (``"signs.py"``), which is also looked for in the current folder and
            beside the recipe.
        resume: continue the unfinished run in ``out``.
    Returns:
        The run, with its figures, model and report.
    Raises:
        edgewise.EdgewiseError: with a stable code, which ``edgewise explain CODE`` explains.
    """
    from edgewise.apps.federation.federation import Federation

    return Federation(recipe, extensions=extensions, sinks=sinks).run(out, resume=resume, progress=False)
