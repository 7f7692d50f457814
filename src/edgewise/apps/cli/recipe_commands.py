"""The commands ``edgewise check``, ``audit``, ``schema`` and ``bench``: examinations of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.apps.terminal.options import Debug, Extension, Json, RecipePath, Set

bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


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
            from edgewise.apps.simulate import check_screen as screens
            from edgewise.plan.catalogue import with_extensions

            found = checker.examine(parsed, recipe.parent, with_extensions(parts), fast)
        if not as_json:
            from rich.console import Console

            screens.show_check(Console(), found, str(recipe))
        return found

    raise typer.Exit(session.run(body))


def audit(
    recipe: RecipePath,
    overrides: Set = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the page and its JSON.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Use fewer trials, for weaker bounds.")] = False,
    poison: Annotated[bool, typer.Option("--poison", help="Play dishonest devices instead.")] = False,
    liars: Annotated[list[float] | None, typer.Option("--liars", help="With --poison: share that lies.")] = None,
    attack: Annotated[list[str] | None, typer.Option("--attack", help="With --poison: an attack to play.")] = None,
    defence: Annotated[list[str] | None, typer.Option("--defence", help="With --poison: a defence to play.")] = None,
    skew: Annotated[list[str] | None, typer.Option("--skew", help="With --poison: own, iid or sorted text.")] = None,
    extension: Extension = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Attack a recipe to test its epsilon and measure leakage.

    Runs the compiled recipe at its own noise: single releases, or single steps with example-level privacy. Compares
    the measured epsilon with the claimed one, and measures what an attacker learns behind each defence. Every finding
    says what was attacked and what was left out. Exit status 8 means that more was measured than is claimed.

    With --poison, a share of the devices (--liars, 0.2 by default) lies: flipped and crafted updates, false labels,
    free riders, and a backdoor with a trigger. Each attack is played against a plain sum and against the recipe, or
    against the defences that --defence names, e.g. nnm+trimmed_mean. These options can be given several times, and all
    combinations are played.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    session = CommandSession("audit", as_json=as_json, debug=debug, extensions=extension)

    def body() -> dict[str, Any]:
        from edgewise.apps.runs import recipe_file
        from edgewise.apps.terminal import sessions
        from edgewise.plan.catalogue import with_extensions

        parsed, parts = recipe_file.read(recipe, recipe_file.assignments(overrides), extension or ())
        with sessions.interrupts(), sessions.quiet_screen(None, debug) as screen:
            from edgewise.apps.audit import audit as auditor
            from edgewise.apps.federation import poisoning
            from edgewise.apps.terminal.progress_bar import steps
            from edgewise.core.errors import RecipeError

            for option, given in (("liars", liars), ("attack", attack), ("defence", defence), ("skew", skew)):
                if given and not poison:
                    raise RecipeError("E-VALUE", f"--{option} is read with --poison only.", "add --poison.")

            with steps(None if as_json else screen) as step:
                if poison:
                    found = poisoning.play_poisonings(
                        parsed, recipe.parent, out, liars or (0.2,), quick, step, parts, attack or (),
                        defence or poisoning.USUAL, skew or ("own",),
                    )  # fmt: skip
                else:
                    found = auditor.audit_recipe(parsed, recipe.parent, out, quick, step, with_extensions(parts))
        if not as_json:
            from rich.console import Console

            show = poisoning.show_poisonings if poison else auditor.show_audit
            show(Console(), found)
        return found

    raise typer.Exit(session.run(body))


def schema(
    field: Annotated[str, typer.Option("--field", help="Describe one key, e.g. training.lr.")] = "",
    extension: Extension = None,
) -> None:
    """Print the JSON schema of recipes, or describe one key."""
    from edgewise.apps.terminal.sessions import CommandSession

    session = CommandSession("schema", as_json=False, debug=False, extensions=extension)

    def body() -> None:
        from edgewise.apps.cli import recipe_schema
        from edgewise.apps.runs.extensions import importable
        from edgewise.plan.catalogue import with_extensions

        parts = with_extensions(importable(extension or (), Path()))
        print(recipe_schema.describe(field, parts) if field else recipe_schema.everything(parts))

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
    from edgewise.apps.terminal.sessions import CommandSession

    session = CommandSession("bench codecs", as_json=as_json, debug=debug, extensions=extension)

    def body() -> dict[str, Any]:
        from edgewise.apps.cli import shipped
        from edgewise.apps.runs import recipe_file
        from edgewise.apps.terminal import sessions

        path = recipe or shipped.FOLDER / "code.toml"
        parsed, parts = recipe_file.read(path, recipe_file.assignments(overrides), extension or ())
        with sessions.interrupts(), sessions.quiet_screen(None, debug) as screen:
            from edgewise.apps.cli import bench_codecs as measuring

            shown = None if as_json else screen
            found = measuring.bench_codecs(parsed, path.parent, parts, random, repeats, shown)
        if not as_json:
            from rich.console import Console

            measuring.show_codec_bench(Console(), found)
        return found

    raise typer.Exit(session.run(body))


@bench.command("edge-llm")
def edge_llm(
    out: Annotated[Path, typer.Option("--out", help="Folder of models, recipes and runs.")] = Path("edge-llm-bench"),
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds of each run.")] = 4,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of the teacher and of the student.")] = 400,
    rows: Annotated[list[str] | None, typer.Option("--row", metavar="NAME", help="Only this row. Repeatable.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure what each step of the recipe edge-llm gains and costs.

    Makes a teacher and a student of public text once, then plays the recipe with one step more in each row. Started
    again with the same folder, it goes on where it was.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    session = CommandSession("bench edge-llm", as_json=as_json, debug=debug)

    def body() -> dict[str, Any]:
        from edgewise.apps.terminal import sessions

        with sessions.interrupts(), sessions.quiet_screen(None, debug) as screen:
            from edgewise.apps.cli import bench_edge

            found = bench_edge.bench_edge(
                out, rounds, steps, tuple(rows or ()), lambda line: None if as_json else print(line, file=screen)
            )
        if not as_json:
            from rich.console import Console

            bench_edge.show_edge_bench(Console(), found)
        return found

    raise typer.Exit(session.run(body))
