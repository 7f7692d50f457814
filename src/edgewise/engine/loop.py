"""The only loop that receives: for rounds of every kind, and for whatever else waits for devices by its own clock.

It is one way to drive what listens. A server that is called by its network does the same from its handlers: ``take``
for what arrives, ``take(Expired(until_s))`` by a timer.
"""

from __future__ import annotations

from typing import Protocol

from edgewise.engine.ports import Absent, Arrived, Cohort, Expired


class Listener(Protocol):
    """What waits for devices."""

    @property
    def until_s(self) -> float | None:
        """Until when it waits; None: no longer."""
        ...

    def take(self, record: Arrived | Absent | Expired) -> None:
        """Take what came, or note that the time ``until_s`` is over."""
        ...


def receive(cohort: Cohort, listener: Listener) -> None:
    """Feed a listener until it waits no longer.

    What comes after a deadline is fed after the deadline, however much else there is to read: a device that floods the
    mailbox cannot hold up a round or a step of one.
    """
    while (until_s := listener.until_s) is not None:
        item = cohort.receive(max(0.0, until_s - cohort.now_s()))
        while until_s is not None and (item is None or item.at_s > until_s):
            listener.take(Expired(until_s))
            if item is None:
                break
            until_s = listener.until_s
        if item is not None:
            listener.take(item)
            del item  # a frame as large as the model is not held beside the next one
