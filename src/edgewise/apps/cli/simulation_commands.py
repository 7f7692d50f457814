"""The commands ``edgewise demo``, ``sim`` and ``report``: simulated runs and their reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.apps.terminal.options import (
    Debug,
    Engine,
    Extension,
    Json,
    Out,
    Quiet,
    RayAddress,
    RecipePath,
    Resume,
    RunDir,
    Set,
    Workers,
)


def demo(
    what: Annotated[
        str, typer.Argument(metavar="plays|code|edge-llm|smart-home|industrial", help="Demonstration.")
    ] = "plays",
    network: Annotated[
        bool, typer.Option("--network", help="Run five device processes and a server over TLS.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Data of a demonstration whose data does not ship.")
    ] = None,
    overrides: Set = None,
    out: Out = None,
    resume: Resume = False,
    engine: Engine = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a demonstration from start to report.

    Models and texts ship with edgewise, and nothing is downloaded. The clips of
    smart-home and the recordings of industrial do not ship.
    """
    from edgewise.apps.cli import doctor

    if network:
        raise typer.Exit(_network_demo(what, overrides, out, as_json, quiet, debug))
    chosen = any(one.partition("=")[0].strip() == "simulation.engine" for one in overrides or ())
    if engine is None and not chosen:
        engine = "ray" if ray_address else "pool" if doctor.cores() > 1 or workers else "inproc"
    _simulate_recipe(
        "demo", what, overrides, out, resume, engine, workers, ray_address, [], as_json, quiet, debug, data
    )


def sim(
    recipe: RecipePath,
    overrides: Set = None,
    out: Out = None,
    resume: Resume = False,
    engine: Engine = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    extension: Extension = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Simulate a federation on this machine.

    Trains all rounds, runs the recipe's comparisons (each device alone, pooled text), and writes a report.
    """
    _simulate_recipe(
        "sim", recipe, overrides, out, resume, engine, workers, ray_address, extension or [], as_json, quiet, debug
    )


def report(run_dir: RunDir, as_json: Json = False, debug: Debug = False) -> None:
    """Rebuild a run's report from its database.

    Writes the summary, the plots and the page. The run need not be finished.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    session = CommandSession("report", as_json=as_json, debug=debug)

    def body() -> dict[str, Any]:
        from edgewise.apps.report.files import write_report
        from edgewise.apps.runs.run_dirs import opened

        with opened(run_dir) as store:
            summary = write_report(store, run_dir)
        if not as_json:
            from rich.console import Console

            from edgewise.apps.cli import result

            result.show(Console(), summary, run_dir)
        return {"run_dir": str(run_dir), "report": str(run_dir / "report.html"), "summary": summary}

    raise typer.Exit(session.run(body))


def _simulate_recipe(
    name: str,
    source: Path | str,
    overrides: list[str] | None,
    out: Path | None,
    resume: bool,
    engine: str | None,
    workers: int | None,
    ray_address: str | None,
    extensions: list[str],
    as_json: bool,
    quiet: bool,
    debug: bool,
    data: Path | None = None,
) -> None:
    """Run a recipe file, or a demonstration by its name over ``data``."""
    from edgewise.apps.terminal.sessions import CommandSession

    session = CommandSession(name, as_json=as_json, debug=debug, extensions=extensions)

    def body() -> dict[str, Any]:
        from edgewise.apps.cli import demos, playing
        from edgewise.apps.runs import recipe_file, run_dirs
        from edgewise.core.errors import RecipeError

        path, says = (demos.demo_recipe(source), demos.SAYS[source]) if isinstance(source, str) else (source, "")
        values = {
            **(demos.data_setting(source, data) if isinstance(source, str) else {}),
            **recipe_file.assignments(overrides),
        }
        for key, given in (("engine", engine), ("workers", workers), ("ray_address", ray_address)):
            if given is not None:
                values[f"simulation.{key}"] = given
        if isinstance(source, str) and source in demos.DEPLOYED:
            return playing.play_deployment(session, path.parent, values, out, resume, quiet, says)
        recipe, parts = recipe_file.read(path, values, extensions)
        if workers is not None and recipe.simulation.engine == "inproc":
            what = '--workers needs the engine pool or ray. The engine of this recipe is "inproc".'
            raise RecipeError("E-COMBO", what, "add --engine pool, or leave out --workers.")
        at = out or run_dirs.place(recipe, bool(says), resume)
        return playing.play(session, recipe, path.parent, at, resume, parts, quiet, says)

    raise typer.Exit(session.run(body))


def _network_demo(
    what: str, overrides: list[str] | None, out: Path | None, as_json: bool, quiet: bool, debug: bool
) -> int:
    """Run the demonstration on device processes and return the exit status."""
    from edgewise.apps.cli import playing
    from edgewise.apps.runs import recipe_file
    from edgewise.apps.terminal.sessions import CommandSession

    session = CommandSession("demo", as_json=as_json, debug=debug)
    return session.run(lambda: playing.play_network(session, what, recipe_file.assignments(overrides), out, quiet))
