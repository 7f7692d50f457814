"""Receive loop of the engine, the only one: for rounds of every kind, and for every other listener with a deadline.

It is one way to drive a listener. A server that its network calls does the same from its handlers. It calls ``take``
for each arrival, and ``take(Expired(until_s))`` from a timer.
"""

from __future__ import annotations

from typing import Protocol

from edgewise.engine.ports import Absent, Arrived, Cohort, Expired


class Listener(Protocol):
    """Part of a run that waits for devices until a deadline."""

    @property
    def until_s(self) -> float | None:
        """Deadline of the present wait. None: it waits no longer."""
        ...

    def take(self, record: Arrived | Absent | Expired) -> None:
        """Take an arrival, or note that the time ``until_s`` is over."""
        ...


def receive(cohort: Cohort, listener: Listener) -> None:
    """Feed a listener until it waits no longer.

    An arrival after a deadline is fed after the deadline, however much else there is to read. So a device that floods
    the mailbox cannot delay a round or a step of one.
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
            del item  # A frame may be as large as the model. It is freed before the next one arrives.
