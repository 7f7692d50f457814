"""The states, events and effects of a round (``engine.round`` and ``engine.exchange`` have the transitions)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgewise.core.append_map import AppendMap
from edgewise.core.frame import Contribution, Step
from edgewise.core.keys import Key
from edgewise.core.training import DeviceId
from edgewise.secagg import server
from edgewise.secagg.params import Params


@dataclass(frozen=True, slots=True)
class RoundPolicy:
    """When collecting is over: ``goal`` contributions, or the deadline; below ``minimum`` the round is abandoned."""

    goal: int
    minimum: int
    deadline_at_s: float


@dataclass(frozen=True, slots=True)
class Masks:
    """One server that never sees an unmasked contribution: what decides the masked sessions of a round.

    Attributes:
        session: before any keys are in; ``session.params`` are those of the fixed codec.
        rungs: parameters of the sessions of each rung, by number; empty where the codec is fixed.
        sizes: bytes of a contribution by each rung.
        groups: groups that the cohort is dealt into; with rungs the most groups that it is sorted into.
        least: sums without which the round has none.
        deadline_s: for the answers to each message.
        dealing: decides the groups. No device can know it before its keys are in.
    """

    session: server.Session
    rungs: tuple[Params, ...]
    sizes: tuple[float, ...]
    groups: int
    least: int
    deadline_s: float
    dealing: Key = field(repr=False)


@dataclass(frozen=True, slots=True)
class TwoServers:
    """Each contribution is two sealed shares; a helper has half of the sum."""


Protocol = Masks | TwoServers | None  # None: the server sees each contribution


@dataclass(frozen=True, slots=True)
class Collecting:
    """Waiting for contributions, or with masks for keys. A step takes the same time in a cohort of any size.

    Attributes:
        counted: device -> rung, of those whose contributions count, in arrival order.
        reported: device -> code of its failure, also of devices that answered afterwards.
        returned: how many of ``reported`` did.
        keys: with masks the keys that came.
    """

    round: int
    invited: frozenset[DeviceId]
    policy: RoundPolicy
    protocol: Protocol = None
    counted: AppendMap[DeviceId, int | None] = field(default_factory=AppendMap)
    reported: AppendMap[DeviceId, str] = field(default_factory=AppendMap)
    returned: int = 0
    keys: server.Advertising | None = None

    @property
    def accepted(self) -> tuple[DeviceId, ...]:
        """As in ``Closed``; O(cohort)."""
        return tuple(self.counted)

    @property
    def lost(self) -> tuple[tuple[DeviceId, str], ...]:
        """As in ``Closed``; O(cohort)."""
        return tuple(pair for pair in self.reported.items() if pair[0] not in self.counted)

    @property
    def outstanding(self) -> int:
        """Invited devices that have neither answered nor been lost."""
        return len(self.invited) - len(self.counted) - len(self.reported) + self.returned


@dataclass(frozen=True, slots=True)
class Closed:
    """The end.

    Attributes:
        met: the minimum was reached, and there is a sum.
        accepted: whose contributions are in the sum, in arrival order. lost: (device, code). late: the invited devices
            that nobody waited for.
        flagged: (device, code) of those who are in the sum, and lied or broke off later. Silence is not flagged.
        code: why secure aggregation came to no sum; None otherwise.
        released: with masks the opened sum of each group that has one, with the rung of the group.
        rungs: device -> rung of its group; empty where the codec is fixed or devices choose alone.
    """

    round: int
    met: bool
    accepted: tuple[DeviceId, ...]
    lost: tuple[tuple[DeviceId, str], ...]
    late: tuple[DeviceId, ...]
    flagged: tuple[tuple[DeviceId, str], ...] = ()
    code: str | None = None
    released: tuple[tuple[int | None, server.Released], ...] = field(default=(), repr=False)
    rungs: Mapping[DeviceId, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opening:
    """Waiting for the helper's half of the sum. ``collected``: the end that the round comes to with it."""

    collected: Closed


@dataclass(frozen=True, slots=True)
class Group:
    """One session of masks: its state, its rung, and when the step that it is in ends."""

    state: server.State
    rung: int | None
    until_s: float

    @property
    def open(self) -> bool:
        """Whether the session goes on."""
        return not isinstance(self.state, server.Released | server.Aborted)


@dataclass(frozen=True, slots=True)
class Exchanging:
    """In the exchanges of secure aggregation, with the devices whose keys came.

    Attributes:
        collected: what collecting came to. policy: whose minimum the sums have to reach.
        groups: a session for each. member: device -> number of its group.
        faults: number -> (device, code), in order: how devices were lost, or what they did.
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
        """The round's number."""
        return self.collected.round


State = Collecting | Exchanging | Opening | Closed


@dataclass(frozen=True, slots=True)
class Answered:
    """A device's message of the round: a contribution, or a message of secure aggregation. ``at_s``: when it came."""

    device: DeviceId
    round: int
    message: Contribution | Step = field(repr=False)
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Usable:
    """A device's contribution to ``round`` has been folded into the sum. ``rung``: the one that it chose."""

    device: DeviceId
    round: int
    rung: int | None = None


@dataclass(frozen=True, slots=True)
class Useless:
    """What came from a device is of no use to ``round``: a refusal, or rubbish. ``code``, ``reason``: say which."""

    device: DeviceId
    round: int
    code: str
    reason: str = ""
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Gone:
    """A device will say nothing more in ``round``."""

    device: DeviceId
    round: int
    code: str
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Deadline:
    """The clock reached ``at_s``."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Opened:
    """The helper's half has been added; or the code with which the helper refused."""

    code: str | None = None


Event = Answered | Usable | Useless | Gone | Deadline | Opened


@dataclass(frozen=True, slots=True)
class Send:
    """Send this frame to a device."""

    device: DeviceId
    frame: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Letter:
    """Send a device this message of secure aggregation, in a frame with the rung of its group. A roster is one object
    for all: as frames, those of a large cohort would fill the memory."""

    device: DeviceId
    body: bytes = field(repr=False)
    rung: int | None


@dataclass(frozen=True, slots=True)
class Fold:
    """Fold a contribution into the sum and say how that went: ``Usable``, or ``Useless`` and the sum unchanged."""

    device: DeviceId
    message: Contribution = field(repr=False)


@dataclass(frozen=True, slots=True)
class Charge:
    """Charge the privacy budget, durably, before the effects that follow."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Write down that the sum of a group will be that of ``survivors`` and of no other devices. Like all records, it is
    durable before a letter leaves or the budget is charged."""

    group: int
    survivors: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class Open:
    """Ask the helper for its half of the sum over these devices, and say how that went: ``Opened``."""

    devices: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Nobody but the devices ``keep`` is waited for any more."""

    keep: frozenset[DeviceId]


@dataclass(frozen=True, slots=True)
class Counted:
    """This device's contribution counts. ``rung``: the one that it chose."""

    device: DeviceId
    rung: int | None = None


@dataclass(frozen=True, slots=True)
class Ignore:
    """What a device sent does not count: ``duplicate``, ``late``, ``uninvited``, ``closed``."""

    device: DeviceId
    why: str


@dataclass(frozen=True, slots=True)
class ReportLoss:
    """Tell people that this device is lost for the round."""

    device: DeviceId
    code: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Close:
    """The round is over; stop waiting."""

    met: bool


Effect = Send | Letter | Fold | Charge | Pin | Open | Dismiss | Counted | Ignore | ReportLoss | Close
