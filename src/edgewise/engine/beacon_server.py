"""Server side of the beacon of a run (``engine.beacon``): commitments first, then the reveals of one list.

    gathering = Gathering(plan, population, trust, anchor, cohort, shelf, tell)
    gathering.begin()
    receive(cohort, gathering)
    gathering.blob                      the beacon, or None before there is one

The first ``Plan.contributors`` devices that commit make a list, which is on the disk before any of them is asked to
reveal. A list ends without a beacon when one of its devices refuses, is lost, or is silent until the deadline. Its
other devices may have revealed for it and cannot be on another list. The next list takes devices that have been on
none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from edgewise.core import events, frame
from edgewise.core.errors import REGISTRY, DecodeError, RoundError
from edgewise.core.safe_repr import outline
from edgewise.core.training import DeviceId
from edgewise.engine import beacon
from edgewise.engine.ports import Absent, Arrived, Cohort, Expired, Shelf, Trust
from edgewise.plan.plan import Plan

SILENT = "E-BEACON"
PATIENCE = 3  # Gathering ends after this many deadlines in a row without an arrival.


class _Stored(msgspec.Struct, frozen=True):
    """Durable progress. ``used``: devices of earlier lists. ``asked``: the list that must reveal. ``blob``: beacon."""

    used: tuple[str, ...] = ()
    asked: tuple[tuple[str, bytes], ...] = ()
    blob: bytes | None = None

    __repr__ = outline


_stored = msgspec.msgpack.Decoder(_Stored)


def stored(shelf: Shelf) -> bytes | None:
    """Load the beacon of a run. None before there is one. Raises msgspec.DecodeError where it is damaged."""
    raw = shelf.load()
    return None if raw is None else _stored.decode(raw).blob or None  # older files have no bytes for none


class Gathering:
    """Gathering of commitments and reveals, a ``loop.Listener`` (see the module).

    Args:
        anchor: the server's commitment to its keys of all rounds. tell: event sink.
    """

    def __init__(
        self,
        plan: Plan,
        population: Sequence[DeviceId],
        trust: Trust,
        anchor: bytes,
        cohort: Cohort,
        shelf: Shelf,
        tell: Callable[[events.AnyEvent], None],
    ) -> None:
        self._plan, self._population, self._trust, self._anchor = plan, population, trust, anchor
        self._cohort, self._shelf, self._tell = cohort, shelf, tell
        self._place = plan.run, plan.rounds
        self.blob: bytes | None = None
        self.until_s: float | None = None
        self._used: set[DeviceId] = set()  # devices of lists that ended without a beacon
        self._commitments: dict[DeviceId, bytes] = {}  # of devices on no list, in the order of arrival
        self._asked: tuple[frame.Committed, ...] = ()
        self._reveals: dict[DeviceId, frame.Reveal] = {}
        self._idle = 0  # number of deadlines in a row without an arrival

    def begin(self) -> None:
        """Ask for the missing commitments and reveals, after a stop from where it was."""
        raw = self._shelf.load()
        if raw is not None:
            progress = _stored.decode(raw)
            self._used = set(progress.used)
            self._asked = tuple(frame.Committed(device=d, commitment=c) for d, c in progress.asked)
        self.until_s = self._cohort.now_s() + self._plan.sampling.deadline_s
        call = frame.dump(frame.Call(run=self._plan.run, round=self._plan.rounds))
        listed = {one.device for one in self._asked}
        for device in self._population:
            if device not in self._used and device not in listed:
                self._cohort.send(device, call)
        self._ask_for_reveals()

    def take(self, record: Arrived | Absent | Expired) -> None:
        """Take a record, as a ``Listener``. Raises RoundError(E-BEACON) where too few devices remain for a list."""
        if isinstance(record, Expired):
            self._deadline_passed()
        elif isinstance(record, Absent):
            self._lose_device(record.device, record.code, "")
        else:
            self._idle = 0
            self._message_arrived(record)

    def _message_arrived(self, record: Arrived) -> None:
        """Take a device's message, or drop the device that sent no valid one."""
        try:
            message = frame.from_device(record.frame, self._plan.frame_limit_bytes)
        except DecodeError as e:
            self._lose_device(record.device, e.code, frame.legible(e.what))
            return
        if (message.device, message.run, message.round) != (record.device, *self._place):
            self._lose_device(record.device, "E-FRAME", "the frame names another device, run or round than its sender.")
        elif isinstance(message, frame.Commitment):
            self._take_commitment(message)
        elif isinstance(message, frame.Reveal):
            self._take_reveal(message)
        else:
            code, reason = "E-FRAME", "the message is no answer about the run's beacon."
            if isinstance(message, frame.Refusal):
                code, reason = message.code if message.code in REGISTRY else code, frame.legible(message.reason)
            self._lose_device(record.device, code, reason)

    def _take_commitment(self, message: frame.Commitment) -> None:
        """Take a commitment of a device that is not listed yet."""
        device = message.device
        if device not in self._used and device not in {one.device for one in self._asked}:
            self._commitments.setdefault(device, message.commitment)
            self._fix_list()

    def _fix_list(self) -> None:
        """Fix a list as soon as enough devices have committed and no other list is open."""
        if self._asked or len(self._commitments) < self._plan.contributors:
            return
        chosen = sorted(list(self._commitments)[: self._plan.contributors])
        self._asked = tuple(frame.Committed(device=d, commitment=self._commitments.pop(d)) for d in chosen)
        self._save_gathering()  # Devices reveal for one list, so the server must remember it after a stop.
        self._ask_for_reveals()

    def _ask_for_reveals(self) -> None:
        """Send the list of commitments to its devices."""
        if self._asked:
            self.until_s = self._cohort.now_s() + self._plan.sampling.deadline_s
        run, number = self._place
        message = frame.dump(frame.Commitments(run=run, round=number, anchor=self._anchor, listed=self._asked))
        for one in self._asked:
            self._cohort.send(one.device, message)

    def _take_reveal(self, message: frame.Reveal) -> None:
        """Take the value behind a listed commitment."""
        device = message.device
        listed = next((one for one in self._asked if one.device == device), None)
        if listed is None:
            return
        fixed = beacon.list_digest(self._plan.run, self._anchor, self._asked)
        if not beacon.valid_reveal(self._trust, fixed, listed, self._plan.run, message.value, message.signature):
            self._lose_device(device, SILENT, "the device did not reveal the value that it had committed to.")
            return
        self._reveals[device] = message
        if len(self._reveals) == len(self._asked):
            reveals = [self._reveals[one.device] for one in self._asked]
            self.blob = frame.dump(frame.Beacon(
                run=self._plan.run, anchor=self._anchor, listed=self._asked,
                values=tuple(r.value for r in reveals), signatures=tuple(r.signature for r in reveals),
            ))  # fmt: skip
            self.until_s = None
            self._save_gathering()

    def _lose_device(self, device: DeviceId, code: str, reason: str) -> None:
        """Drop a device. The open list is given up if it names the device."""
        self._tell(events.Lost(round=0, device=device, code=code, reason=reason))
        if any(one.device == device for one in self._asked):
            self._give_up()
        else:
            self._commitments.pop(device, None)
            self._used.add(device)
            self._check_enough_devices()

    def _deadline_passed(self) -> None:
        """Drop the devices that did not reveal in time."""
        self._idle += 1
        if self._asked:
            for one in self._asked:
                if one.device not in self._reveals:
                    self._tell(
                        events.Lost(round=0, device=one.device, code=SILENT, reason="the device did not reveal.")
                    )
            self._give_up()
        elif self._idle >= PATIENCE:
            raise self._too_few_devices()
        if self.until_s is not None:
            self.until_s = self._cohort.now_s() + self._plan.sampling.deadline_s

    def _give_up(self) -> None:
        """End the open list. A device that revealed for it can be on no other one."""
        self._used |= {one.device for one in self._asked}
        self._asked, self._reveals = (), {}
        self._save_gathering()
        self._check_enough_devices()
        self._fix_list()

    def _check_enough_devices(self) -> None:
        """Raise RoundError if too few devices are left."""
        if len(self._population) - len(self._used) < self._plan.contributors:
            raise self._too_few_devices()

    def _too_few_devices(self) -> RoundError:
        """Make the error for too few devices."""
        what = f"fewer than {self._plan.contributors} devices are left that could draw cohorts together"
        fix = (
            'see the lost devices, revoke those that do not reveal, and begin another run; or trust.cohorts = "server".'
        )
        return RoundError("E-BEACON", f"{what}.", fix)

    def _save_gathering(self) -> None:
        """Save the gathering, so that a restart goes on with it."""
        asked = tuple((one.device, one.commitment) for one in self._asked)
        self._shelf.save(msgspec.msgpack.encode(_Stored(tuple(sorted(self._used)), asked, self.blob)))
