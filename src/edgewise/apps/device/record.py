"""The record of what this device sent, ``left.jsonl`` in its home folder: JSON lines that are only appended.

    record = Record(home)
    record.frame(server, plan, raw, epsilon)       # before a frame is sent; a repeated frame adds no line
    record.refused(server, run, error)             # a refused run, to which nothing was sent
    device_record_lines(home); device_record_summary(device_record_lines(home), now_s)

A line is on the disk before its frame is sent. So the record may list a frame that a crash held back, and it lacks no
frame that was sent. What leaves once more, because a server or the network lost it, is counted: a line "sent again" has
the bytes of several retries (``AGAIN_BYTES``). A line without its end was being written when the process died.
Its frame was not sent, so the line is cut off.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import force_setattr

from edgewise.core import frame
from edgewise.core.errors import EdgewiseError, StoreError, TransportError
from edgewise.drivers.storage import files

if TYPE_CHECKING:  # `edgewise device status` only reads, and starts faster without a plan's modules.
    from edgewise.plan.plan import Plan

FILE = "left.jsonl"
REFUSAL, RUN_REFUSED, AGAIN = "refusal", "refused run", "sent again"
CROSSED = "activations and gradients of a split model"
CROSSED_BYTES = 2**20
MB = 1e6
AGAIN_BYTES = 2**16  # bytes sent again that a crash may leave out of the record


class RecordLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the record.

    Attributes:
        at_s: seconds since 1970.
        server: fingerprint of the server.
        run: id of the run.
        round: None for a refused run.
        kind: in plain words.
        size: bytes of the frame; 0 if none was sent.
        digest: SHA-256 of the frame. None where the line is of no frame.
        epsilon: spent by the device in all its runs, with this frame. None if no cap counts it.
        reason: of a refusal, with its code. None for other lines.
        promise: of the run, as this device's own plan states it (``promise``). None without a plan.

    Lines of earlier versions say -1 and empty text where these are None.
    """

    at_s: float
    server: str
    run: str
    round: int | None
    kind: str
    size: int
    digest: str | None = None
    epsilon: float | None = None
    reason: str | None = None
    promise: str | None = None

    def __post_init__(self) -> None:
        if self.round == -1:
            force_setattr(self, "round", None)
        force_setattr(self, "reason", self.reason or None)
        force_setattr(self, "promise", self.promise or None)


_FROM_SERVER = (frame.Delta, frame.Invite, frame.Probe, frame.Call, frame.Commitments, frame.Beacon)


