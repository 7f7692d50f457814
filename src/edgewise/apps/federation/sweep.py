"""Sweep a recipe over several settings, a run for each, and compare the runs on a page: ``edgewise.sweep``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.apps.federation import settings
from edgewise.apps.federation.federation import Federation, RecipeLike
from edgewise.apps.federation.playing import has_run
from edgewise.apps.federation.run import Run, Table
from edgewise.core.errors import RecipeError
from edgewise.drivers.storage import folder

PAGE = "comparison.html"
_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: its ``settings`` by dotted key, and its folder."""

    settings: Mapping[str, Any]
    run_dir: Path


@dataclass(frozen=True)
class Sweep:
    """A finished sweep. ``page`` is the path of the page that compares its runs."""

    trials: tuple[Trial, ...]
    page: Path
    found: Mapping[str, Any]

    @property
    def runs(self) -> list[Run]:
        """The runs of all trials, in the order of the grid."""
        return [Run(trial.run_dir) for trial in self.trials]

    @property
    def table(self) -> Table:
        """A row for each trial: its settings, perplexities, bytes, seconds and epsilon."""
        rows = [
            {
                **trial.settings,
                **{f"perplexity_{model}": value for model, value in row["perplexity"].items()},
                **{
                    key: row[key]
                    for key in ("up_per_device_round", "up_total", "seconds", "epsilon", "rounds", "run_dir")
                },
            }
            for trial, row in zip(self.trials, self.found["runs"], strict=True)
        ]
        return Table(rows, "trials")

    @property
    def best(self) -> Trial:
        """The trial with the lowest held-out perplexity among comparable trials. Without one, the first trial."""
        from edgewise.apps.report import comparison

        names = [row["name"] for row in self.found["runs"]]
        best = comparison.best_run(self.found)
        return self.trials[names.index(best)] if best else self.trials[0]

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def sweep_trials(grid: Mapping[str, Sequence[Any]], out: Path) -> list[Trial]:
    """List the combinations of the grid's values. The last key varies fastest.

    Raises RecipeError(E-MISSING) for fewer than two combinations, or a key without values.
    """
    for key, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            fix = f'give {{"{key}": [value, value]}}.'
            raise RecipeError("E-MISSING", f"the grid's `{key}` is no list of values.", fix)
    combined = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if len(combined) < 2:
        raise RecipeError("E-MISSING", "a sweep takes two settings or more.", 'give {"training.lr": [0.001, 0.01]}.')
    named = [Trial(one, out / _run_name(one)) for one in combined]
    if len({trial.run_dir for trial in named}) < len(named):
        named = [Trial(trial.settings, out / f"{i:03d}") for i, trial in enumerate(named)]
    return named


def _run_name(one: Mapping[str, Any]) -> str:
    """Name a run of a sweep by its settings, so that it can be a folder."""
    settings = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in one.items())
    return _UNSAFE.sub("_", settings)[:100]


def play_sweep(
    recipe: RecipeLike, planned: Sequence[Trial], objects: Mapping[str, Any], progress: bool | None = None
) -> Iterator[Run]:
    """Play the trials one after the other. An unfinished run is continued, and a finished one is only read."""
    beside = {"home": Path(recipe).parent} if isinstance(recipe, str | Path) else {}
    tables, given = settings.tables_of(recipe), {**beside, **objects}
    federations = [Federation(settings.put(tables, t.settings), **given) for t in planned]  # checks all first
    for trial, fed in zip(planned, federations, strict=True):
        yield fed.run(trial.run_dir, resume=has_run(trial.run_dir), progress=progress)


def compared_sweep(planned: Sequence[Trial], out: Path) -> Sweep:
    """Make the sweep of trials that were played, with its page. Raises as ``apps.report.comparison``."""
    from edgewise.apps.report import comparison, comparison_page

    found = comparison.build_comparison([trial.run_dir for trial in planned])
    return Sweep(tuple(planned), comparison_page.write_comparison_page(found, out / PAGE), found)


def sweep(
    recipe: RecipeLike,
    grid: Mapping[str, Sequence[Any]],
    *,
    out: str | Path = "sweep",
    progress: bool | None = None,
    **objects: Any,
) -> Sweep:
    """Play a recipe with every combination of some settings.

        found = ew.sweep(recipe, {"training.lr": [1e-3, 1e-2], "round.rounds": [5, 10]}, data=texts)
        found.table.to_pandas(); found.best.settings; found.page

    Args:
        grid: dotted key -> values.
        out: a folder for the runs and the page. Runs that are in it are continued.
        objects: arguments of ``Federation``, such as model, data and stages.
    Raises:
        RecipeError: E-MISSING for fewer than two combinations. All trials are checked as by ``Federation`` before any
            run.
    """
    planned = sweep_trials(grid, Path(out))
    folder.claim(Path(out))
    for _ in play_sweep(recipe, planned, objects, progress):
        pass
    return compared_sweep(planned, Path(out))
