"""Schedules of secure aggregation: what a network may do to any message, and what peers that lie may say instead.

``play`` runs one session. Most messages arrive; ``faults`` says what happens to some of them, by their number. The one
thing left out is what no server can notice: a masked update, signed by its device, of something else than it says.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
from session import IDENTITIES, SID, Session, signed

from edgewise.core.errors import DecodeError
from edgewise.core.keys import derive
from edgewise.crypto import agree, sign
from edgewise.secagg import client, messages, server

NETWORK = ("lose", "late", "copy", "flip", "cut", "old")
KINDS = (*NETWORK, "abort", "lie", "lie", "lie")
replace = msgspec.structs.replace


class Run:
    """One schedule: the session, what was done to it, and what every device revealed."""

    def __init__(self, n: int, faults: Mapping[int, str], seed: int, **session: Any) -> None:
        self.s, self.faults, self.rng = Session(n, **session), faults, random.Random(seed)
        self.done: Counter[str] = Counter()
        self.revealed: Counter[str] = Counter()
        self.old: list[bytes] = []

    def play(self) -> server.State:
        """To an end, which must be the exact sum or a registered code."""
        s, rng = self.s, self.rng
        queue = [("server", d, raw) for d, raw in s.advertise()]
        held: list[tuple[str, str, bytes]] = []
        number = 0
        while not s.over:
            if not queue:  # the deadline, and after it what was late
                queue, held = [("device", d, raw) for d, raw in s.close()] + held, []
                continue
            to, device, raw = queue.pop(rng.randrange(len(queue)))
            fault = self.faults.get(number, "")
            number += 1
            self.old.append(raw)
            if fault:
                self.done[fault] += 1
            if fault == "lose":
                continue
            if fault == "late":
                held.append((to, device, raw))
                continue
            if fault == "copy":
                queue.append((to, device, raw))
            raw = self._changed(fault, to, device, raw)
            if to == "server":
                queue += [("device", d, r) for d, r in s.give(device, raw)]
            elif answer := s.answer(device, raw):
                self._watch(device, answer)
                queue.append(("server", device, answer))
        s.check()
        return s.server

    def _watch(self, device: str, answer: bytes) -> None:
        """A device reveals once, and never both secrets of another."""
        message = messages.load_secagg_message(answer)
        if isinstance(message, messages.RevealedMessage):
            self.revealed[device] += 1
            assert self.revealed[device] == 1
            assert not set(message.seeds) & set(message.keys)
            assert isinstance(self.s.clients[device], client.Finished)

    def _changed(self, fault: str, to: str, device: str, raw: bytes) -> bytes:
        rng = self.rng
        if fault == "flip":
            at = rng.randrange(len(raw))
            return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
        if fault == "cut":
            return raw[: rng.randrange(len(raw))]
        if fault == "old":  # any message of anybody, as this device's
            return rng.choice(self.old)
        if fault == "abort":
            return messages.dump(messages.Abort(code="E-SEAL" if to == "server" else "nonsense"))
        if fault != "lie":
            return raw
        try:
            message = messages.load_secagg_message(raw)
        except DecodeError:  # an old message was cut; there is nothing to lie about
            return raw
        lies = self._to_server(device, message) if to == "server" else self._to_device(device, message)
        return messages.dump(rng.choice(lies)) if lies else raw

    def _noise(self, size: int) -> bytes:
        return self.rng.randbytes(size)

    def _to_server(self, device: str, m: Any) -> list[Any]:
        """Lies of a device, with its own signature where that helps it."""
        rng, identity, others = self.rng, IDENTITIES[device].secret, [d for d in self.s.devices if d != device]
        match m:
            case messages.AdvertiseMessage():

                def own(sid: bytes = SID, **fields: bytes) -> messages.AdvertiseMessage:
                    keys = replace(m.keys, **fields)
                    return messages.AdvertiseMessage(
                        keys=replace(keys, signature=sign.sign(identity, keys.signed(sid, device)))
                    )

                theirs = self.s.server.keys if isinstance(self.s.server, server.Advertising) else {}
                stolen = [own(seal=k.seal, mask=k.mask) for k in theirs.values()]
                fresh = agree.public_half(derive(SID, "fresh"))
                return [
                    own(bytes(32)),
                    own(seal=bytes(32)),
                    own(mask=bytes(32)),
                    own(mask=m.keys.seal),
                    own(commitment=self._noise(32)),
                    own(mask=fresh),
                    replace(m, keys=replace(m.keys, mask=fresh)),
                    *stolen,
                ]
            case messages.SharesMessage():
                names = list(m.boxes)
                rolled = dict(zip(names, [*list(m.boxes.values())[1:], m.boxes[names[0]]], strict=True))
                noise = {d: self._noise(messages.BOX_BYTES) for d in names}
                made = [
                    replace(m, boxes=rolled),
                    replace(m, boxes=noise),
                    replace(m, boxes={**m.boxes, names[0]: noise[names[0]]}),
                    replace(m, boxes={d: m.boxes[d] for d in names[1:]}),
                    replace(m, boxes={}),
                ]
                roster = getattr(self.s.server, "roster", b"")
                return [*(signed(device, roster, said) for said in made), *made]
            case messages.MaskedMessage():
                body = bytes([m.body[0] ^ 1]) + m.body[1:]
                return [
                    replace(m, body=body),
                    replace(m, head=self._noise(8)),
                    replace(m, signature=self._noise(64)),
                    replace(m, body=m.body[1:]),
                    replace(m, body=b"", head=b""),
                    replace(m, failed=()),
                    replace(m, failed=tuple(others)),
                ]
            case messages.ConsistentMessage():
                fewer = messages.survivors_digest(self._noise(32), others)
                return [replace(m, signature=self._noise(64)), replace(m, signature=sign.sign(identity, fewer))]
            case messages.RevealedMessage():
                swapped = replace(m, seeds=m.keys, keys=m.seeds)
                both = replace(m, keys=messages.ordered_for_wire({**m.keys, **m.seeds}))
                kept = rng.sample(sorted(m.seeds), len(m.seeds) // 2)
                made = [
                    swapped,
                    both,
                    replace(m, seeds={**m.seeds, device: self._noise(33)}),
                    replace(m, seeds={d: bytes(33) for d in m.seeds}),
                    replace(m, seeds={}, keys={}),
                    replace(m, seeds={d: m.seeds[d] for d in sorted(kept)}),
                    replace(m, keys=dict.fromkeys(m.keys, b"\xff" * 33)),
                    replace(m, seeds={d: self._noise(32) + b"\0" for d in m.seeds}),
                ]
                end = self.s.server
                roster = end.signed.masked.shared.roster if isinstance(end, server.Unmasking) else b""
                return [*(signed(device, roster, said) for said in made), *made]
        return []

    def _to_device(self, device: str, m: Any) -> list[Any]:
        """Lies that somebody between could tell a device in place of the server's words."""
        rng = self.rng
        match m:
            case messages.RosterMessage():
                a, b = rng.sample(sorted(m.keys), 2)
                swapped = {**m.keys, a: m.keys[b], b: m.keys[a]}
                moved = {**m.keys, a: replace(m.keys[a], mask=m.keys[b].mask)}
                fewer = {d: k for d, k in m.keys.items() if d != a}
                return [
                    messages.RosterMessage(keys=k) for k in (swapped, moved, fewer, {}, dict(reversed(m.keys.items())))
                ]
            case messages.BoxesMessage() if m.boxes:
                gone, names = rng.choice(sorted(m.boxes)), list(m.boxes)
                rolled = dict(zip(names, [*names[1:], names[0]], strict=True))
                noise = {**m.boxes, gone: replace(m.boxes[gone], box=self._noise(messages.BOX_BYTES))}
                forged = {**m.boxes, gone: replace(m.boxes[gone], signature=self._noise(64))}
                fewer = {d: box for d, box in m.boxes.items() if d != gone}
                return [
                    messages.BoxesMessage(boxes=b)
                    for b in (
                        noise,
                        forged,
                        fewer,
                        {},
                        {d: m.boxes[o] for d, o in rolled.items()},
                        dict(reversed(m.boxes.items())),
                    )
                ]
            case messages.SurvivorsMessage():
                one = rng.choice(m.devices)
                fewer = tuple(d for d in m.devices if d != one)
                return [
                    messages.SurvivorsMessage(devices=d)
                    for d in (
                        fewer,
                        tuple(d for d in m.devices if d != device),
                        (device,),
                        tuple(self.s.devices),
                        (*m.devices, "zz"),
                        tuple(reversed(m.devices)),
                    )
                ]
            case messages.ProofsMessage() if m.signatures:
                one = rng.choice(sorted(m.signatures))
                fewer = {d: v for d, v in m.signatures.items() if d != one}
                return [
                    messages.ProofsMessage(signatures=v)
                    for v in (
                        fewer,
                        {},
                        {**m.signatures, one: self._noise(64)},
                        dict.fromkeys(m.signatures, m.signatures[one]),
                    )
                ]
        return []


def drawn(rng: random.Random) -> Run:
    """A schedule for scripts: 2 to 9 devices, up to four faults somewhere in the session."""
    n = rng.choice((2, 3, 4, 5, 6, 6, 7, 8, 9))
    faults = {rng.randrange(9 * n): rng.choice(KINDS) for _ in range(rng.randint(0, 4))}
    return Run(n, faults, rng.randrange(1 << 32))
