"""A message costs the same in a large cohort as in a small one: bytes and comparisons are counted, not seconds."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from cost import Name, allocated, per_step, traced
from session import ROOT, Session

from edgewise.core.keys import derive
from edgewise.crypto import sign
from edgewise.engine import round as machine
from edgewise.engine import round_states
from edgewise.secagg import messages, server, two_server
from edgewise.secagg.events import Event
from edgewise.secagg.params import Params, TrustPolicy

SMALL, LARGE, LAST = 64, 1024, 32


def answers(n: int) -> list[round_states.Event]:
    """Make the events of n devices. Every fourth is lost, half of these answer later, every eighth answers twice."""
    out: list[round_states.Event] = []
    for i in range(n):
        device = Name(f"d{i:05d}")
        if i % 4 == 0:
            out.append(round_states.Gone(device, 0, "dropped"))
        if i % 8 != 0:
            out.append(round_states.Usable(Name(device), 0))
        if i % 8 == 1:
            out.append(round_states.Usable(Name(device), 0))
    return out


def opened(n: int) -> round_states.State:
    return machine.start(0, frozenset(Name(f"d{i:05d}") for i in range(n)), round_states.RoundPolicy(n, 1, 9.0))[0]


@pytest.mark.slow
def test_the_round_machine_takes_the_same_per_message_in_any_cohort() -> None:
    def cost(n: int) -> tuple[float, float]:
        state = opened(n)

        def take(event: round_states.Event) -> None:
            nonlocal state
            state, _ = machine.step(state, event)

        events = answers(n)
        Name.compared = 0
        steps: list[Callable[[], None]] = [lambda event=event: take(event) for event in events[:-1]]  # type: ignore[misc]
        size = per_step(steps, LAST)
        assert isinstance(state, round_states.Collecting)
        assert len(state.accepted) == n - n // 8 - 1
        return size, Name.compared / len(events)

    (small, few), (large, many) = cost(SMALL), cost(LARGE)
    assert large <= 2 * small
    assert many <= 2 * few + 1


def test_every_state_of_a_large_round_stays_as_it_was() -> None:
    state, states, plain = opened(SMALL), [], []
    for event in answers(SMALL):
        states.append(state)
        plain.append((state.accepted, state.lost))
        state, _ = machine.step(state, event)
    assert [(s.accepted, s.lost) for s in states] == plain
    again = states[0]
    for event, stored in zip(answers(SMALL), states, strict=True):
        assert again == stored
        again, _ = machine.step(again, event)
    assert again == state
    fork, _ = machine.step(states[10], round_states.Usable("d00063", 0))
    assert fork != states[11]
    assert "d00063" in fork.accepted
    assert "d00063" not in states[11].accepted


@pytest.mark.slow
def test_two_servers_take_the_same_per_report_in_any_batch() -> None:
    params = Params(TrustPolicy(), 3, 20, 8, 1)
    context = messages.secagg_session_id("task", 0, "model", "config", bytes(32))
    lead_pair, helper_pair = (two_server.server_pair(derive(ROOT, who)) for who in ("leader", "helper"))
    identity = sign.pair(derive(ROOT, "one for all"))
    body, head = np.zeros(8, np.uint32), np.zeros(1, np.uint64)

    def cost(n: int) -> float:
        lead = two_server.lead_two_servers(params, context, lead_pair.secret, lambda device: identity.public)
        helper = two_server.HelperState(params, context, helper_pair.secret, lambda device: identity.public)

        def take(device: str, report: bytearray) -> None:
            nonlocal lead, helper
            ticket, share = two_server.open_share_report(lead, device, report)
            helper = two_server.admit_share_report(helper, ticket)
            lead = two_server.add_leader_share(lead, ticket, share)

        def steps() -> Iterator[Callable[[], None]]:
            for i in range(n):
                device = f"d{i:05d}"
                report = two_server.split(
                    params, context, device, identity.secret, lead_pair.public, helper_pair.public, body, head,
                    derive(ROOT, device),
                )  # fmt: skip
                yield lambda device=device, report=report: take(device, report)  # type: ignore[misc]

        size = per_step(steps(), LAST)
        assert len(lead.counted) == len(helper.seen) == len(helper.seeds) == n
        assert dataclasses.replace(lead).counted == lead.counted
        return size

    small, large = cost(SMALL), cost(4 * SMALL)
    assert large <= 2 * small


@pytest.mark.slow
def test_the_server_of_masks_takes_the_same_per_message_in_any_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Select keys and signatures, which have one size. Shares and masked updates name all neighbours."""
    plain = server.step_secagg_server

    def cost(n: int) -> dict[type, float]:
        bytes_of: dict[type, list[int]] = defaultdict(list)

        def step(state: server.State, event: Event) -> server.Out:
            out: list[server.Out] = []
            bytes_of[type(state)].append(allocated(lambda: out.append(plain(state, event))))
            return out[0]

        monkeypatch.setattr(server, "step_secagg_server", step)
        with traced():
            session = Session(n)
            assert isinstance(session.play(), server.Released)
        return {kind: statistics.median(sizes[n // 2 : n - 1]) for kind, sizes in bytes_of.items()}

    small, large = cost(8), cost(40)
    for kind in (server.Advertising, server.Signing):
        assert large[kind] <= 1.5 * small[kind], kind
