"""A gateway as the second server of shared sums: its own process, plan, list of devices, and memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from enrolled_toys import Toy, helped_by, played, working
from played import play
from served import joined, running

from edgewise.apps.gateway.start import Gateway, join
from edgewise.apps.server.start import Server
from edgewise.core import events
from edgewise.drivers.fleet.members import Grant

SHARES: dict[str, Any] = {
    "privacy": "hidden",
    "merge": {"kind": "shared_sum"},
    "stage": [{"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}],
    "trust.malicious_fraction": 0.0,
    "round.minimum": 0.6,
    "round.rounds": 2,
    "round.deadline_s": 60.0,
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path) as made:
        yield made


def gateway(server: Server, folder: Path) -> Gateway:
    join(server.url, server.token(Grant("gateway", approved=True)), folder).close()
    return Gateway(folder)


@pytest.mark.slow
def test_a_run_with_a_gateway_gives_the_simulators_model(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = [joined(server, tmp_path / f"home-{i}") for i in range(4)]
    names = [link.name for link in links]
    monkeypatch.setenv("TOY_NAMES", ",".join(names))
    expected, *_ = play(tmp_path / "simulated", {"data.devices": 4, **SHARES})
    with gateway(server, tmp_path / "gateway") as second:
        second.allowed.add(names)
        toy = Toy.of(names, SHARES, server.service.identity)
        told: list[events.AnyEvent] = []
        with (
            helped_by(toy, server, second.url, second.name) as (helped, helper),
            working(links, helped, tmp_path),
        ):
            assert played(server, helped, tmp_path / "out", told.append, helper=helper) == expected
    finished = [e for e in told if isinstance(e, events.RoundFinished)]
    assert [(r.met, r.accepted) for r in finished] == [(True, 4)] * 2
    for link in links:
        link.close()
