"""Round in progress: drives the machine of ``engine.round``, writes its log and performs its effects.

    open_round = OpenRound(facts, cohort, log, aggregation, charge, tell, now_s)
    open_round.begin(records)         fold the log, then invite, or resume where the log ends
    open_round.take(record)           for each arrival, and when a deadline passes (``until_s``)
    open_round.closed                 at the end

A record is written to the log before it takes effect. A record that changes nothing is not written. So after a stop the
log folds to the same state. Devices that were asked and have not answered are asked again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from edgewise.core import events, frame
from edgewise.core.errors import REGISTRY, DecodeError, StoreError
from edgewise.core.training import DeviceId
from edgewise.engine import outstanding
from edgewise.engine import round as machine
from edgewise.engine.aggregation import Aggregation, Sums
from edgewise.engine.compared import compared
from edgewise.engine.ports import Absent, Arrived, Began, Cohort, Expired, Journal, Pinned, Record, Resumed, Sent
from edgewise.engine.round_facts import RoundFacts
from edgewise.engine.round_states import (
    Answered,
    Charge,
    Close,
    Closed,
    Counted,
    Deadline,
    Dismiss,
    Effect,
    Event,
    Exchanging,
    Fold,
    Gone,
    Letter,
    Open,
    Opened,
    Pin,
    ReportLoss,
    Send,
    State,
    Usable,
    Useless,
)

REASON_LATER = "left secure aggregation after its keys were known, or its group came to no sum"

Tell = Callable[[events.AnyEvent], None]
Input = Arrived | Absent | Expired


def first_record(record: Record) -> Began:
    """Return the record of how the round began. Raises StoreError for another."""
    if not isinstance(record, Began):
        what = "the log of a round lacks its first record, how the round began."
        raise StoreError("E-CHECKPOINT", what, "put a whole copy of the folder in its place.")
    return record


@dataclass(frozen=True, slots=True)
class FirstAnswer:
    """Size and timings of a device's first answer. Its frame is not kept."""

    size_bytes: int
    train_s: float
    encode_s: float


@dataclass
class Books:
    """Bytes, seconds and events of a round. ``first``: each device's first answer."""

    bytes_down: Counter[DeviceId]
    first: dict[DeviceId, FirstAnswer] = field(default_factory=dict)
    later: Counter[DeviceId] = field(default_factory=Counter)  # device -> bytes of its messages after the first
    events: list[events.AnyEvent] = field(default_factory=list)
    bytes_up: int = 0
    train_s: float = 0.0
    encode_s: float = 0.0
    aggregate_s: float = 0.0


