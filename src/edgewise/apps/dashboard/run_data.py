"""Figures of a run for its page, read from its folder while another thread plays the run.

    found = RunReader().figures(folder)
    found["charts"]["loss"]          # {"x": [...], "series": [{"name": ..., "y": [...]}, ...]}

Nothing is locked and nothing is written. A run that has not begun has empty figures.
"""

from __future__ import annotations

import math
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.apps.dashboard.thinning import thinned
from edgewise.apps.report import numbers
from edgewise.core.errors import TransportError

BUCKETS = 250
LAST_ROUNDS = 15
REMEMBERED = 4  # runs; 100,000 rounds of one take about 40 MB
HEAD_NAMES = {"loss_first": "first steps", "loss_last": "last steps"}


class FinishedRound(msgspec.Struct):
    """The part of an event ``round_finished`` that pages show."""

    round: int
    met: bool
    accepted: int
    lost: int
    late: int
    bytes_up: int
    bytes_down: int
    train_s: float
    aggregate_s: float
    seconds: float
    head: dict[str, float] = {}
    epsilon: float | None = None
    code: str | None = None


class StartedRound(msgspec.Struct):
    """The part of an event ``round_started`` that pages show."""

    round: int
    invited: int


_finished = msgspec.json.Decoder(FinishedRound)
_started = msgspec.json.Decoder(StartedRound)


