"""Runs of the command line: progress on standard error while a run plays, then its result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edgewise.apps.cli import demos, result
from edgewise.apps.runs import run_dirs
from edgewise.apps.terminal import sessions
from edgewise.apps.terminal.progress import ProgressScreen
from edgewise.core import events
from edgewise.core.errors import RecipeError, StoreError
from edgewise.drivers.storage.files import FOLDER
from edgewise.plan.recipe.recipe import Recipe

if TYPE_CHECKING:
    pass


def play(
    session: sessions.CommandSession,
    recipe: Recipe,
    recipe_dir: Path,
    out: Path,
    resume: bool,
    extensions: Sequence[str],
    quiet: bool,
    says: str = "",
) -> dict[str, Any]:
    """Run a recipe with progress on standard error, then print the result.

    ``says`` is printed before the run starts.
    """
    session.folder = out

    def started(event: events.AnyEvent) -> None:
        session.resumable |= isinstance(event, events.RunStarted)

    with (
        sessions.interrupts() as listeners,
        sessions.quiet_screen(out / "log.txt", session.debug) as screen,
        _with_introduction(screen, "" if quiet else says),
        ProgressScreen(recipe, screen, quiet=quiet) as progress,
    ):
        from edgewise.apps.simulate import simulation  # The import takes seconds, so the screen comes first.

        listeners.append(progress.stopping)
        sinks = (started, progress)
        simulation.run(
            recipe, out=out, recipe_dir=recipe_dir, resume=resume, extensions=extensions, sinks=sinks,
            forecast=not quiet,
        )  # fmt: skip
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    if not session.as_json and not quiet:
        from rich.console import Console

        result.show(Console(), summary, out)
    return {"run_dir": str(out), "report": str(out / "report.html"), "summary": summary}


def play_deployment(
    session: sessions.CommandSession,
    folder: Path,
    settings: dict[str, Any],
    out: Path | None,
    resume: bool,
    quiet: bool,
    says: str,
) -> dict[str, Any]:
    """Run the industrial deployment with progress on standard error, then print the result.

    Args:
        folder: of the shipped recipes. settings: by dotted key, ``data.path`` among them.
    Raises:
        RecipeError: E-MISSING to resume without a folder. StoreError: E-RUN-EXISTS for a folder with runs.
    """
    from edgewise.apps.deployments import industrial

    if out is None and resume:
        raise RecipeError("E-MISSING", "--resume needs the folder of the deployment.", "name it with --out.")
    at = out or run_dirs.free_run_folder("industrial")
    if not resume and any((at / run / "run.db").is_file() for run in industrial.RUNS):
        raise StoreError(
            "E-RUN-EXISTS", f"{at} holds the runs of a deployment.", "add --resume, or choose another --out."
        )
    session.folder = at
    data = Path(settings.pop("data.path"))
    with (
        sessions.interrupts() as listeners,
        sessions.quiet_screen(at / "log.txt", session.debug) as screen,
        _with_introduction(screen, "" if quiet else says),
    ):

        @contextmanager
        def showing(recipe: Recipe, run: str) -> Iterator[tuple[events.Sink, ...]]:
            session.resumable = True
            with (
                _with_introduction(screen, "" if quiet else f"{run}:"),
                ProgressScreen(recipe, screen, quiet=quiet) as shown,
            ):
                listeners.append(shown.stopping)
                yield (shown,)

        found = industrial.play(folder, data, at, settings, showing)
    if not session.as_json and not quiet:
        from rich.console import Console

        from edgewise.apps.cli import deployment_result

        deployment_result.show(Console(), found, at)
    return {"run_dir": str(at), "report": str(at / "report.html"), "summary": found}


def play_network(
    session: sessions.CommandSession, what: str, overrides: dict[str, Any], out: Path | None, quiet: bool
) -> dict[str, Any]:
    """Run the demonstration on enrolled devices with progress on standard error, then print the result.

    Raises:
        RecipeError: E-COMBO for a demonstration without a network. StoreError: E-RUN-EXISTS for an existing folder.
    """
    if what not in demos.NETWORKED:
        fix = f"name one of {', '.join(demos.NETWORKED)}."
        raise RecipeError("E-COMBO", f"--network runs no demonstration {what!r:.40}.", fix)
    at = out or run_dirs.free_run_folder("demo-network")
    if at.exists():
        raise StoreError("E-RUN-EXISTS", f"{at} exists already.", "choose another --out.")
    at.mkdir(FOLDER, parents=True)
    with sessions.interrupts() as listeners, sessions.quiet_screen(at / "log.txt", session.debug) as screen:
        from edgewise.apps.cli import network_demo

        recipe = network_demo.recipe_of(at, overrides, what)
        with (
            _with_introduction(screen, "" if quiet else network_demo.SAYS[what]),
            ProgressScreen(recipe, screen, quiet=quiet) as progress,
        ):
            listeners.append(progress.stopping)
            run_dir, summary = network_demo.play(at, recipe, progress, what)
    if not session.as_json and not quiet:
        from rich.console import Console

        result.show(Console(), summary, run_dir)
    return {"run_dir": str(run_dir), "report": str(run_dir / "report.html"), "summary": summary}


@contextmanager
def _with_introduction(screen: TextIO, says: str) -> Iterator[None]:
    """Print a sentence about the run before the block."""
    if says:
        from rich.console import Console

        Console(file=screen).print(says, highlight=False)
    yield
