"""Events that a device's machine takes, and effects that it asks its driver for (``engine.device``)."""

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
    """An invitation, the round's parameters and what the strategy gives beside them, float32 of ``Layout.given``, the
    device's secrets for this attempt at the round, where stages ask for them the positions of the last release, and
    where cohorts are verified the blob of the run's beacon.
    """

    invite: Invite
    params: Vector = field(repr=False)
    secrets: keys.Secrets = field(repr=False)
    support: Array | None = field(default=None, repr=False)
    beacon: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Unready:
    """An invitation that the driver refuses: what it names cannot be had, or ``engine.admission.refused``."""

    invite: Invite
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Trained:
    """Training is done; and what the driver measured, from which the device sets its own upload budget.

    Attributes:
        elapsed_s: since the invitation came, with download and training; 0: not measured, the whole deadline counts.
        steps: that the trainer took; None: as many as the rule says.
        up_mbit: what the next upload will probably reach (``plan.upload_budget.link_estimate`` of the device's own
            transfers);
            inf: the link is no limit; 0: nothing is known of it, so the smallest rung is sent.
    """

    update: Update
    elapsed_s: float = 0.0
    up_mbit: float = inf
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """Training is impossible; code and reason go to the server, data never does. With differential privacy neither
    does: the device then sends zeros."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Withheld:
    """The frame of a ``Charge`` may not leave, since the round cannot be charged. The step that asked for it is undone:
    this event goes to the state before it."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message of the round's secure aggregation came."""

    message: frame.Step


@dataclass(frozen=True, slots=True)
class Train:
    """Please train."""

    request: FitRequest


@dataclass(frozen=True, slots=True)
class Send:
    """Please send this frame to the server."""

    frame: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Charge:
    """Please charge the round to the owner's budget (``engine.owner_budget``), before the state is kept and the frame
    leaves: the device's update goes with it."""

    round: int


@dataclass(frozen=True, slots=True)
class Save:
    """Please keep this state (``ports.DeviceStore``) before a frame leaves. No other state needs to be kept: a device
    that goes on from the last one saved sends nothing that it would not have sent."""

    state: Kept


Event = Invited | Unready | Trained | Failed | Withheld | Delivered
Effect = Train | Charge | Save | Send
