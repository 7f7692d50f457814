"""The command line and its entry point. Commands import everything beyond typer inside, so that help is fast."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.apps.cli import device_commands as owners
from edgewise.apps.cli import gateway_commands as gateways
from edgewise.apps.cli import guides, keeping, model_commands, run_commands, sweeping
from edgewise.apps.cli import server_commands as operators
from edgewise.apps.terminal.options import (
    Debug,
    Engine,
    Extension,
    Json,
    Out,
    Quiet,
    RecipePath,
    Resume,
    RunDir,
    Set,
    Workers,
)

if TYPE_CHECKING:
    from edgewise.apps.terminal.sessions import CommandSession

app = typer.Typer(
    name="edgewise",
    help="Federate language-model training on data that stays where it is.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench", help="Measure parts of edgewise on your own model.")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"edgewise {version('edgewise')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Federate language-model training on data that stays where it is."""


@app.command()
def demo(
    what: Annotated[
        str, typer.Argument(metavar="plays|code", help="Shakespeare's plays or Python's library as text.")
    ] = "plays",
    network: Annotated[
        bool, typer.Option("--network", help="Run five device processes and a server over TLS.")
    ] = False,
    overrides: Set = None,
    out: Out = None,
    resume: Resume = False,
    engine: Engine = None,
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a demonstration from start to report.

    The model and the text ship with edgewise. Nothing is downloaded.
    """
    from edgewise.apps.cli import doctor

    if network:
        raise typer.Exit(_network_demo(what, overrides, out, as_json, quiet, debug))
    chosen = any(one.partition("=")[0].strip() == "simulation.engine" for one in overrides or ())
    if engine is None and not chosen:
        engine = "pool" if doctor.cores() > 1 or workers else "inproc"
    _simulate("demo", what, overrides, out, resume, engine, workers, [], as_json, quiet, debug)


app.command()(guides.new)
app.command()(guides.recipes)


@app.command()
def check(
    recipe: RecipePath,
    overrides: Set = None,
    extension: Extension = None,
    fast: Annotated[bool, typer.Option("--fast", help="Skip the measured training step.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Validate a recipe and estimate its cost and privacy.

    Loads the real model and text. Runs one training step to measure its speed, and nothing else.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    verdict = "not ok: this recipe does not run"
    session = CommandSession("check", as_json=as_json, debug=debug, verdict=verdict, extensions=extension)

    def body() -> dict[str, Any]:
        from edgewise.apps.runs import recipe_file
        from edgewise.apps.terminal import sessions

        parsed, parts = recipe_file.read(recipe, recipe_file.assignments(overrides), extension or ())
        with sessions.interrupts(), sessions.quiet_screen(None, debug):
            from edgewise.apps.simulate import check as checker
            from edgewise.plan.catalogue import with_extensions

            found = checker.examine(parsed, recipe.parent, with_extensions(parts), fast)
        if not as_json:
            from rich.console import Console

            checker.show(Console(), found, str(recipe))
        return found

    raise typer.Exit(session.run(body))


@app.command()
def sim(
    recipe: RecipePath,
    overrides: Set = None,
    out: Out = None,
    resume: Resume = False,
    engine: Engine = None,
    workers: Workers = None,
    extension: Extension = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Simulate a federation on this machine.

    Trains all rounds, runs the recipe's comparisons (each device alone, pooled text), and writes a report.
    """
    _simulate("sim", recipe, overrides, out, resume, engine, workers, extension or [], as_json, quiet, debug)


@app.command()
def report(run_dir: RunDir, as_json: Json = False, debug: Debug = False) -> None:
    """Rebuild a run's report from its database.

    Writes the summary, the plots and the page. The run need not be finished.
    """
    session = _session("report", as_json, debug)

    def body() -> dict[str, Any]:
        from edgewise.apps.runs.run_dirs import opened
        from edgewise.apps.simulate.simulation import write_report

        with opened(run_dir) as store:
            summary = write_report(store, run_dir)
        if not as_json:
            from rich.console import Console

            from edgewise.apps.cli import result

            result.show(Console(), summary, run_dir)
        return {"run_dir": str(run_dir), "report": str(run_dir / "report.html"), "summary": summary}

    raise typer.Exit(session.run(body))


app.command()(sweeping.sweep)
app.command()(guides.compare)


@app.command()
def export(
    run_dir: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR", help="A run directory, or a server's folder (promoted model).", show_default=False
        ),
    ],
    dest: Annotated[Path, typer.Option("--dest", help="A new or empty folder for the model.", show_default=False)],
    to: Annotated[
        str,
        typer.Option("--to", help="merged (whole model), peft (LoRA adapter) or tensors (trained tensors by name)."),
    ] = "merged",
    played: Annotated[
        int | None,
        typer.Option("--round", min=0, help="Number of rounds after which to take the model (default: all rounds)."),
    ] = None,
    base: Annotated[str, typer.Option("--base", help="Folder of the base model, if it has moved.")] = "",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Type of a merged model: base (as the base), float32, bfloat16, float16.")
    ] = "base",
    with_base: Annotated[
        bool, typer.Option("--with-base", help="Write the base next to an adapter. The bundled one always is.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Export a run's model for transformers or peft.

    Reads the written model back and compares its logits with those of the trained model. Fails if they differ.
    """
    session = _session("export", as_json, debug)

    def body() -> dict[str, Any]:
        from edgewise.apps.terminal import sessions

        with sessions.interrupts(), sessions.quiet_screen(run_dir / "log.txt", debug):
            from edgewise.apps.models import export as exporter

            written = exporter.write(run_dir, dest, exporter.Wanted(to, played, base, dtype, with_base))
        if not as_json:
            print(f"{to} model after {written['rounds']} rounds: {dest}")
        return written

    raise typer.Exit(session.run(body))


@bench.command()
def codecs(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe file (default: the recipe of `demo code`).")
    ] = None,
    overrides: Set = None,
    extension: Extension = None,
    random: Annotated[bool, typer.Option("--random", help="Use random numbers as the update.")] = False,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Repetitions; timings are their median.")] = 5,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure the bytes, error and speed of each codec.

    Trains one device for one round on the recipe's model. Encodes its update with each rung of the codec ladder.
    """
    session = _session("bench codecs", as_json, debug, extension)

    def body() -> dict[str, Any]:
        from edgewise.apps.cli import shipped
        from edgewise.apps.runs import recipe_file
        from edgewise.apps.terminal import sessions

        path = recipe or shipped.FOLDER / "code.toml"
        parsed, parts = recipe_file.read(path, recipe_file.assignments(overrides), extension or ())
        with sessions.interrupts(), sessions.quiet_screen(None, debug) as screen:
            from edgewise.apps.cli import bench_codecs as measuring

            shown = None if as_json else screen
            found = measuring.examine(parsed, path.parent, parts, random, repeats, shown)
        if not as_json:
            from rich.console import Console

            measuring.show(Console(), found)
        return found

    raise typer.Exit(session.run(body))


@app.command()
def audit(
    recipe: RecipePath,
    overrides: Set = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for audit.html and audit.json.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Use fewer trials, for weaker bounds.")] = False,
    extension: Extension = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Attack a recipe to test its epsilon and measure leakage.

    Runs the compiled recipe at its own noise: single releases, or single steps with example-level privacy. Compares
    the measured epsilon with the claimed one, and measures what an attacker learns behind each defence. Every finding
    says what was attacked and what was left out. Exit status 8 means that more was measured than is claimed.
    """
    session = _session("audit", as_json, debug, extension)

    def body() -> dict[str, Any]:
        from edgewise.apps.runs import recipe_file
        from edgewise.apps.terminal import sessions
        from edgewise.plan.catalogue import with_extensions

        parsed, parts = recipe_file.read(recipe, recipe_file.assignments(overrides), extension or ())
        with sessions.interrupts(), sessions.quiet_screen(None, debug) as screen:
            from edgewise.apps.audit import audit as auditor
            from edgewise.apps.terminal.progress_bar import steps

            with steps(None if as_json else screen) as step:
                found = auditor.examine(parsed, recipe.parent, out, quick, step, with_extensions(parts))
        if not as_json:
            from rich.console import Console

            auditor.show(Console(), found)
        return found

    raise typer.Exit(session.run(body))


@app.command()
def schema(
    field: Annotated[str, typer.Option("--field", help="Describe one key, e.g. training.lr.")] = "",
    extension: Extension = None,
) -> None:
    """Print the JSON schema of recipes, or describe one key."""
    session = _session("schema", False, False, extension)

    def body() -> None:
        from edgewise.apps.cli import recipe_schema
        from edgewise.apps.runs.extensions import importable
        from edgewise.plan.catalogue import with_extensions

        parts = with_extensions(importable(extension or (), Path()))
        print(recipe_schema.describe(field, parts) if field else recipe_schema.everything(parts))

    raise typer.Exit(session.run(body))


for command in (guides.explain, operators.serve, operators.join, keeping.doctor, keeping.backup, keeping.restore):
    app.command()(command)
app.add_typer(owners.device, name="device", help="Run and control your own device.")
app.add_typer(run_commands.run, name="run", help="Submit recipes to a server and follow their runs.")
app.add_typer(model_commands.models, name="models", help="Promote released models and fetch the promoted one.")
app.add_typer(operators.token, name="token", help="Create, list and revoke enrolment tokens.")
app.add_typer(operators.fleet, name="fleet", help="List, approve and revoke devices.")
app.add_typer(gateways.gateway, name="gateway", help="Run a gateway, the second server of shared sums.")


def _session(name: str, as_json: bool, debug: bool, extensions: list[str] | None = None) -> CommandSession:
    from edgewise.apps.terminal.sessions import CommandSession

    return CommandSession(name, as_json=as_json, debug=debug, extensions=extensions)


def _simulate(
    name: str,
    source: Path | str,
    overrides: list[str] | None,
    out: Path | None,
    resume: bool,
    engine: str | None,
    workers: int | None,
    extensions: list[str],
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Run a recipe file, or a demonstration by its name."""
    session = _session(name, as_json, debug, extensions)

    def body() -> dict[str, Any]:
        from edgewise.apps.cli import demos, playing
        from edgewise.apps.runs import recipe_file, run_dirs
        from edgewise.core.errors import RecipeError

        path, says = (demos.recipe(source), demos.SAYS[source]) if isinstance(source, str) else (source, "")
        values = recipe_file.assignments(overrides)
        for key, given in (("engine", engine), ("workers", workers)):
            if given is not None:
                values[f"simulation.{key}"] = given
        recipe, parts = recipe_file.read(path, values, extensions)
        if workers is not None and recipe.simulation.engine != "pool":
            what = f'--workers needs the pool engine. The engine of this recipe is "{recipe.simulation.engine}".'
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

    session = _session("demo", as_json, debug)
    return session.run(lambda: playing.play_network(session, what, recipe_file.assignments(overrides), out, quiet))


def main() -> None:
    """Run the command line (the entry point of the package)."""
    from edgewise.drivers.screen import guard

    guard()
    app(prog_name="edgewise")


if __name__ == "__main__":
    main()
