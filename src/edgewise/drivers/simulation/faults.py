"""A cohort with scripted faults: loss, delay, duplication and corruption between devices and server.

    Faulty(cohort, lambda device, number: ScriptedFault(lose=number == 3))

For tests and drills, wrap any Cohort. The script sees the device and the running number of its arrival, and returns a
fault. The wrapped cohort notices nothing.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from edgewise.core.training import DeviceId
from edgewise.core.vector import Buffer
from edgewise.engine.ports import Absent, Arrived, Cohort, Sent


@dataclass(frozen=True, slots=True)
class ScriptedFault:
    """The fault of one arrival.

    Attributes:
        lose: the server never learns of the arrival, not even by a Lost.
        delay_s: seconds by which it comes later.
        copies: number of further identical arrivals.
        corrupt: flip one byte of the frame.
    """

    lose: bool = False
    delay_s: float = 0.0
    copies: int = 0
    corrupt: bool = False


Script = Callable[[DeviceId, int], ScriptedFault]


class Faulty:
    """A Cohort port that adds faults to another one."""

    def __init__(self, inner: Cohort, script: Script) -> None:
        self._inner, self._script = inner, script
        self._held: list[tuple[float, int, Arrived | Absent]] = []
        self._seen: Counter[DeviceId] = Counter()
        self._now_s = inner.now_s()
        self._order = 0

    def now_s(self) -> float:
        """Return the time of the last delivery."""
        return self._now_s

    def publish(self, blobs: Sequence[Buffer]) -> Sequence[str]:
        """See Cohort."""
        digests = self._inner.publish(blobs)
        self._now_s = self._inner.now_s()
        return digests

    def send(self, to: DeviceId, frame: bytes) -> None:
        """See Cohort."""
        self._inner.send(to, frame)

    def resume(self, sent: Sequence[Sent], at_s: float) -> None:
        """See Cohort. Delayed arrivals of a stopped server are lost."""
        self._inner.resume(sent, at_s)
        self._now_s = self._inner.now_s()

    def receive(self, timeout_s: float) -> Arrived | Absent | None:
        """See Cohort. Takes arrivals from the wrapped cohort until none can come before the earliest delayed one."""
        limit_s = self._now_s + timeout_s
        while not self._held or self._inner.now_s() < self._held[0][0]:
            until_s = (
                min(limit_s, self._held[0][0]) if self._held else limit_s
            )  # the wrapped cohort's clock must not run ahead
            item = self._inner.receive(max(0.0, until_s - self._inner.now_s()))
            if item is None:
                break
            self._apply_fault(item)
        if self._held and self._held[0][0] <= limit_s:
            at_s, _, item = heapq.heappop(self._held)
            self._now_s = max(self._now_s, at_s)
            return item
        if limit_s != float("inf"):
            self._now_s = limit_s
        return None

    def _apply_fault(self, item: Arrived | Absent) -> None:
        """Lose, delay, repeat or damage an arrival, as the script says."""
        fault = self._script(item.device, self._seen[item.device])
        self._seen[item.device] += 1
        if fault.lose:
            return
        item = replace(item, at_s=item.at_s + fault.delay_s)
        if fault.corrupt and isinstance(item, Arrived):
            raw, middle = bytes(item.frame), len(item.frame) // 2
            flipped = bytes([raw[middle] ^ 0x5A])
            item = replace(item, frame=raw[:middle] + flipped + raw[middle + 1 :])
        for _ in range(1 + fault.copies):
            self._order += 1
            heapq.heappush(self._held, (item.at_s, self._order, item))

    def carry(self, at_work: Mapping[DeviceId, int]) -> None:
        """See Cohort. Delayed arrivals come after the round, as late mail does."""
        self._inner.carry(at_work)

    def close_round(self, keep: Collection[DeviceId] = ()) -> None:
        """See Cohort. Delayed arrivals come after the round, as late mail does."""
        self._inner.close_round(keep)
