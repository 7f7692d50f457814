"""The round as a pure machine: ``step(state, input) -> (state, effects)``. No clock, no I/O, no vectors.

    Collecting ──goal reached / nobody outstanding / deadline with enough──► Closed(met=True)
        │
        └──minimum out of reach / deadline with too few──► Closed(met=False)

The machine sees who answered and whether the answer was usable, never a vector: the loop asks ``unwanted``, folds the
payload into the running sum, and then tells the machine. So a state is a few names, can be saved at any step, and a
journal of inputs replays to the same state.

Rules: a device counts once (duplicates are ignored); a device that was reported lost and answers before the round
closes counts as having answered; a contribution to another round is late; one from a device that was not invited is
refused; after closing nothing changes any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from edgewise.core.append_map import AppendMap
from edgewise.core.training import DeviceId

LATE, DROPPED = "late", "dropped"


@dataclass(frozen=True, slots=True)
class Policy:
    """When a round is over: ``goal`` contributions, or the deadline; below ``minimum`` it is abandoned."""

    goal: int
    minimum: int
    deadline_at_s: float


@dataclass(frozen=True, slots=True)
class Collecting:
    """Waiting for contributions. A step takes the same time in a cohort of any size.

    Attributes:
        counted: the devices whose contributions count, in arrival order.
        reported: device -> code of its failure, also of devices that answered afterwards.
        returned: how many of ``reported`` did.
    """

    round: int
    invited: frozenset[DeviceId]
    policy: Policy
    counted: AppendMap[DeviceId, None] = field(default_factory=AppendMap)
    reported: AppendMap[DeviceId, str] = field(default_factory=AppendMap)
    returned: int = 0

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
    """The end: ``met`` says that the minimum was reached; ``late`` are the invited devices nobody waited for.
    ``lost`` pairs a device with its failure's code; ``accepted`` in arrival order."""

    round: int
    met: bool
    accepted: tuple[DeviceId, ...]
    lost: tuple[tuple[DeviceId, str], ...]
    late: tuple[DeviceId, ...]


State = Collecting | Closed


@dataclass(frozen=True, slots=True)
class Usable:
    """A device's contribution to ``round`` arrived and decodes."""

    device: DeviceId
    round: int


@dataclass(frozen=True, slots=True)
class Gone:
    """A device gives nothing to ``round``: it refused, sent rubbish, or was cut off; ``code`` says which."""

    device: DeviceId
    round: int
    code: str


@dataclass(frozen=True, slots=True)
class Deadline:
    """The clock reached the policy's deadline."""

    at_s: float


Input = Usable | Gone | Deadline


@dataclass(frozen=True, slots=True)
class Counted:
    """This device's contribution is part of the round's sum."""

    device: DeviceId


@dataclass(frozen=True, slots=True)
class Ignore:
    """It does not count: ``duplicate``, ``late``, ``uninvited``, ``closed``."""

    device: DeviceId
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """Tell people that this device is lost for the round."""

    device: DeviceId
    code: str


@dataclass(frozen=True, slots=True)
class Close:
    """The round is over; stop waiting."""

    met: bool = field(default=True)


Effect = Counted | Ignore | Report | Close


def start(round: int, invited: frozenset[DeviceId], policy: Policy) -> tuple[State, tuple[Effect, ...]]:
    """Begin a round. With too few invited to ever reach the minimum it is closed at once, unmet."""
    return _settle(Collecting(round, invited, policy), ())


def unwanted(state: State, device: DeviceId, round: int) -> str:
    """Why a contribution would not count now: ``closed``, ``uninvited``, ``late``, ``duplicate``; empty if it would."""
    if isinstance(state, Closed):
        return "closed"
    if device not in state.invited:
        return "uninvited"
    if round != state.round:
        return LATE
    return "duplicate" if device in state.counted else ""


def step(state: State, event: Input) -> tuple[State, tuple[Effect, ...]]:
    """One input. Never raises for anything a device does."""
    if isinstance(event, Deadline):
        if isinstance(state, Closed) or event.at_s < state.policy.deadline_at_s:
            return state, ()
        return _close(state, len(state.counted) >= state.policy.minimum, ())
    if (why := unwanted(state, event.device, event.round)) or isinstance(state, Closed):
        return state, (Ignore(event.device, why),)
    lost = event.device in state.reported
    if isinstance(event, Usable):
        state = replace(state, counted=state.counted.plus(event.device, None), returned=state.returned + lost)
        return _settle(state, (Counted(event.device),))
    if lost:
        return state, (Ignore(event.device, "duplicate"),)
    state = replace(state, reported=state.reported.plus(event.device, event.code))
    return _settle(state, (Report(event.device, event.code),))


def _settle(state: Collecting, effects: tuple[Effect, ...]) -> tuple[State, tuple[Effect, ...]]:
    have, policy = len(state.counted), state.policy
    if have >= policy.goal or (state.outstanding == 0 and have >= policy.minimum):
        return _close(state, True, effects)
    if have + state.outstanding < policy.minimum:
        return _close(state, False, effects)
    return state, effects


def _close(state: Collecting, met: bool, effects: tuple[Effect, ...]) -> tuple[State, tuple[Effect, ...]]:
    late = tuple(sorted(state.invited - {*state.counted, *state.reported}))
    return Closed(state.round, met, state.accepted, state.lost, late), (*effects, Close(met))
