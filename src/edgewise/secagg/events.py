"""What happens to the server's side of secure aggregation (events), and what it asks for (effects): see ``server``."""

from __future__ import annotations

from dataclasses import dataclass, field

Device = str


@dataclass(frozen=True, slots=True)
class Received:
    """A message from a device, authenticated by the transport as its own."""

    device: Device
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Gone:
    """A device will say nothing more."""

    device: Device


@dataclass(frozen=True, slots=True)
class Close:
    """Wait no longer for answers to this step."""


@dataclass(frozen=True, slots=True)
class Send:
    """Please send."""

    device: Device
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refused:
    """What a device sent is of no use, or it is out of the session."""

    device: Device
    code: str


Event = Received | Gone | Close
Effect = Send | Refused
