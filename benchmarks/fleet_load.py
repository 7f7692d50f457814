"""Load of a day of check-ins by a fleet of 10^6 devices, in virtual time on one core.

    python benchmarks/fleet_load.py [--devices 1000000] [--hours 24] [--before] [--outage]

The answers to check-ins (``engine.pacing``), the draw of cohorts (``engine.sampling``), the device's look at its
invitation (``engine.admission``) and the mail of cohorts (``drivers.fleet.mailboxes`` on SQLite) are the product's own.
The network, training, signatures and the look-up of mail for the devices that have none are not played: 5,000 of those
look-ups are made against the database, to count what they write. ``--before``: the hints as they were, 1 to 60 s for
any number of devices. ``--outage``: the server is down at noon for 10 minutes, and those that asked meanwhile ask again
within the 15 s in which a device tries again.

A device is on and off by a daily curve: the share that is on swings between 10 % (15:00) and 60 % (3:00). It stays on
for a time that is exponential, 30 minutes for half of the devices and 4 hours for the others. A hint that passes while
it is off lets it ask as soon as it is on. The first hour fills the queue and is left out of the figures.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from edgewise.core import frame
from edgewise.core.vector import Spec
from edgewise.drivers.fleet import mailboxes
from edgewise.drivers.fleet.database import Database
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.link import LONGEST_PAUSE_S, WAIT_S
from edgewise.engine import admission, sampling
from edgewise.engine.pacing import RATE, Pace, poll_s
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan
from edgewise.plan.plan import Plan
from edgewise.plan.recipe import recipe

HOUR_S, DAY_S, MINUTE_S = 3600, 86400, 60
EVERY_S = 1800  # a round begins
STAYS_S = (1800.0, 14400.0)  # average time on, of the two kinds of devices
SAMPLE = 5000  # look-ups of mail by devices that have none
OUTAGE_S = (12 * HOUR_S, 12 * HOUR_S + 600)
Times = NDArray[np.float64]


def share_on(at_s: float) -> float:
    """Share of the devices that are on."""
    return 0.35 + 0.25 * float(np.cos(2 * np.pi * (at_s / DAY_S - 3 / 24)))


def turning_on(at_s: float, stays_s: float) -> float:
    """Rate at which a device that is off comes on, so that the share follows ``share_on``."""
    slope = share_on(at_s + 0.5) - share_on(at_s - 0.5)
    return max(0.0, slope + share_on(at_s) / stays_s) / (1.0 - share_on(at_s))


@dataclass
class Fleet:
    """The devices: until when each is on, and when it asks next; infinite where it asks once it is on."""

    stays_s: Times
    until_s: Times
    next_s: Times
    calendar: dict[int, list[NDArray[np.int64]]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, size: int, rng: np.random.Generator) -> Fleet:
        stays_s = np.where(np.arange(size) % 2 == 0, *STAYS_S)
        on = rng.random(size) < share_on(0.0)
        fleet = cls(stays_s, np.where(on, rng.exponential(stays_s), -1.0), np.full(size, np.inf))
        first = on.nonzero()[0]
        fleet.book(first, rng.random(len(first)) * HOUR_S / 4)
        return fleet

    def book(self, who: NDArray[np.int64], at_s: Times) -> None:
        """Let devices ask at those times."""
        self.next_s[who] = at_s
        seconds = at_s.astype(np.int64)
        order = np.argsort(seconds, kind="stable")
        who, seconds = who[order], seconds[order]
        starts = [0, *(np.flatnonzero(np.diff(seconds)) + 1).tolist(), len(who)]
        for start, stop in pairwise(starts):
            if stop > start:
                self.calendar[int(seconds[start])].append(who[start:stop])

    def wake(self, minute_s: int, rng: np.random.Generator) -> None:
        """Turn devices on during a minute."""
        chances = [1.0 - np.exp(-MINUTE_S * turning_on(minute_s, stays_s)) for stays_s in STAYS_S]
        coins = rng.random(len(self.stays_s), dtype=np.float32)
        coins[0::2] /= max(chances[0], 1e-12)
        coins[1::2] /= max(chances[1], 1e-12)
        who = ((coins < 1.0) & (self.until_s <= minute_s)).nonzero()[0]
        since_s = minute_s + rng.random(len(who)) * MINUTE_S
        self.until_s[who] = since_s + rng.exponential(self.stays_s[who])
        due = np.isinf(self.next_s[who])
        self.book(who[due], since_s[due])

    def asking(self, second: int) -> NDArray[np.int64]:
        """Return the devices that ask in a second. Those that are off ask once they are on."""
        parts = self.calendar.pop(second, [])
        who = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        who = who[self.next_s[who] < second + 1]
        self.next_s[who] = np.inf
        return who[self.until_s[who] > second]


class Server:
    """The long polls and hints of a server."""

    def __init__(self, rate: float, before: bool, rng: np.random.Generator) -> None:
        self.pace, self._before, self._rng, self._waiting = Pace(rate), before, rng, 0
        self._ends: dict[int, int] = defaultdict(int)

    def pauses(self, second: int, count: int) -> Times:
        """Return the seconds until each of ``count`` devices without mail asks again."""
        self._waiting -= self._ends.pop(second, 0)
        polls = min(count, ServerLimits().waiting - self._waiting)
        self._waiting += polls
        told, draws = np.full(count, WAIT_S), self._rng.random(count - polls)
        if not self._before:
            told[:polls] = [poll_s(WAIT_S, draw) for draw in self._rng.random(polls).tolist()]
        for end in (second + told[:polls]).astype(int).tolist():
            self._ends[end] += 1
        told[polls:] = 1.0 + np.floor(60.0 * draws) if self._before else np.ceil(self.pace.pauses(second, draws))
        return told


class Round:
    """One round's mail, in the product's tables."""

    def __init__(self, database: Database, plan: Plan, number: int, invited: list[int], second: int) -> None:
        self._database, self._plan, self._number, self.second = database, plan, number, second
        self.awaited = np.zeros(plan.sampling.population, bool)
        self.awaited[invited] = True
        rule, public = plan.rule(number), plan.public(number)
        self._invite = frame.Invite(
            run=plan.run,
            round=number,
            spec=plan.spec.digest(),
            model="0" * 64,
            public=public,
            accepted=None,
            deadline_s=plan.sampling.deadline_s,
            rule=rule,
        )
        raw = frame.dump(self._invite)

        def post(c: sa.Connection) -> None:
            for device in invited:
                mailboxes.post(c, name(device), raw, self._invite, float(second))

        database.write(post)

    def answers(self, devices: list[int], second: int) -> None:
        """Let devices find their mail, look at it, and send something as an update."""

        def change(c: sa.Connection) -> None:
            for device in devices:
                letter = mailboxes.next_letter(c, name(device), 0)
                assert letter is not None
                invite = frame.from_server(letter.body, 2**20)
                assert isinstance(invite, frame.Invite)
                assert admission.invitation_refusal(self._plan, invite, None) is None
                update = frame.Contribution(invite.run, invite.round, name(device), memoryview(bytes(100)))
                raw = frame.dump(update)
                mailboxes.accept(c, update, raw, bytes(32), "", float(second))

        self._database.write(change)


def name(device: int) -> str:
    """Return the id of a device."""
    return f"{device:032x}"


def planned(devices: int, cohort: int, rounds: int) -> Plan:
    """Make the plan of the run: cohorts of a fixed size, without secure aggregation."""
    made = recipe.from_plain(
        {
            "privacy": "none",
            "round": {"rounds": rounds, "sampling": "fixed", "cohort": cohort, "deadline_s": float(EVERY_S - 300)},
        }
    )
    return compile_plan(made, Spec.of([("w", (16,), "float32")]), devices, BUILT_IN)


def play(devices: int, hours: int, rate: float, before: bool, outage: bool, cohort: int = 400) -> dict[str, Any]:
    """Play the fleet. Returns the figures."""
    began, rng = time.process_time(), np.random.default_rng(7)
    fleet, server = Fleet.of(devices, rng), Server(rate, before, rng)
    plan, population = planned(devices, cohort, hours * HOUR_S // EVERY_S), range(devices)
    load, idle_writes, rounds = np.zeros(hours * HOUR_S, np.int64), 0, list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder))
        writes = _Writes(database)
        now: Round | None = None
        for second in range(len(load)):
            if second % MINUTE_S == 0:
                fleet.wake(second, rng)
            if second % EVERY_S == 0:
                if now is not None:
                    rounds[-1]["writes"] = writes.since()
                    database.write(lambda c: mailboxes.close(c, plan.run))
                number = second // EVERY_S
                invited = list(sampling.draw(plan.sampling, population, bytes(32), number))
                now = Round(database, plan, number, invited, second)
                on = np.array([fleet.until_s[i] > second for i in invited])
                rounds.append({"on": np.array(invited)[on], "came": [], "after_s": []})
            who = rng.permutation(fleet.asking(second))
            if outage and OUTAGE_S[0] <= second < OUTAGE_S[1]:
                fleet.book(who, np.maximum(OUTAGE_S[1] + rng.random(len(who)) * LONGEST_PAUSE_S, second))
                continue
            load[second] = len(who)
            assert now is not None
            if second - now.second < plan.sampling.deadline_s:
                found = now.awaited[who]
                if found.any():
                    now.answers(who[found].tolist(), second)
                    now.awaited[who[found]] = False
                    rounds[-1]["came"] += who[found].tolist()
                    rounds[-1]["after_s"] += [second - now.second] * int(found.sum())
            if second % HOUR_S == HOUR_S // 2:
                idle_writes += writes.of_look_ups(who[: SAMPLE // hours + 1].tolist())
            fleet.book(who, second + rng.random(len(who)) + server.pauses(second, len(who)))
        writes.close()
        database.close()
    rest = rounds[2:-1]
    told = {"devices": devices, "hours": hours, "hints": "before" if before else f"{rate:g}/s"}
    return {
        **told,
        **_shape(load[HOUR_S:], outage),
        "rounds": len(rest),
        "writes_per_round": float(np.mean([r["writes"] for r in rest])) if rest else 0.0,
        "writes_of_idle_check_ins": idle_writes,
        **_bias(rest),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "cpu_s": round(time.process_time() - began, 1),
    }


class _Writes:
    """Rows that the database has inserted, changed or deleted."""

    def __init__(self, database: Database) -> None:
        self._database, self._last, self._rows = database, 0, 0
        sa.event.listen(sa.Engine, "after_cursor_execute", self._note)

    def close(self) -> None:
        """Count no more."""
        sa.event.remove(sa.Engine, "after_cursor_execute", self._note)

    def _note(self, c: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not statement.lstrip().upper().startswith(("SELECT", "PRAGMA", "BEGIN")):
            self._rows += max(0, cursor.rowcount)

    def since(self) -> int:
        """Return the rows since the last call."""
        self._last, last = self._rows, self._last
        return self._rows - last

    def of_look_ups(self, devices: list[int]) -> int:
        """Let devices without mail look for it. Returns the rows that they write."""
        before = self._rows
        with self._database.read() as c:
            for device in devices:
                mailboxes.next_letter(c, name(device), 0)
                mailboxes.takes_part(c, name(device))
        return self._rows - before


def _shape(load: NDArray[np.int64], outage: bool) -> dict[str, Any]:
    """Peak and mean, of seconds and of minutes."""
    minutes = load[: len(load) // 60 * 60].reshape(-1, 60).mean(axis=1)
    hourly = load[: len(load) // HOUR_S * HOUR_S].reshape(-1, HOUR_S).mean(axis=1).round(1).tolist()
    found = {"mean": float(load.mean()), "peak_second": int(load.max()), "peak_minute": float(minutes.max())}
    found |= {"peak_to_mean": found["peak_second"] / found["mean"], "of_minutes": found["peak_minute"] / found["mean"]}
    if outage:
        after = load[OUTAGE_S[1] - HOUR_S :]
        high = (after > 1.3 * np.median(load)).nonzero()[0]
        found["high_after_outage_s"] = int(high.max()) + 1 if len(high) else 0
    return {**{k: round(v, 3) for k, v in found.items()}, "by_hour": hourly}


def _bias(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of the devices that were on when they were invited and that answered, of both kinds, and their delay."""
    on = np.concatenate([r["on"] for r in rounds]) if rounds else np.zeros(0, int)
    came = np.concatenate([np.isin(r["on"], r["came"]) for r in rounds]) if rounds else np.zeros(0, bool)
    delays = np.concatenate([r["after_s"] for r in rounds]) if rounds else np.zeros(1)
    kinds = [round(float(came[on % 2 == kind].mean()), 3) if (on % 2 == kind).any() else None for kind in (0, 1)]
    found = {"answered_of_30_minutes": kinds[0], "answered_of_4_hours": kinds[1]}
    return {**found, "delay_s_median_p95": np.percentile(delays, [50, 95]).round(1).tolist()}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--before", action="store_true", help="hints of 1 to 60 s for any number of devices")
    parser.add_argument("--outage", action="store_true", help="the server is down for 10 minutes at noon")
    given = parser.parse_args()
    print(json.dumps(play(given.devices, given.hours, given.rate, given.before, given.outage)))


if __name__ == "__main__":
    main()
