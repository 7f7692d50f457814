"""States, events and effects of a round. ``engine.round`` and ``engine.exchange`` have the transitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgewise.core.append_map import AppendMap
from edgewise.core.frame import Contribution, Step
from edgewise.core.keys import Key
from edgewise.core.training import DeviceId
from edgewise.secagg import server_states
from edgewise.secagg.params import Params

OUTDATED = "E-OUTDATED"


@dataclass(frozen=True, slots=True)
class RoundPolicy:
    """Rule for the end of collecting: ``goal`` contributions, or the deadline. Below ``minimum`` contributions the
    round is abandoned."""

    goal: int
    minimum: int
    deadline_at_s: float


@dataclass(frozen=True, slots=True)
class Masks:
    """Protocol with one server that never sees an unmasked contribution: the masked sessions of a round.

    Attributes:
        session: the session before any keys arrive. ``session.params`` are those of the fixed codec.
        rungs: parameters of the sessions of each rung, by number. Empty where the codec is fixed.
        sizes: bytes of a contribution by each rung.
        groups: number of groups that the cohort is dealt into. With rungs the largest number of groups.
        least: least number of opened sums. With fewer the round has no sum.
        deadline_s: for the answers to each message.
        dealing: decides the groups. No device can know it before it has sent its keys.
    """

    session: server_states.SecAggSession
    rungs: tuple[Params, ...]
    sizes: tuple[float, ...]
    groups: int
    least: int
    deadline_s: float
    dealing: Key = field(repr=False)


@dataclass(frozen=True, slots=True)
class TwoServers:
    """Protocol with two servers. Each contribution is two sealed shares, and a helper has half of the sum."""


Protocol = Masks | TwoServers | None  # None: the server sees each contribution


@dataclass(frozen=True, slots=True)
class Collecting:
    """State that waits for contributions, or with masks for keys. A step takes constant time in a cohort of any size.

    Attributes:
        counted: device -> rung, for devices whose contributions count, in arrival order.
        reported: device -> code of its failure, also for devices that answered afterwards.
        returned: number of ``reported`` devices that answered afterwards.
        keys: with masks, the keys that have arrived.
        versions: in asynchronous rounds, device -> the earlier round that it was invited to. The device is among
            ``invited``, and its contribution is to that round.
        outdated: devices whose invitation is too old to count. They are lost.
    """

    round: int
    invited: frozenset[DeviceId]
    policy: RoundPolicy
    protocol: Protocol = None
    counted: AppendMap[DeviceId, int | None] = field(default_factory=AppendMap)
    reported: AppendMap[DeviceId, str] = field(default_factory=AppendMap)
    returned: int = 0
    keys: server_states.Advertising | None = None
    versions: Mapping[DeviceId, int] = field(default_factory=dict)
    outdated: tuple[DeviceId, ...] = ()

    @property
    def accepted(self) -> tuple[DeviceId, ...]:
        """As in ``Closed``; O(cohort)."""
        return tuple(self.counted)

    @property
    def lost(self) -> tuple[tuple[DeviceId, str], ...]:
        """As in ``Closed``; O(cohort)."""
        outdated = ((device, OUTDATED) for device in self.outdated)
        return (*outdated, *(pair for pair in self.reported.items() if pair[0] not in self.counted))

    @property
    def outstanding(self) -> int:
        """Number of invited devices that have neither answered nor been lost."""
        return len(self.invited) - len(self.counted) - len(self.reported) + self.returned


@dataclass(frozen=True, slots=True)
class Closed:
    """End state of a round.

    Attributes:
        met: the minimum was reached, and there is a sum.
        accepted: devices in the sum, in arrival order. lost: (device, code). late: invited devices that the round did
            not wait for.
        flagged: (device, code) of devices that are in the sum, and lied or broke off later. Silence is not flagged.
        code: reason why secure aggregation gave no sum. None otherwise.
        released: with masks, the rung and the opened sum of each group that has one.
        rungs: device -> rung of its group. Empty where the codec is fixed or devices choose alone.
    """

    round: int
    met: bool
    accepted: tuple[DeviceId, ...]
    lost: tuple[tuple[DeviceId, str], ...]
    late: tuple[DeviceId, ...]
    flagged: tuple[tuple[DeviceId, str], ...] = ()
    code: str | None = None
    released: tuple[tuple[int | None, server_states.Released], ...] = field(default=(), repr=False)
    rungs: Mapping[DeviceId, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opening:
    """State that waits for the helper's half of the sum. ``collected``: the end state of the round once it arrives."""

    collected: Closed


