"""What a script hangs on the rounds of a run: stopping, logging, trackers of experiments.

A callback is any function of a ``Round``. One that returns ``STOP`` lets the run rest after that round, and it can be
resumed. A ``Callback`` is also told when the rounds begin and when they end.
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


STOP = _Stop()  # what a callback returns to let the run rest after this round


@dataclass(frozen=True)
class Started:
    """A run whose rounds begin: its folder, its recipe, and its first event."""

    run_dir: Path
    recipe: Recipe
    event: events.RunStarted | None


class Callback:
    """Base of callbacks with a beginning and an end; all methods may be left out."""

    def begin(self, run: Started) -> None:
        """Before the first round of this process is told."""

    def __call__(self, round: Round) -> object:
        """After each round; ``STOP`` lets the run rest."""
        return None

    def end(self) -> None:
        """After the last round, also where an error ended the run."""


AnyCallback = Callback | Callable[[Round], object]


class EarlyStopping(Callback):
    """End the run where the held-out loss was not lower in ``patience`` evaluations in a row: ``round.patience`` of the
    recipe, so that a resumed run decides alike, and differential privacy refuses it (E-COMBO).

    Args:
        patience: evaluations, at least 1. keep: which model counts then: "best", or "last".
    """

    def __init__(self, patience: int, keep: str = "best") -> None:
        if patience < 1:
            raise RecipeError("E-VALUE", f"EarlyStopping: patience is {patience}.", "give 1 or more.")
        self.settings: Mapping[str, Any] = {"round.patience": patience, "round.keep": keep}


class CsvLogger(Callback):
    """Write a row for each round into a CSV file: number, contributions, bytes, seconds, epsilon, and all metrics.

    The header is that of the first round; a metric that comes later has no column. A run that goes on adds its rows.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._file: TextIO | None = None
        self._rows: Any = None

    def begin(self, run: Started) -> None:
        """Begin the file anew, unless the run goes on."""
        goes_on = run.event is not None and run.event.resumed_round and self._path.is_file()
        known = self._path.read_text(encoding="utf-8").splitlines()[:1] if goes_on else []
        self._columns = next(csv.reader(known), []) if known else []
        self._file = open(self._path, "a" if known else "w", encoding="utf-8", newline="")  # noqa: SIM115

    def __call__(self, round: Round) -> object:
        """Add the round's row."""
        row = figures(round)
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


def figures(round: Round) -> dict[str, Any]:
    """The figures of a round that loggers write, by name."""
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
    """Whether a callback asked the run to rest."""

    def __init__(self) -> None:
        self._asked = False

    def asked(self) -> bool:
        """See the class."""
        return self._asked

    def ask(self, callbacks: Sequence[AnyCallback], round: Round) -> None:
        """Call them all with a round."""
        for callback in callbacks:
            self._asked |= callback(round) is STOP


def begin(callbacks: Sequence[AnyCallback], run: Started) -> None:
    """Tell callbacks of a beginning that want to know."""
    for callback in callbacks:
        if isinstance(callback, Callback):
            callback.begin(run)


def end(callbacks: Sequence[AnyCallback]) -> None:
    """Tell callbacks of the end that want to know. One that fails keeps no other from it; the first is raised."""
    failed: list[Exception] = []
    for callback in callbacks:
        if isinstance(callback, Callback):
            try:
                callback.end()
            except Exception as e:  # boundary: foreign code at the end of a run
                failed.append(e)
    if failed:
        raise failed[0]
