"""Devices that deal or reveal something else than they should, in an otherwise honest session."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from session import Session

from edgewise.crypto import agree, seal
from edgewise.secagg import client, messages, secrets, server

DEALS = ("seed", "key", "checks", "boxes", "one")  # of what a dealer gives away nothing true
REVEALS = ("wrong", "own", "nothing", "half")
replace = msgspec.structs.replace


class Lies:
    """A session in which ``lies`` says what a device does: a name of ``DEALS`` or ``REVEALS``, before ``@`` the message
    (1 roster to 4 proofs) that it does not answer any more: ``"seed@4"`` deals shares of another seed and vanishes."""

    def __init__(self, s: Session, lies: Mapping[str, str]) -> None:
        self.s, self.lies = s, {device: lie.partition("@")[0] for device, lie in lies.items()}
        self.leaves = {device: int(lie.partition("@")[2] or 9) for device, lie in lies.items()}

    def play(self) -> server.State:
        """To the end."""
        s = self.s
        for device, raw in s.advertise():
            s.give(device, raw)
        mail, number = s.close(), 0
        while not s.over:
            number += 1
            answers = [(d, self.answer(d, raw)) for d, raw in mail if number < self.leaves.get(d, 9)]
            mail = [letter for d, raw in answers for letter in s.give(d, raw)]
            if not mail and not s.over:
                mail = s.close()
        s.check()
        return s.server

    def answer(self, device: str, raw: bytes) -> bytes:
        """What a device says to a message."""
        lie, before = self.lies.get(device, ""), self.s.clients[device]
        if lie in ("seed", "key") and isinstance(before, client.Advertised):
            own = replace(before.own, seed=bytes(32)) if lie == "seed" else replace(before.own, mask=b"\1" * 32)
            return _dealt(self.s, device, raw, own)
        answer = messages.load(self.s.answer(device, raw))
        if isinstance(answer, messages.Shares) and lie in DEALS:
            return messages.dump(replace(answer, boxes=self._boxes(device, lie, dict(answer.boxes))))
        if isinstance(answer, messages.Revealed) and lie in REVEALS:
            return messages.dump(_revealed(device, answer, lie))
        return messages.dump(answer)

    def _boxes(self, device: str, lie: str, boxes: dict[str, bytes]) -> dict[str, bytes]:
        if lie == "boxes":
            return dict.fromkeys(boxes, bytes(messages.BOX_BYTES))
        first = min(boxes)
        if lie == "one":  # one neighbour only: who of the two lies cannot be known
            return boxes | {first: bytes(messages.BOX_BYTES)}
        state = self.s.clients[device]
        assert isinstance(state, client.Sharing)
        secret, out = agree.Secret(state.own.seal), {}
        for other, box in boxes.items():  # other shares than those of the checks, well sealed
            key, _ = secrets.sealing_keys(secret, state.keys[other].seal, state.roster, device, other)
            checks = box[messages.SEALED_BYTES :]
            out[other] = seal.seal(key, bytes(66), secrets.bound(state.roster, device, other, checks)) + checks
        return out


def _dealt(s: Session, device: str, raw: bytes, own: client.Own) -> bytes:
    """Shares of other secrets than the device has."""
    honest = client.shamir.share
    true = s.clients[device].own  # type: ignore[union-attr]

    def share(secret: bytes, *rest: object) -> dict[int, bytes]:
        return honest(own.seed if secret == true.seed else own.mask, *rest)  # type: ignore[arg-type]

    client.shamir.share = share  # type: ignore[assignment]
    try:
        return s.answer(device, raw)
    finally:
        client.shamir.share = honest


def _revealed(device: str, told: messages.Revealed, lie: str) -> messages.Revealed:
    if lie == "own":
        return replace(told, seeds={**told.seeds, device: bytes(33)})
    if lie == "nothing":
        return replace(told, seeds={device: told.seeds[device]}, keys={})
    flipped = {
        kind: {d: bytes([v[0] ^ 1]) + v[1:] for d, v in getattr(told, kind).items()} for kind in ("seeds", "keys")
    }
    if lie == "half":
        flipped = {kind: {**getattr(told, kind), **dict(list(v.items())[::2])} for kind, v in flipped.items()}
    return replace(told, **flipped)
