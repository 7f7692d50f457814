"""When each device last called a server, and when it was asked to come back.

    presence = Presence(rate=1000.0, fleet=lambda: 20_000)
    presence.came(device)                              # it called, or sent a chunk
    pause_s = presence.pause_s(device, draw)           # no mail for it: ask it to come back later
    presence.present(devices)                          # how many are there
    presence.earliest_s(device)                        # from when on its silence counts

All times are monotonic. They are in memory. Pauses that an earlier life of the server or another server of the same
database gave are unknown here, so they are bounded by the longest pause of a fleet of this size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from math import ceil, inf

from edgewise.drivers.http.limits import ServerLimits
from edgewise.engine.pacing import LEAST_S, Pace, longest_s

CALLS_S = 30.0  # idle devices that wait for mail call twice a minute or more
HERE_S = CALLS_S + LEAST_S  # a device that called or was to come back within this time is present
SLACK_S = 60  # seconds to train and send that the warning adds to the longest pause
COUNTED_S = 60.0  # seconds for which the size of the fleet is remembered


def short_deadline(deadline_s: float, devices: int, limits: ServerLimits = ServerLimits()) -> str | None:  # noqa: B008 (frozen)
    """Return a warning where rounds end before the devices of a fleet come back. None where they come in time.

    As long as all devices find a long poll free, they are not asked to come back later.
    """
    pause_s = longest_s(devices, limits.checkin_rate)
    if devices <= limits.waiting or deadline_s >= pause_s:
        return None
    return (
        f"round.deadline_s = {deadline_s:g} is short for a fleet of {devices:,} devices. Idle ones are asked to come "
        f"back after up to {ceil(pause_s)} s, so many find their invitation too late. Write "
        f"{ceil(pause_s) + SLACK_S} or more."
    )


class Presence:
    """The calls and pauses of a server's devices. Safe to use from the event loop and from one other thread.

    Args:
        rate: as ``Pace``.
        fleet: counts the devices that may call.
        shared: other servers answer the same devices.
    """

    def __init__(self, rate: float, fleet: Callable[[], int], shared: bool = False) -> None:
        self._pace, self._rate, self._fleet, self._shared = Pace(rate), rate, fleet, shared
        self.progress_s: dict[str, float] = {}  # device -> time of its last progress
        self._due_s: dict[str, float] = {}  # device -> time of the return that it was asked for
        self._counted = (0, -inf)
        # Nobody knows the pauses that were given before this start. A new fleet has none.
        self._unknown_s = time.monotonic() + self.longest_s() if fleet() else -inf

    def came(self, device: str) -> None:
        """Note the progress of a device: a call, or a chunk."""
        self.progress_s[device] = time.monotonic()

    def has_mail(self, device: str) -> None:
        """Note that a device got mail. Its pause is over."""
        self._due_s.pop(device, None)

    def pause_s(self, device: str, draw: float) -> float:
        """Return the seconds after which a device without mail comes back. ``draw``: uniform in [0, 1)."""
        now_s = time.monotonic()
        pause_s = self._pace.pause_s(now_s, draw)
        self.returns(device, pause_s)
        return pause_s

    def returns(self, device: str, pause_s: float) -> None:
        """Note that a device was asked to come back after ``pause_s``, here or at another server."""
        self._due_s[device] = time.monotonic() + pause_s

    def last_s(self, device: str) -> float:
        """Return the time at which a device called or was to call. 0 for one that is unknown here."""
        return max(self.progress_s.get(device, 0.0), self._due_s.get(device, 0.0))

    def present(self, devices: Collection[str]) -> int:
        """Count the devices that called, or were to come back, within ``HERE_S``."""
        since_s = time.monotonic() - HERE_S
        return sum(self.last_s(device) >= since_s for device in devices)

    def recent(self) -> list[str]:
        """Return the members that ``present`` would count."""
        since_s = time.monotonic() - HERE_S
        return [name for name in list(self.progress_s) if self.last_s(name) >= since_s]

    def earliest_s(self, device: str) -> float:
        """Return the time from which the silence of a device counts that gets mail now.

            max(now, its return, start + longest pause)
            now + longest pause                               where servers share a database

        The pauses that were given before this server's start end with ``start + longest pause``.
        """
        now_s = time.monotonic()
        if self._shared:
            return now_s + self.longest_s()  # Another server may have answered it just now.
        return max(now_s, self._due_s.get(device, -inf), self._unknown_s)

    def longest_s(self) -> float:
        """Return the longest pause that a device of this fleet is asked for."""
        now_s = time.monotonic()
        if now_s - self._counted[1] >= COUNTED_S:
            self._counted = self._fleet(), now_s
        return longest_s(self._counted[0], self._rate)