@contextmanager
def opened_run_to_show(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open a run's database to read. Raises TransportError(E-UNKNOWN-ID) if it cannot be read."""
    try:
        with closing(sqlite3.connect(f"file:{folder / 'run.db'}?mode=ro", uri=True, timeout=5.0)) as c:
            yield c
    except sqlite3.Error as e:
        what = f"the records of run {folder.name:.12} cannot be read: {e}."
        raise TransportError("E-UNKNOWN-ID", what, "try again.") from None


def shown_run_progress(folder: Path) -> dict[str, Any]:
    """Read how far a run is: rounds played, epsilon spent, and its newest training loss."""
    try:
        with opened_run_to_show(folder) as c:
            row = c.execute("SELECT next_round, epsilon FROM runs").fetchone()
            newest = "SELECT body FROM events WHERE kind = 'round_finished' ORDER BY number DESC LIMIT 1"
            last = c.execute(newest).fetchone()
    except TransportError:
        return {"played": 0, "epsilon": None, "loss": None}
    end = None if last is None else _finished.decode(last[0])
    return {
        "played": 0 if row is None else max(0, int(row[0])),
        "epsilon": None if row is None or not row[1] else float(row[1]),
        "loss": None if end is None else end.head.get("loss_last"),
    }


class RunReader:
    """Reads the figures of runs, and remembers the finished rounds of the last few.

    A page that follows its run then reads new rounds only. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[Path, tuple[int, list[FinishedRound], dict[int, int]]] = OrderedDict()

    def figures(self, folder: Path, buckets: int = BUCKETS) -> dict[str, Any]:
        """Read curves, funnel and the last rounds of a run."""
        with self._lock, opened_run_to_show(folder) as c:
            rounds, invited = self._rounds(c, folder)
            lost = c.execute(
                "SELECT json_extract(body, '$.code'), count(*) FROM events WHERE kind = 'lost' "
                "GROUP BY 1 ORDER BY 2 DESC"
            ).fetchall()
            held = c.execute(
                "SELECT round, sum(nll) / sum(tokens) FROM measures WHERE model = 'federated' AND round >= 0 "
                "GROUP BY round HAVING sum(tokens) > 0 ORDER BY round"
            ).fetchall()
        return _figures(rounds, invited, lost, held, buckets)

    def _rounds(self, c: sqlite3.Connection, folder: Path) -> tuple[list[FinishedRound], dict[int, int]]:
        """Return the finished rounds, and the number of devices that each round invited."""
        after, rounds, invited = self._known.pop(folder, (0, [], {}))
        last = int(c.execute("SELECT coalesce(max(number), 0) FROM events").fetchone()[0])
        if last < after:  # another history, from a backup
            after, rounds, invited = 0, [], {}
        query = "SELECT body FROM events WHERE kind = ? AND number > ? AND number <= ? ORDER BY number"
        rounds = rounds + [_finished.decode(body) for (body,) in c.execute(query, ("round_finished", after, last))]
        begun = (_started.decode(body) for (body,) in c.execute(query, ("round_started", after, last)))
        invited = invited | {one.round: one.invited for one in begun}
        self._known[folder] = last, rounds, invited
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return rounds, invited


def _figures(
    rounds: Sequence[FinishedRound],
    invited: Mapping[int, int],
    lost: Sequence[tuple[str, int]],
    held: Sequence[tuple[int, float]],
    buckets: int,
) -> dict[str, Any]:
    return {
        "played": len(rounds),
        "abandoned": sum(not one.met for one in rounds),
        "bytes_up": sum(one.bytes_up for one in rounds),
        "bytes_down": sum(one.bytes_down for one in rounds),
        "seconds": sum(one.seconds for one in rounds),
        "epsilon": next((one.epsilon for one in reversed(rounds) if one.epsilon is not None), None),
        "loss": rounds[-1].head.get("loss_last") if rounds else None,
        "perplexity": math.exp(min(held[-1][1], 700.0)) if held else None,
        "funnel": _funnel(rounds, invited),
        "lost": [{"code": str(code), "why": numbers.loss_reason(str(code)), "times": int(n)} for code, n in lost],
        "charts": _charts(rounds, held, buckets),
        "last_rounds": [
            {**msgspec.to_builtins(one), "invited": invited.get(one.round, 0)} for one in rounds[-LAST_ROUNDS:][::-1]
        ],
    }


def _funnel(rounds: Sequence[FinishedRound], invited: Mapping[int, int]) -> list[dict[str, Any]]:
    """Count over all finished rounds how far devices came."""
    asked = sum(invited.get(one.round, 0) for one in rounds)
    accepted = sum(one.accepted for one in rounds)
    return [
        {"step": "invited", "count": asked},
        {"step": "accepted or late", "count": accepted + sum(one.late for one in rounds)},
        {"step": "accepted", "count": accepted},
        {"step": "in a released model", "count": sum(one.accepted for one in rounds if one.met)},
    ]


def _charts(
    rounds: Sequence[FinishedRound], held: Sequence[tuple[int, float]], buckets: int
) -> dict[str, dict[str, Any]]:
    x = np.array([one.round + 1 for one in rounds], np.float64)
    names = sorted({name for one in rounds for name in one.head})
    measured = {round + 1: math.exp(min(nats, 700.0)) for round, nats in held}
    columns: dict[str, dict[str, NDArray[np.float64]]] = {
        "loss": {
            HEAD_NAMES.get(name, name): np.array([one.head.get(name, np.nan) for one in rounds]) for name in names
        },
        "bytes": {
            "up": np.array([one.bytes_up for one in rounds], np.float64),
            "down": np.array([one.bytes_down for one in rounds], np.float64),
        },
        "devices": {
            "accepted": np.array([one.accepted for one in rounds], np.float64),
            "lost": np.array([one.lost for one in rounds], np.float64),
            "late": np.array([one.late for one in rounds], np.float64),
        },
        "seconds": {
            "whole round": np.array([one.seconds for one in rounds]),
            "aggregation": np.array([one.aggregate_s for one in rounds]),
        },
        "epsilon": {"spent": np.array([np.nan if one.epsilon is None else one.epsilon for one in rounds])},
    }
    made = {name: chart(x, series, buckets) for name, series in columns.items()}
    made["perplexity"] = chart(
        np.array(list(measured), np.float64), {"global model": np.array(list(measured.values()))}, buckets
    )
    return made


def chart(x: NDArray[np.float64], series: dict[str, NDArray[np.float64]], buckets: int) -> dict[str, Any]:
    """Thin curves over one x axis, as plain JSON. A series without any value is left out."""
    shown = {name: y for name, y in series.items() if len(y) and np.isfinite(y).any()}
    if not shown:
        return {"x": [], "series": []}
    kept = thinned(list(shown.values()), max(1, buckets // len(shown)))
    return {
        "x": x[kept].tolist(),
        "series": [{"name": name, "y": [_number(v) for v in y[kept]]} for name, y in shown.items()],
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
