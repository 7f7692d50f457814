"""Recorded sessions of secure aggregation, for ``tests/protocol/vectors``: every message in order, and how they end."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from liars import Lies, lies_in
from session import FOREIGN, IDENTITIES, ROOT, SID, Session

from edgewise.core.keys import derive
from edgewise.secagg import messages, server
from edgewise.secagg.params import TrustPolicy

SPARSE = TrustPolicy(0.02, 0.02)  # eight neighbours of 66, t = 6
CURIOUS = {"policy": TrustPolicy(0.02, 0.02, "curious"), "n_min": 20}  # four neighbours of 66, t = 2, no quorum
TWO_LIE = {"policy": TrustPolicy(0.3, 0.1)}  # two of 7 devices
RIGHT, LONGER = "the answer", "the answer and a zero byte"


def circle(n: int) -> list[str]:
    """The devices of a session of so many, as they stand on the circle of a sparse graph."""
    s, keys = Session(n), dict[str, messages.SessionKeys]()
    for device, raw in s.advertise():
        message = messages.load_secagg_message(raw)
        assert isinstance(message, messages.AdvertiseMessage)
        keys[device] = message.keys
    roster = messages.roster_digest(SID, keys)
    return sorted(keys, key=lambda device: messages.secagg_digest(b"circle", roster, device.encode()))


def around_two(n: int) -> dict[str, int]:
    """Four of a session's devices that leave before their update, two on either side of two that stay: these share
    masks with nobody else."""
    order = circle(n)
    return {order[i]: 2 for i in (1, 2, 5, 6)}


@dataclass(frozen=True)
class Case:
    """``leaves``: device -> the first message that it does not answer. ``lies``: as in ``liars``. ``says``: device ->
    the message (0: its start) that it answers in this way, a code being an abort; it then leaves, but where it also
    answers as it should. ``backwards``: devices reveal in the other order."""

    n: int = 4
    leaves: dict[str, int] = field(default_factory=dict)
    lies: dict[str, str] = field(default_factory=dict)
    says: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    backwards: bool = False
    more: dict[str, Any] = field(default_factory=dict)


CASES = {
    "all stay": Case(),
    "one leaves before its shares": Case(leaves={"d003": 1}),
    "one leaves before its update": Case(leaves={"d001": 2}),
    "one leaves after its update": Case(leaves={"d002": 3}),
    "one leaves before it reveals": Case(leaves={"d002": 4}),
    "a narrow ring": Case(leaves={"d002": 2}, more={"bits": 13, "heads": 2}),
    "a wide ring": Case(more={"bits": 32, "heads": 0}),
    "a group of one rung": Case(leaves={"d002": 2}, more={"rung": 3}),
    "a minimum above the threshold": Case(more={"n_min": 4}),
    "two devices": Case(2),
    "names in the order of code points": Case(more={"names": ("d000", "d001", *FOREIGN)}),
    "one device aborts": Case(5, says={"d001": (2, ("E-SECAGG-FEW",))}),
    "one device aborts with a code that nobody knows": Case(5, says={"d001": (3, ("E-OTHER",))}),
    "an abort before the roster": Case(says={"d001": (0, (RIGHT, "E-SECAGG-FEW"))}),
    "bad keys and then good ones": Case(says={"d001": (0, (LONGER, RIGHT))}),
    "a bad message and then the right one": Case(5, says={"d001": (1, (LONGER, RIGHT))}),
    "an abort after the answer": Case(says={"d001": (3, (RIGHT, "E-SECAGG-FEW"))}),
    "a box that does not open": Case(5, lies={"d001": "one"}),
    "boxes that hold other shares than they say": Case(5, lies={"d001": "checks"}),
    "boxes that hold other seed shares than they say": Case(5, lies={"d001": "checks of seeds"}),
    "boxes that hold other key shares than they say": Case(5, lies={"d001": "checks of keys"}),
    "wrong shares dealt": Case(5, lies={"d001": "seed"}),
    "shares of p and more dealt": Case(5, lies={"d001": "large"}),
    "shares of p and more dealt, and called good": Case(5, lies={"d001": "large", "d000": "accuse none"}),
    "a wrong share at the last point, which is not needed": Case(7, lies={"d001": "last"}, backwards=True),
    "two boxes that do not open, where two may lie": Case(7, lies={"d001": "two"}, more=TWO_LIE),
    "three boxes that do not open, where two may lie": Case(7, lies={"d001": "three"}, more=TWO_LIE),
    "three boxes that do not open, as a liar and two others say": Case(
        7, lies={"d001": "three", "d000": "own"}, more=TWO_LIE),
    "wrong shares dealt, which two devices say did not open": Case(
        8, lies={"d001": "seed", "d000": "accuse one", "d002": "accuse two"}),
    "a share held back": Case(7, lies={"d001": "without one"}, more=TWO_LIE),
    "two dealers accused, where two may lie": Case(7, lies={"d001": "accuse two"}, more=TWO_LIE),
    "three dealers accused, where two may lie": Case(7, lies={"d001": "accuse three"}, more=TWO_LIE),
    "two boxes that do not open and two dealers accused": Case(7, lies={"d001": "two+accuse two"}, more=TWO_LIE),
    "three boxes that do not open and three dealers accused": Case(
        7, lies={"d001": "three+accuse three"}, more=TWO_LIE),
    "wrong shares dealt and three dealers accused": Case(7, lies={"d001": "seed+accuse three"}, more=TWO_LIE),
    "a dealer accused and a share held back": Case(7, lies={"d001": "accuse one+without one"}, more=TWO_LIE),
    "wrong shares revealed": Case(7, leaves={"d003": 4}, lies={"d001": "wrong"}),
    "another seed revealed": Case(5, lies={"d001": "own"}),
    "shares of nobody revealed": Case(5, lies={"d001": "nothing"}),
    "a sparse graph": Case(66, leaves={"d010": 1, "d020": 2, "d030": 3, "d040": 4}, lies={"d050": "wrong"},
                           more={"policy": SPARSE, "n_min": 20}),
    "a sparse graph and a curious server": Case(66, leaves={"d010": 1, "d020": 2, "d040": 4}, more=CURIOUS),
    # without a sum
    "a part of the survivors' graph below the smallest sum": Case(66, leaves=around_two(66), more=CURIOUS),
    "too few keys": Case(2, more={"n_min": 3}),
    "too few shares": Case(leaves={"d000": 1, "d001": 1}),
    "too few updates": Case(leaves={"d000": 2, "d001": 2}),
    "too few updates for the minimum": Case(leaves={"d001": 2}, more={"n_min": 4}),
    "too few signatures": Case(leaves={"d000": 3, "d001": 3}),
    "fewer signatures than the quorum, in a sparse graph": Case(
        66, leaves={f"d{i:03d}": 3 for i in range(33, 66)}, more={"policy": SPARSE, "n_min": 20}),
    "one signature, with a curious server": Case(66, leaves={f"d{i:03d}": 3 for i in range(1, 66)}, more=CURIOUS),
    "too few reveal": Case(leaves={"d000": 4, "d001": 4}),
    "wrong seed shares dealt, and gone": Case(5, lies={"d001": "seed@4"}),
    "wrong key shares dealt, and gone": Case(5, lies={"d001": "key@2"}),
    "shares of p and more dealt, and gone": Case(5, lies={"d001": "large@4"}),
    "shares of p and more dealt, and gone before the update": Case(5, lies={"d001": "large@2"}),
    "two boxes that do not open, and gone": Case(7, lies={"d001": "two@2"}, more=TWO_LIE),
    "two boxes that do not open, and gone, and a drop-out": Case(
        7, lies={"d001": "two@2"}, leaves={"d005": 2}, more=TWO_LIE),
    "two boxes that do not open, and gone at the end, and a drop-out": Case(
        7, lies={"d001": "two@4"}, leaves={"d005": 4}, more=TWO_LIE),
    "three boxes that do not open, and gone": Case(7, lies={"d001": "three@2"}, more=TWO_LIE),
    "three boxes that do not open, and gone at the end": Case(7, lies={"d001": "three@4"}, more=TWO_LIE),
    "no graph of so many": Case(7, more={"policy": TrustPolicy(0.3, 0.2)}),
}  # fmt: skip
KINDS = ("advertise", "shares", "masked", "consistent", "revealed")


class Recorder:
    """Plays a case and writes down all: {"from" or "to", "hex"}, {"close": step}, {"refused", "code"}.

    Of more than ten devices messages are given by their digests, but for those of d000 and the roster: all of them
    follow from the devices' secrets.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.s = case, Session(case.n, **{"dim": 6, "heads": 1, "bits": 20, **case.more})
        self.lies = Lies(self.s, case.lies)
        self.leaves = {
            **self.lies.leaves,
            **case.leaves,
            **{d: n + 1 for d, (n, _) in case.says.items() if RIGHT not in case.says[d][1]},
        }
        self.lines: list[dict[str, Any]] = []
        self.number = 0

    def play(self) -> dict[str, Any]:
        """The whole case."""
        s = self.s
        for device, first in s.advertise():
            for raw, stray in self._said(device, first):
                self._to_server(device, raw, stray)
        mail = self._close()
        while not s.over:
            self.number += 1
            self._told(mail)
            answers = [(d, *said) for d, told in mail for said in self._answer(d, told)]
            if self.case.backwards and self.number == 4:
                answers.reverse()
            mail = [letter for said in answers for letter in self._to_server(*said)]
            if not mail and not s.over:
                mail = self._close()
        s.check()
        return {"params": self._params(), "sid": SID.hex(), "devices": self._devices(), "lines": self.lines,
                "end": self._end()}  # fmt: skip

    def _answer(self, device: str, told: bytes) -> list[tuple[bytes, bool]]:
        if self.number >= self.leaves.get(device, 9):
            return []
        return self._said(device, self.lies.answer(device, told))

    def _said(self, device: str, right: bytes) -> list[tuple[bytes, bool]]:
        """List messages that a device sends in place of its answer or beside it, and whether each is a stray one."""
        step, parts = self.case.says.get(device, (-1, ()))
        if step != self.number:
            return [(right, False)]
        fixed = {RIGHT: (right, False), LONGER: (right + b"\0", True)}
        return [fixed.get(part) or (messages.dump(messages.Abort(code=part)), True) for part in parts]

    def _to_server(self, device: str, raw: bytes, stray: bool = False) -> list[tuple[str, bytes]]:
        more = {"lie": "stray"} if stray else {}
        if not stray and lies_in(messages.msgspec.msgpack.decode(raw)["type"], lie := self.lies.lies.get(device, "")):
            more = {"lie": lie}
        self.lines.append({"from": device, **self._bytes(device, raw), **more})
        return self._after(lambda: self.s.give(device, raw))

    def _close(self) -> list[tuple[str, bytes]]:
        self.lines.append({"close": self.number})
        return self._after(self.s.close)

    def _after(self, event: Any) -> list[tuple[str, bytes]]:
        known = len(self.s.refused)
        out: list[tuple[str, bytes]] = event()
        self.lines += [{"refused": d, "code": code} for d, code in self.s.refused[known:]]
        return out

    def _told(self, mail: list[tuple[str, bytes]]) -> None:
        for raw in dict.fromkeys(raw for _, raw in mail):
            to = [d for d, other in mail if other == raw]
            self.lines.append({"to": to, **self._bytes(to[0], raw, whole=len(to) > 1)})

    def _bytes(self, device: str, raw: bytes, whole: bool = False) -> dict[str, str]:
        if self.case.n <= 10 or device == "d000" or whole:
            return {"hex": raw.hex()}
        return {"sha256": hashlib.sha256(raw).hexdigest()}

    def _params(self) -> dict[str, Any]:
        p = self.s.params
        return {"n_min": p.n_min, "bits": p.bits, "dim": p.dim, "heads": p.heads, "rung": p.rung,
                "corrupt": p.policy.corrupt, "dropout": p.policy.dropout, "server": p.policy.server}  # fmt: skip

    def _devices(self) -> dict[str, dict[str, Any]]:
        s = self.s
        return {
            d: {"identity": IDENTITIES[d].secret.hex(), "public": IDENTITIES[d].public.hex(),
                "entropy": derive(ROOT, "entropy", d).hex(), "body": s.xs[d].tolist(),
                "head": [str(v) for v in s.hs[d]]}
            for d in s.devices
        }  # fmt: skip

    def _end(self) -> dict[str, Any]:
        end = self.s.server
        if isinstance(end, server.Aborted):
            return {"code": end.code}
        assert isinstance(end, server.Released)
        return {"survivors": list(end.survivors), "body": end.body.tolist(), "head": [str(v) for v in end.head]}


def sessions() -> dict[str, dict[str, Any]]:
    """All of them."""
    return {name: Recorder(case).play() for name, case in CASES.items()}
