"""Events and effects of a device's machine (``engine.device``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from edgewise.core import frame, keys
from edgewise.core.frame import Invite
from edgewise.core.training import FitRequest, Update
from edgewise.core.vector import Array, Vector
from edgewise.engine.device_state import Kept


@dataclass(frozen=True, slots=True)
class Invited:
    """Event: an invitation and the blobs that it names.

    Attributes:
        params: the round's parameters and the strategy's vectors beside them, float32 of ``Layout.given``.
        secrets: of the device, for this attempt at the round. support: positions of the last release, where stages ask
        for them. beacon: blob of the run's beacon. None where cohorts are not
        verified.
    """

    invite: Invite
    params: Vector = field(repr=False)
    secrets: keys.Secrets = field(repr=False)
    support: Array | None = field(default=None, repr=False)
    beacon: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Unready:
    """Event: an invitation that the driver refuses, by ``admission.invitation_refusal`` or for a missing blob."""

    invite: Invite
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Trained:
    """Event: training is done. The driver's measurements set the device's own upload budget.

    Attributes:
        elapsed_s: time since the invitation arrived, with download and training. None: not measured, so the whole
            deadline counts.
        steps: steps that the trainer took. None: as many as the rule says.
        up_mbit: likely speed of the next upload, by ``plan.upload_budget.link_estimate`` of the device's own transfers.
            inf: the link is no limit. 0: nothing is known of it, so the smallest rung is sent.
    """

    update: Update
    elapsed_s: float | None = None
    up_mbit: float = inf
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """Event: training is impossible. Code and reason go to the server, data never does. With differential privacy
    neither code nor reason goes: the device sends zeros."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Withheld:
    """Event: the frame of a ``ChargeOwner`` may not leave, because the round cannot be charged.

    The driver undoes the step that asked for it and gives this event to the state before it.
    """

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """Event: a message of the round's secure aggregation arrived."""

    message: frame.Step


@dataclass(frozen=True, slots=True)
class Train:
    """Effect: train."""

    request: FitRequest


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Effect: send a frame to the server."""

    frame: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChargeOwner:
    """Effect: charge the round to the owner's budget (``engine.owner_budget``). Do it before the state is saved and the
    frame leaves, because the frame carries the device's update."""

    round: int


@dataclass(frozen=True, slots=True)
class Save:
    """Effect: save a state (``ports.DeviceStore``) before a frame leaves. No other state needs to be saved: a device
    that resumes from the last saved one sends nothing that it would not have sent otherwise."""

    state: Kept


Event = Invited | Unready | Trained | Failed | Withheld | Delivered
Effect = Train | ChargeOwner | Save | SendFrame
