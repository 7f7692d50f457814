"""The command ``edgewise sweep``: run one recipe under several settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.apps.terminal.options import Debug, Extension, Json, Quiet, RecipePath, Set

Grid = Annotated[
    list[str],
    typer.Argument(
        metavar="KEY=VALUE,VALUE...", help="Values to try, e.g. training.lr=0.001,0.01.", show_default=False
    ),
]
SweepOut = Annotated[
    Path | None, typer.Option("--out", help="Folder for the runs and the comparison page.", show_default=False)
]


def sweep(
    recipe: RecipePath,
    grid: Grid,
    overrides: Set = None,
    out: SweepOut = None,
    extension: Extension = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a recipe under several settings and compare them.

    Each combination of values is one run. comparison.html compares them. The same command continues an interrupted
    sweep and does not repeat finished runs.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    session = CommandSession("sweep", as_json=as_json, debug=debug, extensions=extension)

    def body() -> dict[str, Any]:
        from edgewise.apps.federation import settings
        from edgewise.apps.federation import sweep as sweeps
        from edgewise.apps.report import comparison
        from edgewise.apps.runs import recipe_file
        from edgewise.apps.terminal import sessions
        from edgewise.drivers.storage import folder

        given = settings.put(settings.tables_of(recipe), recipe_file.assignments(overrides))
        wanted = dict(_key_and_values(one) for one in grid)
        at = out or Path("runs") / f"sweep-{recipe.stem}"
        planned = sweeps.sweep_trials(wanted, at)
        folder.claim(at)
        objects = {"extensions": extension or (), "home": recipe.parent}
        with sessions.interrupts():
            for number, run in enumerate(
                sweeps.play_sweep(given, planned, objects, progress=None if not quiet else False)
            ):
                if not (as_json or quiet):
                    typer.echo(f"{number + 1} of {len(planned)}  {run.run_dir}", err=True)
        found = sweeps.compared_sweep(planned, at)
        if not as_json:
            from rich.console import Console

            comparison.show_comparison(Console(), found.found)
            typer.echo(f"page  {found.page}")
        return {"page": str(found.page), "best": dict(found.best.settings), **found.found}

    raise typer.Exit(session.run(body))


def _key_and_values(given: str) -> tuple[str, Sequence[Any]]:
    """Parse ``training.lr=0.001,0.01`` or ``trainable.targets=[["q"], ["v"]]`` into a key and its values."""
    from edgewise.apps.runs import recipe_file

    key, equals, text = given.partition("=")
    if text.lstrip().startswith("["):
        found = recipe_file.assignments([given])
        return next(iter(found.items()))
    parts = [recipe_file.assignments([f"{key}{equals}{one}"]) for one in text.split(",")]
    return key.strip(), [value for part in parts for value in part.values()]
