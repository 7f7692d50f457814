"""A server that shows two rosters in one session, and bytes that change on the network.

Honest devices V are told roster R2, where they drop out after their shares, so that R2's holders reveal the keys behind
their masks. Others, P, are told R1 = P + V + corrupt, where V is said to survive. If P took that, the masks between P
and V could be taken off, and the sum of P alone would be open, with fewer honest devices in it than n_min promises.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
import pytest
from lying_server import Server
from schedules import Run
from session import SID, Session

from edgewise.kernels.bits import unpack_bits
from edgewise.secagg import messages, secrets, server
from edgewise.secagg.client import roster_neighbours
from edgewise.secagg.params import TrustPolicy

LIARS = {"E-SHARE", "E-SECAGG-REVEAL"}


def attack(n_min: int, bad: int, forge: str) -> tuple[np.ndarray | None, Server]:
    """The sum of P and the corrupt devices, or None where devices in R1 did not reveal what opens it."""
    policy = TrustPolicy(bad / n_min, 0.1)
    s, t = Session(110, n_min=n_min, policy=policy), policy.shape(n_min)[1]
    few, gone, corrupt = s.devices[: t - bad], s.devices[t - bad : n_min - bad], s.devices[n_min - bad : n_min]
    rest = s.devices[n_min : 2 * n_min]
    liar = Server(s, s.devices[: 2 * n_min])
    _, revealed = liar.play([*gone, *rest], [*gone, *rest], rest)
    assert len(revealed) == len(rest)  # R2 is a session like any other
    secret = {v: liar.secret(v, [*gone, *rest], revealed) for v in gone}
    inside, one = [*few, *corrupt], [*few, *gone, *corrupt]
    masked, revealed = liar.play(inside, one, one, forge)
    if set(revealed) != set(inside):
        assert not revealed
        return None, liar
    roster = messages.roster_digest(SID, {d: liar.keys[d] for d in sorted(one)})
    hidden = secrets.Hidden(s.params)
    for m in masked.values():
        body = unpack_bits(memoryview(m.body), s.bits, s.dim)
        assert body is not None
        hidden.add(body.astype(np.uint32), np.frombuffer(m.head, "<u8"))
    hidden.mask([(revealed[d].seeds[d][:32], -1) for d in inside], roster)
    for v in gone:
        pairs = [(u, secrets.pair_seed(secret[v], liar.keys[u].mask, roster, v, u)) for u in inside]
        hidden.mask(secrets.pairwise_masks(v, pairs), roster)
    np.testing.assert_array_equal(hidden.body, sum(s.xs[d].astype(np.uint64) for d in inside) % (1 << s.bits))
    return hidden.body, liar


@pytest.mark.slow
@pytest.mark.parametrize("forge", ["junk", "own", "again", "none"])
@pytest.mark.parametrize(("n_min", "bad"), [(12, 0), (12, 3), (30, 7)])
def test_no_sum_is_opened_with_survivors_that_were_shown_another_roster(n_min: int, bad: int, forge: str) -> None:
    """Their boxes may have a signature of nobody, of a corrupt device, or their own one under the other roster; or none
    come at all."""
    opened, liar = attack(n_min, bad, forge)
    assert opened is None
    code = "E-SECAGG-SURVIVORS" if forge == "none" else "E-SECAGG-KEYS"
    assert liar.aborted == {code: TrustPolicy(bad / n_min, 0.1).shape(n_min)[1]}


@pytest.mark.slow
@pytest.mark.parametrize("forge", ["junk", "none"])
def test_an_invented_survivor_closes_a_sparse_sum(forge: str) -> None:
    """Its neighbours alone see that it has not dealt. They abort, and some mask of every sum beyond them stays on."""
    s = Session(66, n_min=20, policy=TrustPolicy(0.02, 0.02))
    (k, t), fake = s.policy.shape(66), s.devices[33]
    liar = Server(s, s.devices)
    _, revealed = liar.play([d for d in s.devices if d != fake], s.devices, s.devices, forge)
    near = roster_neighbours(s.params, SID, liar.keys)[1]
    assert liar.aborted["E-SECAGG-SURVIVORS" if forge == "none" else "E-SECAGG-KEYS"] == k == 8
    assert len(revealed) > 66 / 2  # those far away notice nothing
    shares = Counter(d for r in revealed.values() for d in r.seeds)
    found = {d for d in s.devices if d in revealed or shares[d] >= t}
    assert set(near[fake]).isdisjoint(found)
    assert any(v not in found for d in found for v in near[d] if v != fake)


def test_a_device_deals_under_one_roster_of_a_session() -> None:
    s = Session(8)
    keys = {d: messages.load_secagg_message(raw).keys for d, raw in s.advertise()}  # type: ignore[union-attr]
    for n, kind in ((8, messages.SharesMessage), (7, messages.Abort), (8, type(None))):
        raw = s.answer("d000", messages.dump(messages.RosterMessage(keys={d: keys[d] for d in s.devices[:n]})))
        assert isinstance(messages.load_secagg_message(raw) if raw else None, kind)


def _flipped(message: messages.Message, count: int) -> bytes:
    """With one bit of some of the boxes or shares changed."""

    def flip(raw: bytes) -> bytes:
        return bytes([raw[0] ^ 1]) + raw[1:]

    field = "seeds" if isinstance(message, messages.RevealedMessage) else "boxes"
    table = getattr(message, field)
    one = {d: msgspec.structs.replace(v, box=flip(v.box)) if isinstance(v, messages.DealtBox) else flip(v)
           for d, v in list(table.items())[:count]}  # fmt: skip
    return messages.dump(msgspec.structs.replace(message, **{field: {**table, **one}}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [messages.SharesMessage, messages.BoxesMessage, messages.RevealedMessage], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize(("n", "count"), [(9, 1), (9, 2), (32, 4)])
def test_bits_that_flip_on_the_way_make_nobody_a_liar(n: int, count: int, kind: type) -> None:
    """They cost the device its place, or its answer, and the sum comes."""
    s, hit = Session(n), "d003"
    for d, raw in s.advertise():
        s.give(d, raw)
    mail = s.close()
    while not s.over:
        answers = []
        for d, told in mail:
            if d == hit and isinstance(message := messages.load_secagg_message(told), kind):
                told = _flipped(message, count)
            raw = s.answer(d, told)
            if d == hit and raw and isinstance(message := messages.load_secagg_message(raw), kind):
                raw = _flipped(message, count)
            answers.append((d, raw))
        mail = [letter for d, raw in answers if raw for letter in s.give(d, raw)]
    s.check()
    assert s.refused == [(hit, "E-SECAGG-KEYS")]
    assert isinstance(s.server, server.Released)
    assert (hit in s.server.survivors) == (kind is messages.RevealedMessage)


@pytest.mark.slow
def test_no_bit_that_flips_makes_anybody_a_liar() -> None:
    """One bit somewhere in any message of a session."""
    refused, flips = Counter[str](), 0
    for number in range(45):
        for seed in range(2):
            run = Run(5, {number: "flip"}, seed)
            run.play()
            flips += run.done["flip"]
            refused += Counter(code for _, code in run.s.refused)
    assert not LIARS.intersection(refused)
    assert flips > 80
    assert refused["E-SECAGG-KEYS"] > 10
