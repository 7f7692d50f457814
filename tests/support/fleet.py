"""Devices that live on when their server dies, and a server that dies at its Nth operation.

fleet = Fleet(plan)
play(fleet, folder, Fuse(17))      the server is dropped at its 17th operation: Killed
play(fleet, folder)                another one opens the folder and goes on
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from toy_recipe import make_recipe

from edgewise.core import frame, vector
from edgewise.core.keys import Key, Secrets, derive, root
from edgewise.core.training import Update
from edgewise.core.vector import Spec
from edgewise.crypto.agree import AgreementPair
from edgewise.drivers.simulation.keys import simulated_servers, simulated_trust
from edgewise.drivers.simulation.local_helper import LocalHelper
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine import device as machine
from edgewise.engine import device_events
from edgewise.engine import device_state as states
from edgewise.engine.checkpoint import Checkpoint
from edgewise.engine.coordinator import Coordinator
from edgewise.engine.loop import receive
from edgewise.engine.open_round import OpenRound
from edgewise.engine.ports import Absent, Arrived, Journal, Sent
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import Plan
from edgewise.plan.compile import compile as compile_plan

PRIVATE: dict[str, Any] = {
    "privacy": "distributed_dp", "metrics": "none", "stage": [], "round.minimum": 0.6, "round.rounds": 2,
    "dp.epsilon": 20.0, "dp.delta": 1e-5, "dp.clip_l2": 4.0, "trust.malicious_fraction": 0.0,
}  # fmt: skip
KEY = root(3)  # that draws cohorts
DOWNTIME_S = 1e6  # far beyond all deadlines


def plan_of(kind: str, settings: Mapping[str, Any] = PRIVATE) -> Plan:
    """Six devices and a sum of this kind; by default they add noise of their own."""
    recipe = make_recipe({**settings, "merge": {"kind": kind}})
    return compile_plan(recipe, Spec.of([("a", (5,), "float32")]), 6, BUILT_IN)


class Killed(BaseException):
    """The server died."""


class Fuse:
    """Kills the server at its operation number ``at``, or ``before`` one of this name when it is ``wanted``."""

    def __init__(self, at: int = 0, before: str = "", wanted: Callable[[], bool] = lambda: True) -> None:
        self.at, self.operations, self.synced = at, list[str](), 0
        self._before, self._wanted = f"before {before}", wanted

    def burn(self, operation: str) -> None:
        self.operations.append(operation)
        if len(self.operations) == self.at or (operation == self._before and self._wanted()):
            raise Killed


class Fleet:
    """Devices behind a network that delivers at least once: what a server has in hand when it dies comes again.

    ``silent``: (device, message) -> whether the device says nothing to it, ever.
    """

    def __init__(self, plan: Plan, silent: Callable[[str, str], bool] = lambda device, message: False) -> None:
        self.plan, self.trust, self._silent = plan, simulated_trust(root(7)), silent
        self.leader, helper = simulated_servers(root(7))
        self.helper = LocalHelper(plan, helper.secret, self.trust)
        self.devices = [f"d{i}" for i in range(plan.sampling.population)]
        self.states: dict[str, states.State] = {d: states.join(plan, d) for d in self.devices}
        self.trained: Counter[str] = Counter()
        self.answers: dict[tuple[str, str], set[bytes]] = {}  # device, message -> what it sent
        self.letters: list[tuple[str, frame.Message]] = []  # that servers sent
        self.mail: deque[Arrived | Absent] = deque()
        self.holds: Callable[[str, str], bool] = lambda device, answer: False  # answers that the network holds back
        self._held = list[Arrived]()
        self.keeps = False  # the network has all mail of a round until it is closed, and gives it to another server
        self._delivered = list[Arrived | Absent]()
        self._last: Arrived | Absent
        self._blobs: dict[str, vector.Buffer] = {}
        self._in_hand, self.clock = False, 0.0

    def restarted(self) -> None:
        """The server is another one, a long time later."""
        self.mail.extendleft(reversed(self._delivered))
        self._delivered.clear()
        self._in_hand, self.clock = False, self.clock + DOWNTIME_S

    def now_s(self) -> float:
        return self.clock

    def publish(self, blobs: Sequence[vector.Buffer]) -> Sequence[str]:
        self._blobs = {vector.digest(b): b for b in blobs}
        return tuple(self._blobs)

    def send(self, to: str, raw: bytes) -> None:
        message = frame.from_server(raw, 2**30)
        self.letters.append((to, message))
        kind = _kind(message)
        if self._silent(to, kind):
            return
        answer = self._answer(to, message)
        if answer:
            if not isinstance(said := frame.load(answer), frame.Refusal):  # a report leaves once
                self.answers.setdefault((to, kind), set()).add(answer)
            self.clock += 0.25
            on_the_way = self._held if self.holds(to, _kind(said)) else self.mail
            on_the_way.append(Arrived(to, answer, self.clock))

    def deliver(self) -> None:
        """Let go of what the network holds back."""
        self.mail.extend(replace(item, at_s=self.clock) for item in self._held)
        self._held.clear()

    def forget(self) -> None:
        """All devices lose what they had in memory; what was on its way is lost too."""
        self.states = {d: s if isinstance(s, states.Idle) else s.idle for d, s in self.states.items()}
        self.mail.clear()

    def _answer(self, device: str, message: frame.Message) -> bytes:
        if isinstance(message, frame.Step):
            return self._step(device, device_events.Delivered(message))
        assert isinstance(message, frame.Invite)
        params = vector.from_bytes(self._blobs[message.model], self.plan.spec.dim)
        # What a device draws for a session hangs on the nonce, its noise does not: a sum is then always the same.
        own = derive(root(9), device)
        drawn = Secrets(own, derive(own, message.round), derive(own, message.nonce or b"", self.trained[device]))
        return self._step(device, device_events.Invited(message, params, drawn))

    def _step(self, device: str, event: device_events.Event) -> bytes:
        self.states[device], effects = machine.step(self.plan, self.states[device], event, self.trust)
        for effect in effects:
            if isinstance(effect, device_events.Train):
                self.trained[device] += 1
                x = np.random.default_rng([effect.request.round, int(device[1:])]).normal(size=self.plan.spec.dim)
                return self._step(device, device_events.Trained(Update(x.astype(np.float32), {}, 1.0)))
        return next((effect.frame for effect in effects if isinstance(effect, device_events.SendFrame)), b"")

    def resume(self, sent: Sequence[Sent], at_s: float) -> None:
        for one in sent:
            if one.awaited:
                self.send(one.device, one.frame)

    def receive(self, timeout_s: float) -> Arrived | Absent | None:
        if self._in_hand:
            self.mail.popleft()
        if self._in_hand and self.keeps:
            self._delivered.append(self._last)
        self._in_hand = bool(self.mail) and self.mail[0].at_s <= self.clock + timeout_s
        if self._in_hand:
            self._last = self.mail[0]
            return self._last
        self.clock += timeout_s
        return None

    def close_round(self, keep: Collection[str] = ()) -> None:
        self.mail = deque(item for item in self.mail if item.device in keep)
        self._delivered = [item for item in self._delivered if item.device in keep]
        self._in_hand = False


def _kind(message: frame.Message) -> str:
    """``invite``, or the type of a message of secure aggregation."""
    if isinstance(message, frame.Step):
        from edgewise.secagg import messages

        return type(messages.load_secagg_message(message.body)).__name__.removesuffix("Message").lower()
    return type(message).__name__.lower()


class _Burning:
    """Something whose methods are operations of a server: each burns the fuse before and after it."""

    def __init__(self, inner: Any, fuse: Fuse, names: Collection[str]) -> None:
        self._inner, self._fuse, self._names = inner, fuse, names

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in self._names:
            return method

        def burning(*args: Any) -> Any:
            self._fuse.burn(f"before {name}")
            result = method(*args)
            if name == "sync":
                self._fuse.synced = self._inner._file.tell()
            self._fuse.burn(f"after {name}")
            return _Burning(result, self._fuse, ("append", "sync")) if name == "journal" else result

        return burning


class Server:
    """A coordinator over a run directory, with a fuse.

    Attributes:
        phase: the state of the open round, by name.
        cohort: the fleet, where None; else its way to it.
    """

    def __init__(self, fleet: Fleet, out: Path, fuse: Fuse | None = None, cohort: Any = None, key: Key = KEY) -> None:
        fuse = fuse or Fuse()
        fleet.restarted()
        self._store = RunStore(out)
        if self._store.run() is None:
            self._store.create(fleet.plan.run, "fleet", {}, {})
        store: Any = _Burning(self._store, fuse, ("charge", "commit", "journal"))
        self._cohort: Any = _Burning(cohort or fleet, fuse, ("send", "receive", "publish"))
        leader: AgreementPair = fleet.leader
        self._coordinator = Coordinator(
            plan=fleet.plan, population=fleet.devices, cohort=self._cohort, store=store, tell=lambda event: None,
            now_s=lambda: 0.0, entropy=lambda number: secrets.token_bytes(32), sampling_key=key, trust=fleet.trust,
            secret=leader.secret, helper=fleet.helper,
        )  # fmt: skip
        self.open: OpenRound | None = None

    @property
    def phase(self) -> str:
        if self.open is None:
            return ""
        state = self.open.state
        groups = getattr(state, "groups", ())
        return " ".join([type(state).__name__, *(type(group.state).__name__ for group in groups)])

    def begin(self) -> Checkpoint:
        return self._coordinator.begin(np.zeros(self._coordinator.plan.spec.dim, np.float32))

    def go_on(self, checkpoint: Checkpoint) -> OpenRound:
        self.open = self._coordinator.open(checkpoint)
        return self.open

    def finish(self, checkpoint: Checkpoint) -> Checkpoint:
        assert self.open is not None
        receive(self._cohort, self.open)
        return self._coordinator.close(checkpoint, self.open, 0.0)

    def log(self, round: int) -> Journal:
        """The log of a round."""
        return self._store.journal(round)

    def charges(self) -> int:
        """Rows of the privacy ledger."""
        return len(self._store.charges())

    def play(self, checkpoint: Checkpoint) -> Checkpoint:
        """The next round."""
        self.go_on(checkpoint)
        return self.finish(checkpoint)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave what a killed process leaves: files as they are, locks released."""
        self._store.close()

    def cut(self, fuse: Fuse) -> None:
        """Leave of the round's log what a power cut leaves at most: the records that were synced."""
        for path in (self._store.out / "journal").glob("*.log"):
            with path.open("r+b") as f:
                f.truncate(fuse.synced)
