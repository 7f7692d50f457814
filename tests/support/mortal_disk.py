"""The disk of a device whose process dies between two operations on it."""

from __future__ import annotations

from typing import Any

from edgewise.engine import device_state as states
from edgewise.privacy.device_ledger import DeviceCharge


class Killed(BaseException):
    """The device's process died."""


class Disk:
    """A device's two files: its state and its ledger. ``dies``: how many operations it still does."""

    def __init__(self) -> None:
        self.state: tuple[dict[str, Any], bytes] | None = None
        self.charged: list[DeviceCharge] = []
        self.dies: int | None = None

    def operation(self) -> None:
        if self.dies is not None:
            if self.dies == 0:
                raise Killed
            self.dies -= 1

    def load(self, device: str) -> states.Kept | None:
        if self.state is None:
            return None
        return states.resumed(states.idle_of(device, self.state[0]), self.state[1])

    def save(self, device: str, state: states.Kept) -> None:
        self.operation()
        self.state = states.memory_of(state), states.session_of(state)

    def charges(self, device: str) -> tuple[DeviceCharge, ...]:
        return tuple(self.charged)

    def charge(self, device: str, new: DeviceCharge) -> None:
        self.operation()
        if new not in self.charged:
            self.charged.append(new)
