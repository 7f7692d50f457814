"""A device that floods the mailbox of a masked session: the deadline of a step holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from invited import MemoryLog, decided, invitation
from toy_recipe import make_recipe

from edgewise.core import frame
from edgewise.core.keys import derive, root
from edgewise.core.vector import Buffer, Spec
from edgewise.drivers.simulation.keys import simulated_trust
from edgewise.engine.aggregation import aggregation
from edgewise.engine.checkpoint import Standing
from edgewise.engine.loop import receive
from edgewise.engine.open_round import OpenRound
from edgewise.engine.ports import Arrived, Sent
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan
from edgewise.secagg import client

MOST = 200_000  # A loop that does not end is stopped after this many frames.


class Endless(Exception):
    """Error of a loop that does not end."""


@dataclass
class Flood:
    """Mailbox with the keys of a cohort, followed by nothing but rubbish of one device."""

    script: list[Arrived]
    clock: float = 0.0
    read: int = 0
    sent: list[str] = field(default_factory=list)

    def now_s(self) -> float:
        return self.clock

    def publish(self, blobs: Sequence[Buffer]) -> Sequence[str]:
        return ()

    def send(self, to: str, raw: bytes) -> None:
        self.sent.append(to)

    def resume(self, sent: Sequence[Sent], at_s: float) -> None:
        raise AssertionError("nothing was logged")

    def close_round(self, keep: object = ()) -> None:
        pass

    def receive(self, timeout_s: float) -> Arrived:
        if self.script:
            return self.script.pop(0)
        self.clock, self.read = self.clock + 0.01, self.read + 1
        if self.read > MOST:
            raise Endless
        return Arrived("d0", b"rubbish", self.clock)


@pytest.mark.slow
def test_a_step_of_secure_aggregation_ends_at_its_deadline_under_a_flood() -> None:
    stages = [{"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}]
    recipe = make_recipe({"privacy": "hidden", "merge": {"kind": "secure_sum"}, "stage": stages, "metrics": "none"})
    plan = compile_plan(recipe, Spec.of([("a", (5,), "float32")]), 12, BUILT_IN)
    trust, invite = simulated_trust(plan.key), invitation(plan)
    names, script = [f"d{i}" for i in range(12)], []
    for device in names:
        entropy = derive(root(2), device)
        _, raw = client.advertise(plan.secagg(0), plan.session(invite), device, trust.identity(device), entropy)
        script.append(Arrived(device, frame.dump(frame.Step(run=plan.run, round=0, device=device, body=raw)), 0.0))
    mailbox, log, told = Flood(script), MemoryLog(), list[object]()
    facts = decided(plan, standings=dict.fromkeys(names, Standing()), trust=trust)
    sums = aggregation(facts, trust, b"", None)
    open_round = OpenRound(facts, mailbox, log, sums, lambda: None, told.append, lambda: 0.0)
    open_round.begin(None)
    receive(mailbox, open_round)
    assert open_round.closed.code == "E-SECAGG-FEW"
    assert mailbox.clock <= plan.sampling.deadline_s + 1.0
    assert len(log.records) == 12 + 1  # The flood is not logged.
