"""The command ``edgewise stats``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.apps.terminal.options import HOME, Debug, Home, Json, Out, RecipePath, Set

if TYPE_CHECKING:
    from edgewise.drivers.http.link import Link
    from edgewise.plan.recipe.recipe import Recipe


def stats(
    recipe: RecipePath,
    overrides: Set = None,
    loss: Annotated[
        bool, typer.Option("--loss", help="Measure the recipe's model at every site instead of counting text.")
    ] = False,
    enrolled: Annotated[
        bool, typer.Option("--enrolled", help="Ask the enrolled devices of the server. Otherwise simulate.")
    ] = False,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="With --enrolled: only devices with this tag. Repeatable.")
    ] = None,
    out: Out = None,
    home: Home = HOME,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Count the text of all devices before training.

    Devices contribute histograms in place of updates: documents, lengths, tokens, drift. They are summed, hidden and
    noised as the recipe says, and charged to its budget. Plays in the simulator, or on the enrolled devices of a
    server, which read the text that their owners name.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    def body() -> dict[str, Any]:
        from edgewise.apps.cli.asking import asked_server
        from edgewise.apps.runs import recipe_file
        from edgewise.core.errors import RecipeError

        if enrolled and out is not None:
            raise RecipeError("E-COMBO", "--out with --enrolled: the server has the folder.", "leave out --out.")
        if tag and not enrolled:
            raise RecipeError("E-COMBO", "--tag chooses among enrolled devices.", "add --enrolled, or leave it out.")
        parsed, _ = recipe_file.read(recipe, recipe_file.assignments(overrides), ())
        what = "loss" if loss else "text"
        if enrolled:
            return dict(asked_server(home, lambda link: _ask_devices(link, parsed, recipe, what, tag or (), as_json)))
        return _simulate(parsed, recipe, what, out, as_json, debug)

    raise typer.Exit(CommandSession("stats", as_json=as_json, debug=debug).run(body))


def _simulate(recipe: Recipe, path: Path, what: str, out: Path | None, as_json: bool, debug: bool) -> dict[str, Any]:
    """Play the run of the statistics in the simulator, and print them."""
    import tempfile

    from edgewise.apps.terminal import sessions

    with (
        sessions.interrupts(),
        sessions.quiet_screen(None, debug),
        tempfile.TemporaryDirectory(prefix="edgewise-stats-") as scratch,
    ):
        from edgewise.apps.simulate import statistics
        from edgewise.apps.terminal import statistics_screen

        place = Path(scratch) / "run" if out is None else out
        found = statistics.play_statistics(recipe, path.parent, place, what)
        names = _token_names(recipe, path, what, as_json)
    if not as_json:
        print("\n".join(statistics_screen.statistics_lines(found, names)))
    return found


def _ask_devices(
    link: Link, recipe: Recipe, path: Path, what: str, tags: list[str] | tuple[str, ...], as_json: bool
) -> Mapping[str, Any]:
    """Submit the run of the statistics, wait for its end, and print them."""
    from edgewise.apps.cli.run_commands import follow_run, show_statistics
    from edgewise.apps.server.submit import submit
    from edgewise.apps.simulate import statistics
    from edgewise.core.errors import TransportError

    begun = submit(link, statistics.statistics_recipe(recipe, path.parent, what), path.parent, tags)
    run = begun["run"]
    if not as_json:
        print(f"run {run[:12]} of {begun['name']}; to print it again: edgewise run statistics {run[:12]}")
    ended = follow_run(link, run, as_json)
    if ended["state"] != "finished":
        what = f"run {run[:12]} is {ended['state']}. {ended['why'] or ''}".strip()
        raise TransportError("E-CONFLICT", what, f"look with `edgewise run show {run[:12]}`.")
    return {"run": run, **show_statistics(link, run, as_json, _token_names(recipe, path, what, as_json))}


def _token_names(recipe: Recipe, path: Path, what: str, as_json: bool) -> Mapping[int, str]:
    """Return the text of token ids, where it is printed."""
    from edgewise.apps.simulate import statistics

    return {} if what == "loss" or as_json else statistics.token_names(recipe, path.parent)
