"""Run directories: where a run goes, playing one with its progress on the screen, opening one that must exist."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edgewise.apps import result, shell
from edgewise.apps.progress import Progress
from edgewise.core import events
from edgewise.core.errors import RecipeError, StoreError
from edgewise.drivers import folder
from edgewise.drivers.files import FOLDER
from edgewise.plan import toml
from edgewise.plan.recipe import Recipe

if TYPE_CHECKING:
    from edgewise.drivers.store import RunStore


def assignments(given: list[str] | None) -> dict[str, Any]:
    """``["training.lr=0.01", "name=x"]`` -> ``{"training.lr": 0.01, "name": "x"}``.

    Values are TOML; what is not TOML is text. Raises RecipeError: E-VALUE without ``=``, E-RECIPE-SYNTAX for TOML that
    is too deep or too long.
    """
    out: dict[str, Any] = {}
    for one in given or []:
        key, equals, text = one.partition("=")
        if not (equals and key.strip()):
            raise RecipeError("E-VALUE", f"--set {one!r} assigns nothing.", "write --set section.key=value.")
        out[key.strip()] = toml.value(text, f"--set {key.strip()}")
    return out


def read(path: Path, overrides: dict[str, Any], extensions: Sequence[str]) -> tuple[Recipe, list[str]]:
    """A recipe from its file, and the names of the extensions' modules, importable from now on.

    Raises RecipeError as ``plan.loading.load``, ``extensions.importable`` and ``catalogue.with_extensions``.
    """
    from edgewise.apps.extensions import importable
    from edgewise.plan.catalogue import with_extensions
    from edgewise.plan.loading import load

    parts = importable(extensions, path.parent)
    return load(path, overrides, with_extensions(parts)), parts


def place(recipe: Recipe, fresh: bool = False, resume: bool = False) -> Path:
    """``runs/<name>-<hash>``; with ``fresh`` the first such folder without a run (or, to resume, the last with one).

    With ``fresh``, folders that edgewise did not make are passed over.
    """
    first = Path("runs") / f"{recipe.name}-{recipe.sha256()[:8]}"
    if not fresh:
        return first
    taken, at = first, first
    number = 1
    while (foreign := folder.foreign(at)) or (at / "recipe.toml").exists():  # written when a run begins, not before
        taken, number = taken if foreign else at, number + 1
        at = first.with_name(f"{first.name}-{number}")
    return taken if resume else at


def play(
    session: shell.CommandSession,
    recipe: Recipe,
    recipe_dir: Path,
    out: Path,
    resume: bool,
    extensions: Sequence[str],
    quiet: bool,
    says: str = "",
) -> dict[str, Any]:
    """Run, with progress on standard error; then the result. ``says``: to be told before the run starts."""
    session.folder = out

    def started(event: events.AnyEvent) -> None:
        session.resumable |= isinstance(event, events.RunStarted)

    with (
        shell.interrupts() as told,
        shell.quiet_screen(out / "log.txt", session.debug) as screen,
        _told(screen, "" if quiet else says),
        Progress(recipe, screen, quiet=quiet) as progress,
    ):
        from edgewise.apps import simulate  # seconds to import: the screen is there first

        told.append(progress.stopping)
        sinks = (started, progress)
        simulate.run(
            recipe, out=out, recipe_dir=recipe_dir, resume=resume, extensions=extensions, sinks=sinks,
            forecast=not quiet,
        )  # fmt: skip
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    if not session.as_json and not quiet:
        from rich.console import Console

        result.show(Console(), summary, out)
    return {"run_dir": str(out), "report": str(out / "report.html"), "summary": summary}


def play_network(
    session: shell.CommandSession, what: str, overrides: dict[str, Any], out: Path | None, quiet: bool
) -> dict[str, Any]:
    """The demonstration on enrolled devices, with progress on standard error; then the result.

    Raises RecipeError(E-COMBO) for another demonstration than that of plays; StoreError(E-RUN-EXISTS) for a folder that
    is there.
    """
    if what != "plays":
        raise RecipeError("E-COMBO", f"--network plays `plays`, not {what!r:.40}.", "leave out the name.")
    at = out or _free("demo-network")
    if at.exists():
        raise StoreError("E-RUN-EXISTS", f"{at} is there already.", "choose another --out.")
    at.mkdir(FOLDER, parents=True)
    with shell.interrupts() as told, shell.quiet_screen(at / "log.txt", session.debug) as screen:
        from edgewise.apps import network_demo

        recipe = network_demo.recipe_of(at, overrides)
        with _told(screen, "" if quiet else network_demo.SAYS), Progress(recipe, screen, quiet=quiet) as progress:
            told.append(progress.stopping)
            run_dir, summary = network_demo.play(at, recipe, progress)
    if not session.as_json and not quiet:
        from rich.console import Console

        result.show(Console(), summary, run_dir)
    return {"run_dir": str(run_dir), "report": str(run_dir / "report.html"), "summary": summary}


def _free(name: str) -> Path:
    """The first folder of this name that is not there."""
    first = at = Path("runs") / name
    number = 1
    while at.exists():
        number += 1
        at = first.with_name(f"{first.name}-{number}")
    return at


@contextmanager
def _told(screen: TextIO, says: str) -> Iterator[None]:
    """Say what is about to run."""
    if says:
        from rich.console import Console

        Console(file=screen).print(says, highlight=False)
    yield


@contextmanager
def opened(run_dir: Path) -> Iterator[RunStore]:
    """The store of an existing run (a RunStore alone would begin an empty one).

    Raises StoreError(E-RESUME) where there is none.
    """
    from edgewise.drivers.store import RunStore

    if not ((run_dir / "run.db").is_file() and folder.made(run_dir)):
        raise StoreError("E-RESUME", f"there is no run in {run_dir}.", "give the folder that holds run.db.")
    with RunStore(run_dir) as store:
        if store.run() is None:
            raise StoreError("E-RESUME", f"the run in {run_dir} never began.", "start it again.")
        yield store
