"""A coordinator that dies in a phase of a hidden round over HTTPS, and another one that goes on in that phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from enrolled_toys import Toy, played, working
from played import play
from served import joined, running

from edgewise.core import events
from edgewise.drivers.fleet import mailboxes
from edgewise.drivers.http.cohort import HttpCohort
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine.open_round import OpenRound

HIDDEN: dict[str, Any] = {
    "privacy": "hidden",
    "metrics": "none",
    "stage": [{"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}],
    "trust.malicious_fraction": 0.0,
    "round.minimum": 0.6,
    "round.rounds": 1,
    "round.deadline_s": 60.0,
}
PHASES = [
    ("secure_sum", "Collecting"),
    ("secure_sum", "Sharing"),
    ("secure_sum", "Masking"),
    ("secure_sum", "Signing"),
    ("secure_sum", "Unmasking"),
    ("shared_sum", "Collecting"),
]


def phases(opened: OpenRound) -> list[str]:
    groups = getattr(opened.state, "groups", ())
    return [type(opened.state).__name__, *(type(group.state).__name__ for group in groups)]


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.parametrize(("kind", "phase"), PHASES)
def test_a_coordinator_goes_on_in_the_phase_that_the_last_one_died_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, phase: str
) -> None:
    overrides, out = {**HIDDEN, "merge": {"kind": kind}}, tmp_path / "out"
    with running(tmp_path) as server:
        links = [joined(server, tmp_path / f"home-{i}") for i in range(4)]
        monkeypatch.setenv("TOY_NAMES", ",".join(link.name for link in links))
        expected, *_ = play(tmp_path / "simulated", {"data.devices": 4, **overrides})
        toy = Toy.of([link.name for link in links], overrides)
        told: list[events.AnyEvent] = []
        with working(links, toy, tmp_path):
            with RunStore(out) as store:
                store.create(toy.plan.run, "toy", toy.plan.recipe.resolved(), {"initial_sha256": ""})
                server.service.database.write(lambda c: mailboxes.admit(c, toy.plan.run, toy.trainer.devices()))
                cohort = HttpCohort(server.service, toy.plan.run, toy.plan.frame_limit_bytes)
                coordinator = toy.coordinator(cohort, store, told.append)
                opened = coordinator.open(coordinator.begin(toy.trainer.initial()))
                taken = 0
                while phase not in phases(opened) or taken < 2:
                    item = cohort.receive(30.0)
                    assert item is not None, f"no device answers in {phases(opened)}"
                    opened.take(item)
                    taken = taken + 1 if phase in phases(opened) else 0
            assert phase in phases(opened)
            assert played(server, toy, out, told.append) == expected
        for link in links:
            link.close()
    trained = [e for e in told if isinstance(e, events.RoundFinished)]
    assert [(r.met, r.accepted) for r in trained] == [(True, 4)]
