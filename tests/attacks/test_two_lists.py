"""A server that lies about who dropped out, and the devices that work with it, against single updates."""

from __future__ import annotations

import numpy as np
import pytest
from session import IDENTITIES, SID, Session
from toy_recipe import make_recipe

from edgewise.core.errors import CompositionError
from edgewise.core.vector import Spec
from edgewise.crypto import agree, sign
from edgewise.kernels.bits import unpack_bits
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.secagg import messages, recovery, secrets
from edgewise.secagg.client import share_holders
from edgewise.secagg.merge import secagg_trust_policy, secure_sum
from edgewise.secagg.params import TrustPolicy


def attack(n: int, bad: int) -> np.ndarray | None:
    """Tells some honest devices that the first one survived and others that it did not, and puts its two secrets
    together: its update, or None where too few shares of them came."""
    s = Session(n, n_min=2, policy=TrustPolicy(0.3, 0.0))
    for device, raw in s.advertise():
        s.give(device, raw)
    mail = [letter for device, raw in s.close() for letter in s.give(device, s.answer(device, raw))]
    masked = {}
    for device, raw in mail:
        answer = s.answer(device, raw)
        masked[device] = messages.load_secagg_message(answer)
        s.give(device, answer)
    shared = s.server.masked.shared  # type: ignore[union-attr]
    honest, corrupt = s.devices[: n - bad], s.devices[n - bad :]
    victim, others = honest[0], honest[1:]
    parts = {}
    for told, survivors in (
        (others[: len(others) // 2], s.devices),
        (others[len(others) // 2 :], [d for d in s.devices if d != victim]),
    ):
        said = messages.survivors_digest(shared.roster, survivors)
        signed = {d: sign.sign(IDENTITIES[d].secret, said) for d in corrupt}
        for device in told:
            answer = messages.load_secagg_message(
                s.answer(device, messages.dump(messages.SurvivorsMessage(devices=tuple(survivors))))
            )
            assert isinstance(answer, messages.ConsistentMessage)
            signed[device] = answer.signature
        proofs = messages.dump(messages.ProofsMessage(signatures=dict(sorted(signed.items()))))
        parts |= {device: messages.load_secagg_message(s.answer(device, proofs)) for device in told}
    at = {d: i + 1 for i, d in enumerate(share_holders(victim, shared.near[victim], n))}
    opened = {h: r for h, r in parts.items() if isinstance(r, messages.RevealedMessage)}
    seeds = {at[h]: r.seeds[victim] for h, r in opened.items() if victim in r.seeds}
    keys = {at[h]: r.keys[victim] for h, r in opened.items() if victim in r.keys}
    for d in corrupt:
        seeds[at[d]], keys[at[d]] = s.clients[d].held[victim]  # type: ignore[union-attr]
    if min(len(seeds), len(keys)) < shared.threshold:
        return None
    seed = recovery.recover_seed(SID, victim, shared.keys[victim], seeds, shared.threshold)
    key = agree.AgreementSecret(recovery.recover_key(shared.keys[victim], keys, shared.threshold))
    raw = masked[victim]
    body = unpack_bits(memoryview(raw.body), s.bits, s.dim)
    hidden = secrets.Hidden(s.params, body.astype(np.uint32), np.frombuffer(raw.head, "<u8"))
    hidden.mask([(seed, -1)], shared.roster)
    pairs = [(o, secrets.pair_seed(key, shared.keys[o].mask, shared.roster, victim, o)) for o in shared.near[victim]]
    hidden.mask([(k, -sign) for k, sign in secrets.pairwise_masks(victim, pairs)], shared.roster)
    np.testing.assert_array_equal(hidden.body, s.xs[victim])
    return hidden.body


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize(("n", "bad"), [(11, 6), (13, 6), (16, 7)])
def test_many_more_than_the_policy_says_single_one_out(n: int, bad: int) -> None:
    assert attack(n, bad) is not None


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize(("n", "bad"), [(11, 3), (13, 3), (16, 4)])
def test_as_many_as_the_policy_says_do_not(n: int, bad: int) -> None:
    assert attack(n, bad) is None


def test_a_round_may_not_end_with_so_few_that_the_corrupt_of_its_cohort_are_a_third() -> None:
    """Six may be corrupt: a lying server would show its victims a roster of eleven, with all six. And where a tenth
    drops out beside them, 24 devices leave enough shares and 23 do not."""
    for least in (10, 11, 18, 23):
        with pytest.raises(CompositionError, match=r"6 may be corrupt and [12] more drop out.* it needs 24") as caught:
            secagg_trust_policy(secure_sum(), least, 6)
        assert caught.value.code == "E-NMIN"
    for least, dropout in ((24, 0.1), (19, 0.0)):
        policy = secagg_trust_policy(secure_sum(), least, 6, dropout)
        assert policy.corrupt == pytest.approx(6 / least)
        assert policy.shape(least)[1] <= least - 6 - int(dropout * least)


def test_plans_of_masked_sums_are_held_to_it() -> None:
    spec = Spec.of([("a", (5,), "float32")])
    grid = [{"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}]

    def plan(n: int, corrupt: float) -> Plan:
        trust = {"malicious_fraction": corrupt}
        masked = {"privacy": "hidden", "merge": {"kind": "secure_sum"}, "stage": grid, "metrics": "none"}
        return compile(make_recipe({**masked, "trust": trust}), spec, n, BUILT_IN)

    with pytest.raises(CompositionError, match="6 may be corrupt"):
        plan(20, 0.3)
    least = plan(1000, 0.1).secagg(0)
    assert least.policy.corrupt == pytest.approx(100 / least.n_min)
    assert least.policy.corrupt > 0.1


def test_the_graph_of_the_smallest_roster_allows_for_all_corrupt_devices_of_the_cohort() -> None:
    """A tenth of 1,000 devices are a fifth of 500, and the graph of 500 has to stand that."""
    policy = secagg_trust_policy(secure_sum(), 500, 100)
    assert policy.shape(500) == TrustPolicy(0.2, 0.1).shape(500)
    assert policy.shape(500)[0] > TrustPolicy(0.1, 0.1).shape(500)[0]
