"""Events and effects of the server side of secure aggregation (``server``)."""

from __future__ import annotations

from dataclasses import dataclass, field

Device = str


@dataclass(frozen=True, slots=True)
class SecAggReceived:
    """Event: a message from a device. The transport has authenticated the device."""

    device: Device
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SecAggDeviceGone:
    """Event: a device will send nothing more."""

    device: Device


@dataclass(frozen=True, slots=True)
class SecAggStepClosed:
    """Event: the deadline of this step has passed."""


@dataclass(frozen=True, slots=True)
class SecAggSend:
    """Effect: send a message to a device."""

    device: Device
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SecAggRefused:
    """Effect: report a device whose message was refused, or that is out of the session, with a code."""

    device: Device
    code: str


Event = SecAggReceived | SecAggDeviceGone | SecAggStepClosed
Effect = SecAggSend | SecAggRefused
