"""Devices and a server that draw cohorts together, without anything between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from toy_recipe import make_recipe

from edgewise.core import frame, vector
from edgewise.core.keys import derive
from edgewise.core.vector import Spec
from edgewise.crypto import sign
from edgewise.engine import beacon, beacon_device, beacon_server, device_state
from edgewise.engine.device_events import SendFrame
from edgewise.engine.loop import receive
from edgewise.engine.ports import Absent, Arrived, Trust
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan

DIM = 4
DEVICES = tuple(f"d{i:03d}" for i in range(60))
CORRUPT = DEVICES[:6]
TOP = bytes(range(32))
GRID = [
    {"kind": "clip", "l2": 8.0},
    {"kind": "clamp", "linf": 2.0},
    {"kind": "quantize", "bits": 8, "grid": "shared"},
    {"kind": "wrap"},
]
VERIFIED: dict[str, Any] = {
    "privacy": "hidden", "merge": {"kind": "secure_sum"}, "stage": GRID, "strategy": {"kind": "fedavg"},
    "round.sampling": "fixed", "round.cohort": 24, "round.overselect": 1.0, "round.minimum": 1.0,
    "trust.malicious_fraction": 0.1, "trust.cohorts": "verified",
}  # fmt: skip
IDENTITIES = {d: sign.pair(derive(TOP, "identity", d)) for d in DEVICES}
TRUST = Trust(
    lambda d: IDENTITIES[d].public if d in IDENTITIES else None, lambda d: IDENTITIES[d].secret, None, None, DEVICES
)


def plan_of(**changes: Any) -> Plan:
    """The plan of a run whose devices verify its cohorts."""
    recipe = make_recipe({**VERIFIED, **changes})
    return compile(recipe, Spec.of([("w", (DIM,), "float32")]), len(DEVICES), BUILT_IN)


class Mail:
    """A Cohort port whose devices answer at once. ``lie``: (device, its answer) -> what comes instead of it."""

    def __init__(
        self,
        plan: Plan,
        lie: Callable[[str, frame.FromDevice], Arrived | Absent | frame.FromDevice | None] = lambda _, m: m,
    ) -> None:
        self.plan, self.lie, self.at_s = plan, lie, 0.0
        self.states: dict[str, device_state.Kept] = {d: device_state.join(plan, d) for d in DEVICES}
        self.waiting: deque[Arrived | Absent] = deque()
        self.lists: list[tuple[str, ...]] = []

    def now_s(self) -> float:
        return self.at_s

    def send(self, to: str, raw: bytes) -> None:
        message = frame.from_server(raw, len(raw))
        assert isinstance(message, frame.Call | frame.Commitments)
        if (
            isinstance(message, frame.Commitments)
            and (names := tuple(c.device for c in message.listed)) not in self.lists
        ):
            self.lists.append(names)
        said = self.ask(to, message)
        answer = self.lie(to, said)
        if isinstance(answer, Arrived | Absent):
            self.waiting.append(answer)
        elif answer is not None:
            self.waiting.append(Arrived(to, frame.dump(answer), self.at_s))

    def ask(self, device: str, message: frame.Call | frame.Commitments) -> frame.FromDevice:
        """A device's answer to a message; its state goes on."""
        state, entropy = self.states[device], derive(TOP, "entropy", device)
        self.states[device], effects = beacon_device.answer(self.plan, state, message, TRUST, entropy)
        (raw,) = (effect.frame for effect in effects if isinstance(effect, SendFrame))
        return frame.from_device(raw, len(raw))

    def receive(self, timeout_s: float) -> Arrived | Absent | None:
        if self.waiting:
            return self.waiting.popleft()
        self.at_s += timeout_s
        return None


class Shelf:
    """Shelf on which a server keeps its beacon."""

    raw: bytes | None = None

    def load(self) -> bytes | None:
        return self.raw

    def save(self, raw: bytes) -> None:
        self.raw = raw


def gathering(plan: Plan, mail: Mail, shelf: Shelf, told: list[Any] | None = None) -> beacon_server.Gathering:
    """The server's part."""
    tell = ([] if told is None else told).append
    made = beacon_server.Gathering(plan, DEVICES, TRUST, beacon.anchor(TOP, plan.rounds), mail, shelf, tell)  # type: ignore[arg-type]
    made.begin()
    return made


def honest(plan: Plan) -> tuple[bytes, Mail]:
    """The beacon of honest devices and an honest server."""
    mail, shelf = Mail(plan), Shelf()
    receive(mail, gathering(plan, mail, shelf))  # type: ignore[arg-type]
    blob = beacon_server.stored(shelf)
    assert blob is not None
    return blob, mail


def cohort(plan: Plan, blob: bytes, round: int = 0, key: bytes | None = None, trust: Trust = TRUST) -> frozenset[str]:
    """The cohort that a device draws. ``key``: the server's of the round, as it says."""
    return beacon.cohort(plan, trust, draw(plan, blob, round, key), round, blob)


def draw(plan: Plan, blob: bytes, round: int = 0, key: bytes | None = None) -> frame.Draw:
    """Message of an invitation on the cohort."""
    return frame.Draw(beacon=vector.digest(blob), key=key or beacon.key(TOP, plan.rounds, round))


def forged(plan: Plan, listed: Mapping[str, bytes], reveals: Sequence[frame.Reveal]) -> bytes:
    """A beacon of these commitments and reveals. ``listed``: device -> commitment."""
    known = {reveal.device: reveal for reveal in reveals}
    names = sorted(listed)
    return frame.dump(frame.Beacon(
        run=plan.run, anchor=beacon.anchor(TOP, plan.rounds),
        listed=tuple(frame.Committed(device=d, commitment=listed[d]) for d in names),
        values=tuple(known[d].value for d in names), signatures=tuple(known[d].signature for d in names),
    ))  # fmt: skip


def revealed(plan: Plan, device: str, value: bytes, listed: Mapping[str, bytes]) -> frame.Reveal:
    """The reveal of a corrupt device, which signs whatever its server wants."""
    entries = tuple(frame.Committed(device=d, commitment=listed[d]) for d in sorted(listed))
    fixed = beacon.list_digest(plan.run, beacon.anchor(TOP, plan.rounds), entries)
    signature = sign.sign(IDENTITIES[device].secret, beacon.reveal_digest(fixed, device, value))
    return frame.Reveal(run=plan.run, round=plan.rounds, device=device, value=value, signature=signature)
