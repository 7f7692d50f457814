"""The agent: a device that takes its mail until it is told to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgewise.apps.device.joining import Make, Owner, Parts
from edgewise.drivers.http.attend import attend
from edgewise.drivers.http.link import WAIT_S, Link


def work(
    home: Path,
    owner: Owner,
    until: Callable[[], bool] = lambda: False,
    make: Make | None = None,
    wait_s: float = WAIT_S,
    patience_s: float = 300.0,
) -> None:
    """Take part in the runs of the server that ``home`` is enrolled at, until ``until()``.

    Raises: TransportError, StoreError as ``drivers.http.attend``.
    """
    with Link(home, patience_s) as link, Parts(link, home, owner, make) as parts:
        attend(link, parts, until, wait_s)
