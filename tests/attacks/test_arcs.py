"""A server that lies in a sparse graph, to open the sum of an arc of the circle, of fewer devices than n_min."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from lying_server import Server
from session import ROOT, SID, Session

from edgewise.core.keys import derive
from edgewise.crypto import agree
from edgewise.kernels.bits import unpack_bits
from edgewise.secagg import messages, params, secrets, server
from edgewise.secagg.client import roster_neighbours
from edgewise.secagg.params import TrustPolicy

pytestmark = pytest.mark.slow

N = 66
POLICY = TrustPolicy(0.04, 0.02)  # 2 corrupt, 1 drops out


def on_the_circle(s: Session) -> tuple[list[str], bytes]:
    """All devices, as they stand in the session, and its roster."""
    keys = {d: messages.load_secagg_message(raw).keys for d, raw in s.advertise()}  # type: ignore[union-attr]
    roster = messages.roster_digest(SID, messages.ordered_for_wire(keys))
    return sorted(s.devices, key=lambda d: messages.secagg_digest(b"circle", roster, d.encode())), roster


def own(device: str, role: str) -> bytes:
    """A secret of a device: of a corrupt one, or one that t shares give."""
    return secrets.fresh_secret(derive(ROOT, "entropy", device), SID, role, device)


def cut() -> tuple[int, int]:
    """(devices of the sum that is opened, devices that its survivor list names).

    Some devices are listed and are not in the session. Their neighbours never sent shares, so nobody sees it. Behind
    these the arc of all others begins, on either side with a corrupt device: the server tried rosters until they stood
    there. It signs the list, and the server takes its masks off.
    """
    s = Session(90, n_min=66, policy=TrustPolicy(0.025, 0.02))
    (k, t), (order, roster) = s.policy.shape(s.n), on_the_circle(s)
    quiet, listed = k // 2 - 1, 24
    silent = {*order[:quiet], *order[quiet + listed : 2 * quiet + listed]}
    there = order[2 * quiet + listed :]
    corrupt, shown = [there[0], there[-1]], [d for d in s.devices if d not in silent]
    assert len(shown) >= s.n_min > len(there) >= s.policy.quorum(s.n)
    liar = Server(s, s.devices)
    masked, revealed = liar.play(there, s.devices, shown, "none", corrupt)
    shares = Counter(d for v, r in revealed.items() for d in r.seeds if d != v)
    found = {d for d in masked if d not in corrupt and (d in revealed or shares[d] >= t)}
    hidden = secrets.Hidden(s.params)
    for d in found:
        body = unpack_bits(memoryview(masked[d].body), s.bits, s.dim)
        assert body is not None
        hidden.add(body.astype(np.uint32), np.frombuffer(masked[d].head, "<u8"))
    hidden.mask([(own(d, "seed"), -1) for d in found], roster)
    near = roster_neighbours(s.params, SID, liar.keys)[1]
    for c in corrupt:
        secret, others = agree.AgreementSecret(own(c, "mask")), [d for d in near[c] if d in found]
        pairs = [(d, secrets.pair_seed(secret, liar.keys[d].mask, roster, c, d)) for d in others]
        hidden.mask(secrets.pairwise_masks(c, pairs), roster)
    right = np.array_equal(hidden.body, sum(s.xs[d].astype(np.uint64) for d in found) % (1 << s.bits))
    return len(found) if right else 0, len(shown)


def test_a_list_with_a_gap_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    k, t = TrustPolicy(0.025, 0.02).shape(90)
    assert t - k // 2 > 2  # more corrupt devices on one side than there are
    assert cut()[0] == 0
    # With four neighbours and t = 3 no device shows both secrets either. One corrupt device beside a gap is enough.
    monkeypatch.setattr(params, "choose_graph_degree", lambda *_: (4, 3))
    summed, named = cut()
    assert named >= 66 > summed > 0


def two_lists() -> list[int]:
    """To how many devices each of two lists is opened. One half of the circle is told that all survived, the other
    that one of them did not."""
    s = Session(N, n_min=2, policy=POLICY)
    order, _ = on_the_circle(s)
    for d, raw in s.advertise():
        s.give(d, raw)
    mail = s.close()
    for _ in range(2):
        mail = [letter for d, raw in mail for letter in s.give(d, s.answer(d, raw))]
    lists = [tuple(s.devices), tuple(d for d in s.devices if d != order[0])]
    arcs = [order[: N // 2], order[N // 2 :]]
    revealed = []
    for arc, survivors in zip(arcs, lists, strict=True):
        raw = messages.dump(messages.SurvivorsMessage(devices=survivors))
        signed = {d: messages.load_secagg_message(s.answer(d, raw)) for d in sorted(arc)}
        proofs = messages.ProofsMessage(signatures={d: said.signature for d, said in signed.items()})  # type: ignore[union-attr]
        answers = [messages.load_secagg_message(s.answer(d, messages.dump(proofs))) for d in arc]
        revealed.append(sum(isinstance(answer, messages.RevealedMessage) for answer in answers))
    return revealed


def test_two_lists_are_not_both_opened_on_two_arcs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert two_lists() == [0, 0]
    monkeypatch.setattr(TrustPolicy, "quorum", lambda *_: 0)
    assert min(two_lists()) > 10


def test_a_device_asks_for_signatures_of_its_holders_and_of_the_roster() -> None:
    """t of the first and more than half of all; a bad one among those that it needs ends the session."""
    s = Session(N, n_min=2, policy=POLICY)
    on_the_circle(s)
    for d, raw in s.advertise():
        s.give(d, raw)
    mail = s.close()
    for _ in range(2):
        mail = [letter for d, raw in mail for letter in s.give(d, s.answer(d, raw))]
    signed = {d: messages.load_secagg_message(s.answer(d, raw)).signature for d, raw in mail}  # type: ignore[union-attr]
    state, (_, t), quorum = s.clients["d000"], POLICY.shape(N), POLICY.quorum(N)
    assert quorum == 35
    holders = state.holders  # type: ignore[union-attr]
    far = [d for d in s.devices if d not in holders]

    def answer(some: list[str], bad: str = "") -> messages.Message:
        given = {d: bytes(64) if d == bad else signed[d] for d in sorted(some)}
        s.clients["d000"] = state
        return messages.load_secagg_message(s.answer("d000", messages.dump(messages.ProofsMessage(signatures=given))))

    few = messages.Abort(code="E-SECAGG-FEW")
    assert isinstance(answer([*holders[:t], *far[: quorum - t]]), messages.RevealedMessage)
    assert answer([*holders[:t], *far[: quorum - t - 1]]) == few
    assert answer([*holders[: t - 1], *far]) == few
    bad = messages.Abort(code="E-SECAGG-SURVIVORS")
    assert answer([*holders[:t], *far[: quorum - t]], far[1]) == bad
    assert answer([*holders[:t], *far[: quorum - t]], holders[t - 1]) == bad
    assert isinstance(answer(list(s.devices), max(far)), messages.RevealedMessage)  # one that it does not need


@pytest.mark.parametrize("apart", [3, 6])
def test_survivors_without_a_mask_in_common_end_a_session(apart: int) -> None:
    """A curious server, and drop-outs that happen to close in a few devices: their masks would cancel among them."""
    s = Session(110, n_min=60, policy=TrustPolicy(0.0, 0.1, "curious"))
    (k, _), (order, _) = s.policy.shape(s.n), on_the_circle(s)
    assert k < s.n - 1
    gone = {*order[: k // 2], *order[k // 2 + apart : k + apart]}
    ended = s.play(lambda step, device: step == 1 and device in gone)
    assert len(s.devices) - len(gone) >= s.n_min
    assert isinstance(ended, server.Aborted)
    assert (ended.code, ended.why.split()[0]) == ("E-SECAGG-FEW", str(apart))
    assert not any(isinstance(messages.load_secagg_message(raw), messages.RevealedMessage) for raw in s.sent)


def test_as_many_that_are_gone_elsewhere_end_no_session() -> None:
    s = Session(110, n_min=60, policy=TrustPolicy(0.0, 0.1, "curious"))
    (k, _), (order, _) = s.policy.shape(s.n), on_the_circle(s)
    gone = set(order[::6][: k // 2])
    assert isinstance(s.play(lambda step, device: step == 1 and device in gone), server.Released)