class Record:
    """The record of a home folder, for the one process that sends. Raises StoreError: E-DISK, E-CHECKPOINT.

    ``round_bytes``: the most that may leave in one round of a run, in all its attempts.
    """

    def __init__(self, home: Path, now_s: Callable[[], float] = time.time, round_bytes: float = inf) -> None:
        self._path, self._now_s, self._round_bytes = home / FILE, now_s, round_bytes
        whole, self._size = _read(self._path)
        self._known = {(row.run, row.digest) for row in whole if row.digest is not None}
        self._refused = {(row.run, row.reason) for row in whole if row.kind == RUN_REFUSED}
        self._today, self._again = _Today([(row.at_s, row.size) for row in whole]), _Today(())
        self._rounds: dict[tuple[str, int], int] = {}
        for row in whole:
            if row.round is not None:
                self._count(row.run, row.round, row.size)
        self._before = dict(self._rounds)  # of earlier processes
        self._began = set[tuple[str, str]]()  # frames that this process has begun to send
        self._sending: tuple[str, str, int] | None = None  # server, run and round of the frame that is being sent
        self._crossing: dict[tuple[str, str, int], int] = {}  # recorded bytes of a session that have not left yet
        self._fresh_bytes, self._unwritten = 0, 0  # bytes of that frame that the record has already; and sent again

    def frame(self, server: str, plan: Plan | None, raw: bytes, epsilon: float | None = None) -> None:
        """Record a frame that is about to be sent. A repeated frame is recorded once.

        Args:
            plan: of its run. None for the refusal of a run.
        Raises:
            TransportError: E-OWNER where the frame would pass the limit of its round. A refusal may always leave.
        """
        message, digest = frame.load(raw, len(raw)), hashlib.sha256(raw).hexdigest()
        if isinstance(message, _FROM_SERVER):
            return
        name, known = (message.run, digest), (message.run, digest) in self._known
        why = None if known else self._too_much(message.run, message.round, len(raw))
        if why is not None and not isinstance(message, frame.Refusal):
            raise _not_allowed(why)
        self._sending = (server, message.run, message.round)
        self._fresh_bytes = 0 if name in self._began else len(raw)
        if known:
            self._began.add(name)
            return
        reason = f"{message.code}: {message.reason}" if isinstance(message, frame.Refusal) else None
        reason = _step(message.body)[1] if isinstance(message, frame.Step) else reason
        row = RecordLine(
            self._now_s(), server, message.run, message.round, kind(message, plan), len(raw), digest, epsilon, reason,
            None if plan is None else promise(plan),
        )  # fmt: skip
        self._append(row)
        self._known.add(name)
        self._began.add(name)
        self._today.add(row.at_s, row.size)
        self._count(message.run, message.round, len(raw))

    def refused(self, server: str, run: str, error: EdgewiseError) -> None:
        """Record that this device takes no part in a run, once for each reason."""
        reason = f"{error.code}: {error.what}"
        if (run, reason) not in self._refused:
            self._append(RecordLine(self._now_s(), server, run, None, RUN_REFUSED, 0, reason=reason))
            self._refused.add((run, reason))

    def sends(self, size: int) -> None:
        """Count bytes of the latest frame that are about to leave. What leaves once more counts for day and round.

        A frame that an earlier process of this device has begun to send counts anew only where it leaves twice.

        Raises:
            TransportError: E-OWNER where bytes that leave once more would pass the limit of the round.
        """
        repeated = max(0, size - self._fresh_bytes)
        assert self._sending is not None  # A frame is recorded before its bytes leave.
        server, run, round = self._sending
        if repeated and (why := self._too_much(run, round, repeated)) is not None:
            raise _not_allowed(why)
        self._fresh_bytes = max(0, self._fresh_bytes - size)
        if not repeated:
            return
        self._today.add(self._now_s(), repeated)
        self._again.add(self._now_s(), repeated)
        self._count(run, round, repeated)
        self._unwritten += repeated
        if self._unwritten >= AGAIN_BYTES:
            self._append(RecordLine(self._now_s(), server, run, round, AGAIN, self._unwritten))
            self._unwritten = 0

    def crosses(self, server: str, run: str, round: int, size: int) -> None:
        """Record bytes of a session of split learning that are about to leave.

        A line stands for the next ``CROSSED_BYTES``, so the record may list more than has left, and never less.

        Raises:
            TransportError: E-OWNER where they would pass the limit of the round.
        """
        room = self._crossing.pop((server, run, round), 0)
        if size > room:
            reserved = max(CROSSED_BYTES, size - room)
            if self._too_much(run, round, reserved) is not None:
                reserved = size - room
            if (why := self._too_much(run, round, reserved)) is not None:
                raise _not_allowed(why)
            row = RecordLine(self._now_s(), server, run, round, CROSSED, reserved)
            self._append(row)
            self._today.add(row.at_s, row.size)
            self._count(run, round, reserved)
            room += reserved
        self._crossing = {(server, run, round): room - size}

    def too_much_again(self, run: str, round: int, next_bytes: float) -> str | None:
        """Return the words for a round that this process has sent something in, and that may not send as much again.

        None for other rounds. A process that begins may go on with what an earlier one has sent in part.
        """
        here = self._rounds.get((run, round), 0) > self._before.get((run, round), 0)
        return self._too_much(run, round, next_bytes) if here else None

    def _too_much(self, run: str, round: int, next_bytes: float) -> str | None:
        sent = self._rounds.get((run, round), 0)
        if sent + next_bytes <= self._round_bytes:
            return None
        return (
            f"{sent / MB:.3g} of {self._round_bytes / MB:g} MB have left in this round, and {next_bytes / MB:.3g} more"
            " would leave"
        )

    def again(self, now_s: float) -> int:
        """Return the bytes that this process has sent again since midnight, by local time."""
        return self._again.bytes(now_s)

    def today(self, now_s: float) -> int:
        """Return the bytes sent since midnight, by local time, also those that this process sent again."""
        return self._today.bytes(now_s)

    def _count(self, run: str, round: int, size: int) -> None:
        self._rounds[run, round] = self._rounds.get((run, round), 0) + size

    def _append(self, row: RecordLine) -> None:
        fresh, line = not self._path.exists(), msgspec.json.encode(row) + b"\n"
        try:
            with open(self._path, "ab", opener=files.for_owner) as f:
                f.truncate(self._size)  # A crash or a full disk cut this line short.
                f.write(line)
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise StoreError("E-DISK", f"cannot write {self._path}: {e.strerror}.", "free some space.") from None
        self._size += len(line)
        if fresh:
            files.sync_folder(self._path.parent)


def _not_allowed(why: str) -> TransportError:
    return TransportError("E-OWNER", f"{why}.", "the owner may raise limits.upload_mb in the policy.")


class _Today:
    """The bytes of one local day."""

    def __init__(self, sizes: Iterable[tuple[float, int]]) -> None:
        self._day, self._bytes = (0, 0, 0), 0
        for at_s, size in sizes:
            self.add(at_s, size)

    def add(self, at_s: float, size: int) -> None:
        self._bytes = self.bytes(at_s) + size
        self._day = _day(at_s)

    def bytes(self, now_s: float) -> int:
        return self._bytes if _day(now_s) == self._day else 0


