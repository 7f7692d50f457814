"""Reports of a device that lies and then vanishes: the round reports the lie."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from invited import MemoryLog, decided, invitation
from toy_recipe import make_recipe

from edgewise.core import frame
from edgewise.core.keys import derive, root
from edgewise.core.vector import Buffer, Spec
from edgewise.crypto import sign
from edgewise.drivers.simulation.keys import simulated_trust
from edgewise.engine.aggregation import aggregation
from edgewise.engine.checkpoint import Standing
from edgewise.engine.loop import receive
from edgewise.engine.open_round import OpenRound
from edgewise.engine.ports import Arrived, Sent
from edgewise.engine.round_states import Closed
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan
from edgewise.plan.plan import Plan
from edgewise.secagg import client, messages

NAMES = [f"d{i:02d}" for i in range(12)]
LIAR = "d03"


class Devices:
    """Mailbox of twelve devices. ``LIAR`` deals junk to all, and answers fewer than ``leaves`` messages."""

    def __init__(self, plan: Plan, leaves: int) -> None:
        self.plan, self.leaves, self.trust = plan, leaves, simulated_trust(plan.key)
        self.invite, self.params = invitation(plan), plan.secagg(0)
        self.states: dict[str, client.State] = {}
        self.mail: deque[tuple[str, bytes]] = deque()
        self.clock, self.told = 0.0, 0

    def now_s(self) -> float:
        return self.clock

    def close_round(self, keep: object = ()) -> None:
        pass

    def keys(self, device: str) -> frame.Step:
        update = np.zeros(self.params.dim, np.uint32), np.zeros(self.params.heads, np.uint64)
        sid, identity = self.plan.session(self.invite), self.trust.identity(device)
        entropy = derive(root(2), device)
        self.states[device], raw = client.start(self.params, sid, device, identity, *update, entropy)
        return frame.Step(run=self.plan.run, round=0, device=device, body=raw)

    def publish(self, blobs: Sequence[Buffer]) -> Sequence[str]:
        return ()

    def resume(self, sent: Sequence[Sent], at_s: float) -> None:
        raise AssertionError("nothing was logged")

    def send(self, to: str, raw: bytes) -> None:
        step = frame.from_server(raw, len(raw))
        if isinstance(step, frame.Invite):
            self.mail.append((to, frame.dump(self.keys(to))))
            return
        assert isinstance(step, frame.Step)
        self.told += to == LIAR
        if to == LIAR and self.told >= self.leaves:
            return
        self.states[to], answer = client.step(self.params, self.states[to], step.body, self.trust.registry)
        message = messages.load_secagg_message(answer)
        if to == LIAR and isinstance(message, messages.SharesMessage):
            boxes = dict.fromkeys(message.boxes, bytes(messages.BOX_BYTES))
            roster = self.states[to].roster  # type: ignore[union-attr]
            said = messages.shares_digest(roster, to, messages.boxes_digest(boxes))
            signature = sign.sign(self.trust.identity(to), said)
            answer = messages.dump(messages.SharesMessage(boxes=boxes, signature=signature))
        self.mail.append((to, frame.dump(msgspec.structs.replace(step, body=answer))))

    def receive(self, timeout_s: float) -> Arrived | None:
        if not self.mail:
            self.clock += timeout_s
            return None
        device, raw = self.mail.popleft()
        return Arrived(device, raw, self.clock)


def play(leaves: int) -> tuple[Closed, list[str]]:
    stages = [{"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}]
    recipe = make_recipe({"privacy": "hidden", "merge": {"kind": "secure_sum"}, "stage": stages, "metrics": "none"})
    plan = compile_plan(recipe, Spec.of([("a", (5,), "float32")]), len(NAMES), BUILT_IN)
    devices, charged, told = Devices(plan, leaves), list[str](), list[object]()
    facts = decided(plan, standings=dict.fromkeys(NAMES, Standing()), trust=devices.trust)
    sums, charge = aggregation(facts, devices.trust, b"", None), lambda: charged.append("charged")
    open_round = OpenRound(facts, devices, MemoryLog(), sums, charge, told.append, lambda: 0.0)
    open_round.begin(None)
    receive(devices, open_round)
    return open_round.closed, charged


@pytest.mark.slow
def test_a_liar_that_vanishes_is_reported_as_one_and_charged_for_only_where_it_stayed() -> None:
    for leaves, charges in (
        (2, 0),
        (3, 1),
        (4, 1),
    ):  # before its update, its signature, its shares
        closed, charged = play(leaves)
        assert closed.code == "E-SECAGG-FEW"
        assert closed.lost == ((LIAR, "E-SHARE"),)
        assert len(charged) == charges


def test_a_liar_that_stays_is_flagged_in_the_sum() -> None:
    closed, charged = play(9)
    assert not closed.code
    assert closed.flagged == ((LIAR, "E-SHARE"),)
    assert set(closed.accepted) == set(NAMES)
    assert charged