@dataclass
class OpenRound:
    """Round in progress, a ``loop.Listener`` (see the module).

    Attributes:
        charge: writes the round's charge to the privacy ledger, once however often it is called.
        tell: event sink. now_s: wall clock for durations. state: of the machine, once the round has begun.
        last_s: time of the last record that changed the state, on the cohort's clock.
    """

    facts: RoundFacts
    cohort: Cohort
    log: Journal
    aggregation: Aggregation
    charge: Callable[[], None]
    tell: Tell
    now_s: Callable[[], float]

    def __post_init__(self) -> None:
        self.books = Books(Counter(self.facts.letters.sizes))
        self.state: State
        self.last_s = self.facts.began.at_s
        self._since_s = self.facts.began.at_s  # time at which this server began to listen
        self._outbox: list[Sent] | None = []  # A list while the log is folded, then None: frames are sent at once.
        self._unpinned: deque[Pinned] = deque()
        self._postponed: list[tuple[Charge | Open, Input]] = []  # effects that wait until the log is folded
        self._unsynced = False

    @property
    def until_s(self) -> float | None:
        """Time at which the next ``Expired`` is due. None once the round is closed."""
        return machine.until_s(self.state)

    @property
    def closed(self) -> Closed:
        """End state of the round. Raises ValueError before it is closed."""
        if not isinstance(self.state, Closed):
            raise ValueError("the round is not closed")
        return self.state

    def sums(self) -> Sums:
        """Hand out the sums of the closed round, once. Nothing of them stays here. Empty where the round has no sum."""
        closed = self.closed
        sums = self.aggregation.sums(closed) if closed.met else ()
        for rung, total in sums:
            for event in compared(self.facts.at(rung), self.facts.turn, total):
                self._tell_event(event)
        self.state = replace(closed, released=())
        del self.aggregation
        return sums

    def begin(self, records: Iterable[Record] | None) -> None:
        """Start the round, or resume it from the ``records`` of its log. None: nothing was logged.

        Raises StoreError(E-CHECKPOINT) where the log contradicts itself.
        """
        facts, number = self.facts, self.facts.round
        n_asked = len(facts.letters.frames)
        goal, minimum = facts.policy.goal, facts.policy.minimum
        self._tell_event(events.RoundStarted(round=number, invited=n_asked, goal=goal, minimum=minimum))
        self.state, effects = machine.start(
            number, frozenset(facts.began.invited), facts.policy, facts.protocol, facts.letters.frames,
            None if facts.buffer is None else facts.versions, [one.device for one in facts.outdated],
        )  # fmt: skip
        at_s = facts.began.at_s
        self._perform_effects(effects, Expired(at_s))
        for record in records or ():
            at_s = self._fold_record(record, at_s)
        sent, self._outbox = [*outstanding.sent(facts.carried), *(self._outbox or [])], None
        for pinned in self._unpinned:
            self._append_record(pinned)
        if records is not None and facts.session is not None:
            self.log.sync()
        for effect, record in self._postponed:  # The survivors are on the disk now, as when the log was written.
            self._perform_effects((effect,), record)
        if records is None:
            for one in sent[len(facts.carried) :]:  # The cohort has the others.
                self.cohort.send(one.device, one.frame)
        elif not isinstance(self.state, Closed):
            self._go_on(sent, at_s)

    def _fold_record(self, record: Record, at_s: float) -> float:
        """Fold one record of the log. Returns the time of the last record that had a time."""
        match record:
            case Resumed(by_s):
                self.state = machine.postponed(self.state, by_s)
                return at_s + by_s
            case Pinned():
                if not self._unpinned or self._unpinned.popleft() != record:
                    raise self._torn_log_error("names other survivors than its records lead to")
            case Arrived() | Absent() | Expired():
                if self._unpinned:
                    raise self._torn_log_error("lacks the survivors of a session that went on")
                self._step_machine(self._event_of_record(record), record)
                return record.at_s
        return at_s

    def _torn_log_error(self, how: str) -> StoreError:
        """Make the error for a log that does not fit the round."""
        what = f"the log of round {self.facts.round} {how}."
        return StoreError("E-CHECKPOINT", what, "put a whole copy of the folder in its place.")

    def _go_on(self, sent: list[Sent], at_s: float) -> None:
        last = {one.device: i for i, one in enumerate(sent)}
        awaited = {i for device, i in last.items() if machine.waits_for(self.state, device)}
        self.cohort.resume([replace(one, awaited=i in awaited) for i, one in enumerate(sent)], at_s)
        self._since_s = self.cohort.now_s()
        if (by_s := self._since_s - at_s) != 0.0:
            self._append_record(Resumed(by_s))
            self.state = machine.postponed(self.state, by_s)

    def take(self, record: Input) -> None:
        """Take an arrival, or a deadline that passed.

        A frame that arrived while no server listened counts as arriving now. So a step that it ends is followed by one
        with its full time.
        """
        if not isinstance(record, Expired):
            record = replace(record, at_s=max(record.at_s, self._since_s))
        began, event = self.now_s(), self._event_of_record(record)
        if machine.wanted(self.state, event):
            self._append_record(record)
            self._step_machine(event, record)
        self.books.aggregate_s += self.now_s() - began

    def _event_of_record(self, record: Input) -> Event:
        """Translate a record to an event of the round. An unusable frame gives ``Useless``, never an exception."""
        if isinstance(record, Expired):
            return Deadline(record.at_s)
        if isinstance(record, Absent):
            return Gone(record.device, self.facts.version(record.device), record.code, record.at_s)
        try:
            message = frame.from_device(record.frame, self.facts.frame_limit_bytes)
            if isinstance(message, frame.Measurement | frame.Commitment | frame.Reveal):
                raise DecodeError("E-FRAME", "the message is no answer to an invitation.")
            if message.device != record.device or message.run != self.facts.run:
                raise DecodeError("E-FRAME", "the frame names another device or run than its sender.")
        except DecodeError as e:
            version = self.facts.version(record.device)
            return Useless(record.device, version, e.code, frame.legible(e.what), record.at_s)
        if isinstance(message, frame.Refusal):
            code = message.code if message.code in REGISTRY else "E-FRAME"
            return Useless(record.device, message.round, code, frame.legible(message.reason), record.at_s)
        return Answered(message.device, message.round, message, record.at_s)

    def _step_machine(self, event: Event, record: Input) -> None:
        """Step the machine of the round, and count the bytes of later messages."""
        before, self.last_s = self.state, record.at_s
        self.state, effects = machine.step(before, event)
        if isinstance(before, Exchanging) and self.state is not before and isinstance(record, Arrived):
            self.books.later[record.device] += len(record.frame)
            self.books.encode_s += record.encode_s
        self._perform_effects(effects, record)

    def _perform_effects(self, effects: Iterable[Effect], record: Input) -> None:
        """Perform the effects of a step, or postpone them while a log is replayed."""
        number = self.facts.round
        for effect in effects:
            match effect:
                case Charge() | Open() if self._outbox is not None:
                    self._postponed.append((effect, record))
                case Send(device, raw):
                    self._send_frame(device, raw, record.at_s)
                case Letter(device, body, rung):
                    self._sync_log()
                    step = frame.Step(run=self.facts.run, round=number, device=device, body=body, rung=rung)
                    self._send_frame(device, frame.dump(step), record.at_s)
                case Charge():
                    self._sync_log()
                    self.charge()
                case Pin(group, survivors):
                    self._pin_record(Pinned(group, survivors))
                case Fold(device, message):
                    self._step_machine(self._folded_contribution(device, message), record)
                case Open(devices):
                    self._step_machine(self._opened_sum(devices), record)
                case Dismiss(keep) if self._outbox is None:
                    self.cohort.close_round(keep)
                case Counted(device, rung) if isinstance(record, Arrived):
                    self.books.first[device] = FirstAnswer(len(record.frame), record.train_s, record.encode_s)
                    if self.facts.session is None:
                        self._report_accepted(device, rung)
                case ReportLoss(device, code, reason):
                    self._tell_event(events.Lost(round=number, device=device, code=code, reason=reason))
                case Close() if self.facts.session is not None:
                    self._tell_hidden(self.closed)

    def _send_frame(self, device: DeviceId, raw: bytes, at_s: float) -> None:
        """Send a frame, or keep it for the end of a replay."""
        if device in self.books.first:  # The books count the invitation from the start.
            self.books.bytes_down[device] += len(raw)
        if self._outbox is None:
            self.cohort.send(device, raw)
        else:
            self._outbox.append(Sent(device, raw, at_s, awaited=False))

    def _append_record(self, record: Record) -> None:
        """Append a record to the log."""
        self.log.append(record)
        self._unsynced = True

    def _sync_log(self) -> None:
        """Sync the log before a frame leaves that depends on its records. Devices must not be ahead of the log, even
        after a power cut."""
        if self._outbox is None and self._unsynced and self.facts.session is not None:
            self.log.sync()
            self._unsynced = False

    def _pin_record(self, pinned: Pinned) -> None:
        """Write down what a restart must not decide anew."""
        if self._outbox is not None:
            self._unpinned.append(pinned)  # The next record of the log must equal it, or the log ends here.
        else:
            self._append_record(pinned)

    def _folded_contribution(self, device: DeviceId, message: frame.Contribution) -> Event:
        """Fold a contribution into the sum. A wrong one gives ``Useless``."""
        try:
            return Usable(device, message.round, self.aggregation.fold(device, message))
        except DecodeError as e:
            return Useless(device, message.round, e.code, frame.legible(e.what))

    def _opened_sum(self, devices: tuple[DeviceId, ...]) -> Event:
        """Open the sum of two servers. Returns the code of a failure."""
        try:
            self.aggregation.open(devices)
        except DecodeError as e:
            return Opened(e.code)
        return Opened()

    def _tell_hidden(self, closed: Closed) -> None:
        """Report the devices in a secure sum, which are known at its end only."""
        number = closed.round
        for device in closed.accepted if closed.met else ():
            self._report_accepted(device, closed.rungs.get(device))
        for device, code in closed.lost:
            if device in self.books.first:  # The others were reported when they were lost.
                self.books.bytes_up += self.books.later[device]
                self._tell_event(events.Lost(round=number, device=device, code=code, reason=REASON_LATER))
        for device, code in closed.flagged:
            self._tell_event(events.Flagged(round=number, device=device, code=code))

    def _report_accepted(self, device: DeviceId, rung: int | None) -> None:
        """Report that a contribution is in the sum."""
        answer = self.books.first[device]
        size = answer.size_bytes + self.books.later[device]
        self.books.bytes_up += size
        self.books.train_s += answer.train_s
        self.books.encode_s += answer.encode_s
        self._tell_event(
            events.Accepted(
                round=self.facts.round,
                device=device,
                bytes_up=size,
                train_s=answer.train_s,
                encode_s=answer.encode_s,
                rung=rung,
                bytes_down=self._downloaded_bytes(device),
                staleness=self.facts.round - self.facts.version(device),
            ),
        )

    def _downloaded_bytes(self, device: DeviceId) -> int:
        """Count the bytes that a device had to download, in the round of its invitation."""
        return self.books.bytes_down[device] or sum(one.size for one in self.facts.carried if one.device == device)

    def _tell_event(self, event: events.AnyEvent) -> None:
        """Record an event of the round, and report it."""
        self.books.events.append(event)
        self.tell(event)