def kind(message: frame.Message, plan: Plan | None) -> str:
    """Describe a frame of this device in plain words."""
    match message:
        case frame.Contribution() if plan is not None:
            if plan.hides is not None:
                return "update in two sealed shares"
            return "noised update" if plan.promise.noised_before_leaving else "update, readable by the server"
        case frame.Step(body=body):
            return _step(body)[0]
        case frame.Commitment() | frame.Reveal():
            return "random number for drawing cohorts"
        case frame.Refusal():
            return REFUSAL
        case frame.Measurement():
            return "loss on held-out text"
    return "message"


def promise(plan: Plan) -> str:
    """State a run's privacy promise in plain words: an epsilon of all its rounds, or none."""
    if plan.spend is None:
        return "no epsilon"
    card = plan.spend.card
    epsilon, whom = card.against_server, "the server"
    if epsilon is None:
        epsilon, whom = card.of_release or inf, "readers of the models; the server sees more"
    about = "one record (block of text)" if plan.promise.unit == "example" else "all text of this device"
    return f"epsilon {epsilon:.3g} at delta {card.delta:g} for {about} in the whole run, against {whom}"


def _step(body: bytes) -> tuple[str, str | None]:
    """Describe a message of a hidden sum, and why the device left the sum. None if it did not."""
    from edgewise.secagg import messages

    match messages.load_secagg_message(body):
        case messages.AdvertiseMessage():
            return "public keys of a hidden sum", None
        case messages.SharesMessage():
            return "sealed shares of its keys", None
        case messages.MaskedMessage():
            return "masked update", None
        case messages.ConsistentMessage():
            return "signature on who is in the sum", None
        case messages.RevealedMessage():
            return "shares of others' keys that open the sum", None
        case messages.Abort(code=code):
            return REFUSAL, f"{code}: left the hidden sum"
    return "message of a hidden sum", None


def device_record_lines(home: Path) -> list[RecordLine]:
    """Read the lines so far, also while an agent works. Raises StoreError: E-CHECKPOINT for a damaged file, E-DISK."""
    return _read(home / FILE)[0]


def device_record_summary(lines: Iterable[RecordLine], now_s: float) -> dict[str, Any]:
    """Count what was sent: today (by local time), in all, by run. Also count refusals, with the time of the latest.

    ``epsilon`` is that of the newest line that has one. None if no cap counts it.
    """
    totals = {"today": _Count(), "all": _Count()}
    runs: dict[str, _Count] = {}
    promises: dict[str, str | None] = {}
    refusals: dict[tuple[str, str], dict[str, Any]] = {}
    epsilon: float | None = None
    for row in lines:
        epsilon = row.epsilon if row.epsilon is not None else epsilon
        if row.reason is not None:
            refusal = refusals.setdefault((row.run, row.reason), {"run": row.run, "reason": row.reason, "times": 0})
            refusal["times"], refusal["last_s"] = refusal["times"] + 1, row.at_s
        if row.kind == RUN_REFUSED:
            continue
        for count in (totals["all"], runs.setdefault(row.run, _Count())):
            count.add(row)
        promises[row.run] = row.promise or promises.get(row.run)
        if _day(row.at_s) == _day(now_s):
            totals["today"].add(row)
    return {
        **{name: count.plain() for name, count in totals.items()},
        "runs": [{"run": run, "promise": promises[run], **count.plain()} for run, count in runs.items()],
        "refusals": list(refusals.values()),
        "epsilon": epsilon,
    }


class _Count:
    def __init__(self) -> None:
        self.frames, self.size, self.rounds, self.last_s = 0, 0, set[tuple[str, int]](), 0.0
        self.kinds: dict[str, int] = {}

    def add(self, row: RecordLine) -> None:
        self.size, self.last_s = self.size + row.size, row.at_s
        if row.kind == AGAIN:
            return
        self.frames += 1
        self.kinds[row.kind] = self.kinds.get(row.kind, 0) + 1
        if row.kind != REFUSAL and row.round is not None:
            self.rounds.add((row.run, row.round))

    def plain(self) -> dict[str, Any]:
        return {
            "frames": self.frames, "bytes": self.size, "rounds": len(self.rounds), "kinds": self.kinds,
            "last_s": self.last_s or None,
        }  # fmt: skip


def _read(path: Path) -> tuple[list[RecordLine], int]:
    """Read the whole lines. Returns them and their number of bytes."""
    try:
        raw = path.read_bytes() if path.exists() else b""
    except OSError as e:
        raise StoreError("E-DISK", f"cannot read {path}: {e.strerror}.", "check the disk.") from None
    whole, end, _ = raw.rpartition(b"\n")
    found: list[RecordLine] = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            found.append(msgspec.json.decode(line, type=RecordLine))
        except msgspec.DecodeError as e:
            what = f"line {number} of {path} cannot be read: {e}."
            fix = "put the newest copy of the file in its place, or move it away: a new one begins then."
            raise StoreError("E-CHECKPOINT", what, fix) from None
    return found, len(whole) + len(end)


def _day(at_s: float) -> tuple[int, int, int]:
    local = time.localtime(at_s)
    return local.tm_year, local.tm_mon, local.tm_mday
