"""The Python API: ``edgewise.simulate(recipe)``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewise.core.events import Sink
    from edgewise.plan.recipe import Recipe


@dataclass(frozen=True)
class Result:
    """A finished run: where it lies and its summary (the content of ``summary.json``).

    It shows itself as its folder and the perplexities, since a notebook prints the last value of a cell.
    """

    run_dir: Path
    summary: Mapping[str, Any]

    def __repr__(self) -> str:
        found = {model: q["weighted_mean"] for model, q in self.summary["perplexity"].items() if q}
        return f"Result({str(self.run_dir)!r}, perplexity={found})"


def simulate(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    out: str | Path | None = None,
    sinks: Sequence[Sink] = (),
    extensions: Sequence[str] = (),
    resume: bool = False,
) -> Result:
    """Play a recipe on this machine, from loading to the report.

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
    from edgewise.apps.extensions import importable
    from edgewise.apps.runs import place, read
    from edgewise.apps.simulate import run
    from edgewise.plan.catalogue import with_extensions
    from edgewise.plan.loading import examine
    from edgewise.plan.recipe import from_plain

    recipe_dir = Path()
    if isinstance(recipe, str | Path):
        recipe_dir = Path(recipe).parent
        recipe, parts = read(Path(recipe), {}, extensions)
    else:
        recipe = from_plain(dict(recipe)) if isinstance(recipe, Mapping) else recipe
        parts = importable(extensions, recipe_dir)
        examine(recipe, with_extensions(parts))
    path = Path(out) if out is not None else place(recipe)
    run(recipe, out=path, recipe_dir=recipe_dir, resume=resume, extensions=parts, sinks=sinks)
    return Result(path, json.loads((path / "summary.json").read_text(encoding="utf-8")))
