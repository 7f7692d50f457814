"""Noise and sessions without secret randomness are an error, and not numbers that everybody can repeat."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from session import IDENTITIES, SID
from toy_recipe import make_recipe

from edgewise.core.keys import Turn, root
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.secagg import client, two_server
from edgewise.secagg.params import Params, TrustPolicy

SPEC = Spec.of([("w", (64,), "float32")])
DP = {"stage": [], "metrics": "none", "dp.epsilon": 20.0, "dp.delta": 1e-5, "dp.clip_l2": 4.0, "round.minimum": 0.75}
WORDS: dict[str, dict[str, Any]] = {
    "distributed_dp": {"merge": {"kind": "secure_sum"}},
    "local_dp": {"merge": {"kind": "sum"}, "round.minimum": 0.1},
}


def plan(word: str, more: dict[str, Any]) -> Plan:
    return compile(make_recipe({**DP, **more, "privacy": word}), SPEC, 8, BUILT_IN)


@pytest.mark.parametrize("word", WORDS)
def test_a_device_adds_no_noise_without_a_key_of_its_own(word: str) -> None:
    pipe = plan(word, WORDS[word]).at(0)
    x = np.zeros(SPEC.dim, np.float32)
    with pytest.raises(ValueError, match="no private key"):
        pipe.encode(x, {}, 1.0, pipe.init(), Turn(0, root(1)))
    for short in (b"", bytes(31)):
        with pytest.raises(ValueError, match="32 bytes"):
            pipe.encode(x, {}, 1.0, pipe.init(), Turn(0, root(1), short))
    payload, _ = pipe.encode(x, {}, 1.0, pipe.init(), Turn(0, root(1), root(2)))
    assert payload.body.any(), "with one it does"


@pytest.mark.parametrize("entropy", [b"", bytes(31)])
def test_a_server_releases_no_sum_without_entropy(entropy: bytes) -> None:
    checked = plan("central_dp", {"merge": {"kind": "sum"}})
    pipe, turn = checked.at(0), Turn(0, root(1), root(2))
    payload, _ = pipe.encode(np.zeros(SPEC.dim, np.float32), {}, 1.0, pipe.init(), turn)
    total = pipe.add(pipe.start_sum(), payload, checked.turn(0))
    with pytest.raises(ValueError, match="32 bytes"):
        pipe.release(total, checked.turn(0), entropy, pipe.start_memory())


@pytest.mark.parametrize("entropy", [b"", bytes(31)])
def test_a_device_begins_no_session_without_entropy(entropy: bytes) -> None:
    """Its keys, shares and sealed halves would be those of every device that has none."""
    params, me = Params(TrustPolicy(), 2, 20, 5, 1), "d000"
    with pytest.raises(ValueError, match="32 bytes"):
        client.advertise(params, SID, me, IDENTITIES[me].secret, entropy)
    leader, helper = (two_server.server_pair(root(n)).public for n in (1, 2))
    body, head = np.zeros(5, np.uint32), np.zeros(1, np.uint64)
    with pytest.raises(ValueError, match="32 bytes"):
        two_server.split(params, SID, me, IDENTITIES[me].secret, leader, helper, body, head, entropy)
