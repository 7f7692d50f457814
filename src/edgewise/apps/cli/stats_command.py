"""The command ``edgewise stats``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.apps.terminal.options import Debug, Json, Out, RecipePath, Set


def stats(
    recipe: RecipePath,
    overrides: Set = None,
    loss: Annotated[
        bool, typer.Option("--loss", help="Measure the recipe's model at every site instead of counting text.")
    ] = False,
    out: Out = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Count the text of all devices before training.

    Devices contribute histograms in place of updates: documents, lengths, tokens, drift. They are summed, hidden and
    noised as the recipe says, and charged to its budget. Plays in the simulator.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    def body() -> dict[str, Any]:
        import tempfile

        from edgewise.apps.runs import recipe_file
        from edgewise.apps.terminal import sessions

        parsed, _ = recipe_file.read(recipe, recipe_file.assignments(overrides), ())
        with (
            sessions.interrupts(),
            sessions.quiet_screen(None, debug),
            tempfile.TemporaryDirectory(prefix="edgewise-stats-") as scratch,
        ):
            from edgewise.apps.simulate import statistics, statistics_screen

            place = Path(scratch) / "run" if out is None else out
            found = statistics.play_statistics(parsed, recipe.parent, place, "loss" if loss else "text")
            names = {} if loss or as_json else statistics.token_names(parsed, recipe.parent)
        if not as_json:
            print("\n".join(statistics_screen.statistics_lines(found, names)))
        return found

    raise typer.Exit(CommandSession("stats", as_json=as_json, debug=debug).run(body))