@dataclass(frozen=True, slots=True)
class Group:
    """One masked session of a round: its state, its rung, and the deadline of its present step."""

    state: server_states.State
    rung: int | None
    until_s: float

    @property
    def open(self) -> bool:
        """Tell whether the session goes on."""
        return not isinstance(self.state, server_states.Released | server_states.Aborted)


@dataclass(frozen=True, slots=True)
class Exchanging:
    """State of the exchanges of secure aggregation, with the devices whose keys arrived.

    Attributes:
        collected: result of collecting. policy: its minimum applies to the devices of all opened sums together.
        groups: one session each. member: device -> number of its group.
        faults: number -> (device, code), in order: losses and offences of devices.
        charged: the privacy budget has been charged for the round.
    """

    collected: Closed
    policy: RoundPolicy
    masks: Masks
    groups: tuple[Group, ...]
    member: Mapping[DeviceId, int]
    faults: AppendMap[int, tuple[DeviceId, str]] = field(default_factory=AppendMap)
    charged: bool = False

    @property
    def round(self) -> int:
        """Number of the round."""
        return self.collected.round


State = Collecting | Exchanging | Opening | Closed


@dataclass(frozen=True, slots=True)
class Answered:
    """Event: a device's contribution, or its message of secure aggregation. ``at_s``: time of its arrival."""

    device: DeviceId
    round: int
    message: Contribution | Step = field(repr=False)
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Usable:
    """Event: a device's contribution to ``round`` has been added to the sum. ``rung``: the device's choice."""

    device: DeviceId
    round: int
    rung: int | None = None


@dataclass(frozen=True, slots=True)
class Useless:
    """Event: a device refused, or its message to ``round`` is invalid, by ``code`` and ``reason``."""

    device: DeviceId
    round: int
    code: str
    reason: str | None = None
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Gone:
    """Event: a device will send nothing more in ``round``."""

    device: DeviceId
    round: int
    code: str
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Deadline:
    """Event: the clock reached ``at_s``."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Opened:
    """Event: the helper's half has been added. With ``code``: the helper refused."""

    code: str | None = None


Event = Answered | Usable | Useless | Gone | Deadline | Opened


@dataclass(frozen=True, slots=True)
class Send:
    """Effect: send a frame to a device."""

    device: DeviceId
    frame: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Letter:
    """Effect: send a device a message of secure aggregation, in a frame with the rung of its group.

    All devices share one roster object. Frames of it for a large cohort would fill the memory.
    """

    device: DeviceId
    body: bytes = field(repr=False)
    rung: int | None


@dataclass(frozen=True, slots=True)
class Fold:
    """Effect: add a contribution to the sum and answer with ``Usable``, or ``Useless`` where the sum is unchanged."""

    device: DeviceId
    message: Contribution = field(repr=False)


@dataclass(frozen=True, slots=True)
class Charge:
    """Effect: charge the privacy budget, durably, before the effects that follow."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Effect: log that the sum of a group will be that of ``survivors`` and of no other devices. Like all records, it
    is durable before a letter leaves or the budget is charged."""

    group: int
    survivors: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class Open:
    """Effect: ask the helper for its half of the sum over these devices, and answer with ``Opened``."""

    devices: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Effect: stop waiting for all devices but ``keep``."""

    keep: frozenset[DeviceId]


@dataclass(frozen=True, slots=True)
class Counted:
    """Effect: report that a device's contribution counts. ``rung``: the device's choice."""

    device: DeviceId
    rung: int | None = None


@dataclass(frozen=True, slots=True)
class Ignore:
    """Effect: report that a device's message does not count: ``duplicate``, ``late``, ``uninvited`` or ``closed``."""

    device: DeviceId
    why: str


@dataclass(frozen=True, slots=True)
class ReportLoss:
    """Effect: report that a device is lost for the round."""

    device: DeviceId
    code: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """Effect: end the round and stop waiting."""

    met: bool


Effect = Send | Letter | Fold | Charge | Pin | Open | Dismiss | Counted | Ignore | ReportLoss | Close
