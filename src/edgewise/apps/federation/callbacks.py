"""Callbacks of a run: early stopping, logging, experiment trackers.

    fed = edgewise.Federation(recipe, data=data, callbacks=[edgewise.EarlyStopping(3), print])

A callback is a function of a ``Round``. A run rests after the round for which a callback returns ``STOP``, and can be
resumed. A ``Callback`` is also called before the first round and after the last.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from edgewise.apps.runs.rounds import Round
from edgewise.core import events
from edgewise.core.errors import RecipeError
from edgewise.plan.recipe.recipe import Recipe


class _Stop:
    def __repr__(self) -> str:
        return "edgewise.STOP"


STOP = _Stop()  # A callback returns it to let the run rest after this round.


@dataclass(frozen=True)
class Started:
    """A run whose rounds begin: its folder, its recipe, and its first event."""

    run_dir: Path
    recipe: Recipe
    event: events.RunStarted | None


class Callback:
    """Base class of callbacks with a beginning and an end. Override any of the methods."""

    def begin(self, run: Started) -> None:
        """Called before the first round that this process plays."""

    def __call__(self, round: Round) -> object:
        """Called after each round. Return ``STOP`` to let the run rest."""
        return None

    def end(self) -> None:
        """Called after the last round, and also when an error ended the run."""


AnyCallback = Callback | Callable[[Round], object]


class EarlyStopping(Callback):
    """End the run when the held-out loss has not fallen in ``patience`` evaluations in a row.

    This sets ``round.patience`` of the recipe, so a resumed run makes the same decision. Differential privacy refuses
    it (E-COMBO), because held-out text would decide what is released.

    Args:
        patience: number of evaluations, at least 1.
        keep: the model that counts at the end, "best" or "last".
    """

    def __init__(self, patience: int, keep: str = "best") -> None:
        if patience < 1:
            raise RecipeError("E-VALUE", f"EarlyStopping: patience is {patience}.", "give 1 or more.")
        self.settings: Mapping[str, Any] = {"round.patience": patience, "round.keep": keep}


class CsvLogger(Callback):
    """Write a row for each round into a CSV file: number, contributions, bytes, seconds, epsilon, and all metrics.

    The first round decides the columns. A metric that appears later has no column. A resumed run appends its rows.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._file: TextIO | None = None
        self._rows: Any = None

    def begin(self, run: Started) -> None:
        """Start a new file, or continue the file of a resumed run."""
        goes_on = run.event is not None and run.event.resumed_round and self._path.is_file()
        known = self._path.read_text(encoding="utf-8").splitlines()[:1] if goes_on else []
        self._columns = next(csv.reader(known), []) if known else []
        self._file = open(self._path, "a" if known else "w", encoding="utf-8", newline="")  # noqa: SIM115

    def __call__(self, round: Round) -> object:
        """Append the row of a round."""
        row = callback_figures(round)
        if self._file is None:
            return None
        writer = csv.DictWriter(self._file, self._columns or list(row), extrasaction="ignore", lineterminator="\n")
        if not self._columns:
            self._columns = list(row)
            writer.writeheader()
        writer.writerow(row)
        self._file.flush()
        return None

    def end(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def callback_figures(round: Round) -> dict[str, Any]:
    """Collect the figures of a round that loggers write, by name."""
    counts = {"contributions": round.contributions, "lost": len(round.lost), "bytes_up": round.bytes_up}
    more = {} if round.epsilon is None else {"epsilon": round.epsilon}
    return {
        "round": round.number,
        **counts,
        "bytes_down": round.bytes_down,
        "seconds": round.seconds,
        **more,
        **round.metrics,
    }


class Stop:
    """Record of whether a callback asked the run to rest."""

    def __init__(self) -> None:
        self._asked = False

    def asked(self) -> bool:
        """Tell whether a callback has returned ``STOP``."""
        return self._asked

    def ask(self, callbacks: Sequence[AnyCallback], round: Round) -> None:
        """Call all callbacks with a round."""
        for callback in callbacks:
            self._asked |= callback(round) is STOP


def begin_callbacks(callbacks: Sequence[AnyCallback], run: Started) -> None:
    """Call ``begin`` of the callbacks that have it."""
    for callback in callbacks:
        if isinstance(callback, Callback):
            callback.begin(run)


def end_callbacks(callbacks: Sequence[AnyCallback]) -> None:
    """Call ``end`` of the callbacks that have it. All are called even if one fails.

    The first error is raised afterwards.
    """
    failed: list[Exception] = []
    for callback in callbacks:
        if isinstance(callback, Callback):
            try:
                callback.end()
            except Exception as e:  # boundary: code of others runs at the end of a run
                failed.append(e)
    if failed:
        raise failed[0]
