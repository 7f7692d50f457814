"""Devices that deal or reveal something else than they should, in an otherwise honest session."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from session import IDENTITIES, Session, signed

from edgewise.crypto import agree, seal, shamir, sign
from edgewise.secagg import client, messages, secrets, server

DEALS = ("seed", "key", "large", "checks", "boxes", "one")  # of what a dealer gives away nothing true
REVEALS = ("wrong", "own", "nothing", "half")
_NAMES = {
    "shares": (*DEALS, "checks of seeds", "checks of keys", "two", "three", "five", "last"),
    "masked": ("accuse none", "accuse one", "accuse two", "accuse three"),
    "revealed": (*REVEALS, "without one"),
}
_COUNTS = {"none": 0, "one": 1, "two": 2, "three": 3, "five": 5}
replace = msgspec.structs.replace


def _first(lie: str) -> int | None:
    """Of how many neighbours; None: of all."""
    return _COUNTS.get(lie.split()[-1])


def lies_in(kind: str, lie: str) -> bool:
    """Tell whether the message of this kind of a device that lies so is not what it should be. A device that accuses
    a dealer also keeps its share back."""
    accuses = kind == "revealed" and "accuse" in lie and "accuse none" not in lie
    return accuses or bool(_said(kind, lie))


def _said(kind: str, lie: str) -> str:
    return next((part for part in lie.split("+") if part in _NAMES.get(kind, ())), "")


class Lies:
    """A session in which ``lies`` says what a device does, before ``@`` the message (1 roster to 4 proofs) that it does
    not answer any more: ``"seed@4"`` deals shares of another seed and vanishes. ``+`` joins lies in several messages.

    Dealt: ``seed``, ``key``: shares of another secret. ``large``: each share and p. ``last``: another share for the
    last neighbour. ``checks``: other shares than those of the checks (``checks of seeds``, ``checks of keys``: of one
    kind). ``boxes``: none opens (``one``, ``two``, ``three``, ``five``: of the first neighbours).
    Masked: ``accuse one``, ``accuse two``, ``accuse three``: says that boxes of its first neighbours failed,
    ``accuse none`` that all were good.
    Revealed: ``wrong``: every share, and its own b, with another first bit. ``half``: every second of them. ``own``:
    another b of its own. ``nothing``: its own b alone. ``without one``: not of the first dealer.
    """

    def __init__(self, s: Session, lies: Mapping[str, str]) -> None:
        self.s, self.lies = s, {device: lie.partition("@")[0] for device, lie in lies.items()}
        self.number = 0  # of the message that devices were sent last
        self.leaves = {device: int(lie.partition("@")[2] or 9) for device, lie in lies.items()}

    def play(self) -> server.State:
        """To the end."""
        s = self.s
        for device, raw in s.advertise():
            s.give(device, raw)
        mail = s.close()
        while not s.over:
            self.number += 1
            answers = [(d, self.answer(d, raw)) for d, raw in mail if self.number < self.leaves.get(d, 9)]
            mail = [letter for d, raw in answers for letter in s.give(d, raw)]
            if not mail and not s.over:
                mail = s.close()
        s.check()
        return s.server

    def answer(self, device: str, raw: bytes) -> bytes:
        """Answer of a device to a message."""
        before = self.s.clients[device]
        dealt, masked, revealed = (_said(kind, self.lies.get(device, "")) for kind in _NAMES)
        if dealt in ("seed", "key", "large", "last") and isinstance(before, client.Advertised):
            return _dealt(self.s, device, raw, _OTHER[dealt])
        answer = messages.load_secagg_message(self.s.answer(device, raw))
        if isinstance(answer, messages.SharesMessage) and dealt:
            changed = replace(answer, boxes=self._boxes(device, dealt, dict(answer.boxes)))
            return messages.dump(signed(device, self.s.clients[device].roster, changed))  # type: ignore[union-attr]
        if isinstance(answer, messages.MaskedMessage) and masked:
            return messages.dump(self._accusing(device, raw, answer, _first(masked)))
        if isinstance(answer, messages.RevealedMessage) and revealed:
            told = _revealed(device, answer, revealed)
            return messages.dump(signed(device, before.roster, told))  # type: ignore[union-attr]
        return messages.dump(answer)

    def _boxes(self, device: str, lie: str, boxes: dict[str, bytes]) -> dict[str, bytes]:
        if not lie.startswith("checks"):
            some = sorted(boxes)[: _first(lie)]
            return boxes | dict.fromkeys(some, bytes(messages.BOX_BYTES))
        state = self.s.clients[device]
        assert isinstance(state, client.Sharing)
        secret, out = agree.AgreementSecret(state.own.seal), {}
        for other, box in boxes.items():  # other shares than those of the checks, well sealed
            key, _ = secrets.sealing_keys(secret, state.keys[other].seal, state.roster, device, other)
            checks = box[messages.SEALED_BYTES :]
            bound, seed, rest = secrets.box_binding(state.roster, device, other, checks), bytes(33), bytes(33)
            if lie != "checks":
                seed, rest = self._true(device, key, box, bound)
                seed, rest = (bytes(33), rest) if lie == "checks of seeds" else (seed, bytes(33))
            out[other] = seal.seal(key, seed + rest, bound) + checks
        return out

    def _accusing(
        self, device: str, raw: bytes, masked: messages.MaskedMessage, count: int | None
    ) -> messages.MaskedMessage:
        state = self.s.clients[device]
        assert isinstance(state, client.Waiting)
        failed = state.paired[:count]
        held = {d: both for d, both in state.held.items() if d not in failed}
        self.s.clients[device] = replace(state, held=held)
        context, told = self.s.params.bound(state.roster), messages.boxes_message_digest(raw)
        said = messages.masked_digest(context, device, told, masked.body, masked.head, failed)
        return replace(masked, failed=failed, signature=sign.sign(IDENTITIES[device].secret, said))

    def _true(self, device: str, key: bytes, box: bytes, bound: bytes) -> tuple[bytes, bytes]:
        plain = seal.open_sealed(key, box[: messages.SEALED_BYTES], bound)
        return plain[:33], plain[33:]


Deal = Callable[[Callable[..., dict[int, bytes]], client.OwnSecrets, bytes, tuple[object, ...]], dict[int, bytes]]


def _large(shares: dict[int, bytes]) -> dict[int, bytes]:
    """The same numbers modulo p, none of which is below p."""
    return {x: (int.from_bytes(y, "little") + shamir.PRIME).to_bytes(33, "little") for x, y in shares.items()}


def _last(shares: dict[int, bytes]) -> dict[int, bytes]:
    return shares | {max(shares): bytes(33)}


_OTHER: Mapping[str, Deal] = {
    "seed": lambda share, own, secret, rest: share(bytes(32) if secret == own.seed else secret, *rest),
    "key": lambda share, own, secret, rest: share(b"\1" * 32 if secret == own.mask else secret, *rest),
    "large": lambda share, own, secret, rest: _large(share(secret, *rest)),
    "last": lambda share, own, secret, rest: _last(share(secret, *rest)),
}


def _dealt(s: Session, device: str, raw: bytes, deal: Deal) -> bytes:
    """Shares of other secrets than the device has, with the checks that they fit."""
    honest, own = client.shamir.shamir_shares, s.clients[device].own  # type: ignore[union-attr]

    def share(secret: bytes, *rest: object) -> dict[int, bytes]:
        return deal(honest, own, secret, rest)

    client.shamir.shamir_shares = share  # type: ignore[assignment]
    try:
        return s.answer(device, raw)
    finally:
        client.shamir.shamir_shares = honest


def _revealed(device: str, told: messages.RevealedMessage, lie: str) -> messages.RevealedMessage:
    if lie == "own":
        return replace(told, seeds={**told.seeds, device: bytes(33)})
    if lie == "nothing":
        return replace(told, seeds={device: told.seeds[device]}, keys={})
    if lie == "without one":
        dealers = sorted({*told.seeds, *told.keys} - {device})[:1]
        return replace(
            told,
            seeds={d: v for d, v in told.seeds.items() if d not in dealers},
            keys={d: v for d, v in told.keys.items() if d not in dealers},
        )
    flipped = {
        kind: {d: bytes([v[0] ^ 1]) + v[1:] for d, v in getattr(told, kind).items()} for kind in ("seeds", "keys")
    }
    if lie == "half":
        flipped = {kind: {**getattr(told, kind), **dict(list(v.items())[::2])} for kind, v in flipped.items()}
    return replace(told, **flipped)
