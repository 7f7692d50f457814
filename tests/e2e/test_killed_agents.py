"""A real agent that is killed by SIGKILL at each of its durable operations, again and again within one run over HTTPS.

Its randomness is the system's: an update that it encoded a second time would have other noise, and other bytes.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kit import available
from long import LONG
from mortal_agent import MortalAgent
from owned import ended, owned, submitted, working
from served import joined

from edgewise.apps.gateway.start import Gateway, join
from edgewise.apps.server.sharing import Address
from edgewise.apps.server.start import HttpServer
from edgewise.drivers.fleet import mailboxes
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http.link import Link

SHIM = Path(__file__).parents[1] / "faults" / "shim.c"
LAST, STEP = 60, 1 if LONG else 15  # durable operations of one life of an agent, and how far apart it is killed
DP: dict[str, Any] = {
    "metrics": "sum", "eval.on_devices": True, "stage": [],
    "dp.noise_multiplier": 4.0, "dp.delta": 1e-5, "dp.clip_l2": 4.0,
    "round.rounds": LAST // STEP + 3,  # a death costs it a round at most
     "round.deadline_s": 900.0, "round.minimum": 0.6,
}  # fmt: skip
HIDDEN: dict[str, Any] = {**DP, "privacy": "distributed_dp", "trust.malicious_fraction": 0.0}
RUNS = {
    "plain": {**DP, "privacy": "local_dp", "merge": {"kind": "sum"}},
    "masks": {**HIDDEN, "merge": {"kind": "secure_sum"}},
    "shares": {**HIDDEN, "merge": {"kind": "shared_sum"}},
}
POLICY = """[privacy]
words = ["local_dp", "distributed_dp"]
cohort = 1
gateway = "{gateway}"
[budget]
epsilon = 1e4
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if why := available():
        pytest.skip(why)
    made = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", made, SHIM, "-ldl"], check=True)
    return made


@contextmanager
def federation(folder: Path, n: int) -> Iterator[tuple[HttpServer, list[Path]]]:
    """A server with its gateway, and the folders of devices that are enrolled."""
    with HttpServer(folder / "server") as first:
        join(first.url, first.token(Grant("gateway", approved=True)), folder / "gateway").close()
        port = first.port
    with (
        Gateway(folder / "gateway") as gateway,
        HttpServer(folder / "server", port=port, gateway=Address(gateway.name, gateway.url)) as server,
    ):
        homes = [owned(server, folder / f"home-{i}", POLICY.format(gateway=gateway.name)) for i in range(n)]
        for home in homes:
            with Link(home) as link:
                gateway.allowed.add([link.name])
        yield server, homes


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.parametrize("action", ["kill_after", "kill_torn"])
@pytest.mark.parametrize("name", RUNS)
def test_an_agent_that_dies_at_every_operation_contributes_once_and_draws_its_noise_once(
    tmp_path: Path, shim: Path, name: str, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    came, accept = defaultdict[tuple[str, int, str], set[bytes]](set), mailboxes.accept

    def seen(c: Any, message: Any, raw: bytes, digest: bytes, *more: Any) -> int:
        came[message.device, message.round, mailboxes.phase(message)].add(digest)
        return accept(c, message, raw, digest, *more)

    monkeypatch.setattr(mailboxes, "accept", seen)
    with federation(tmp_path, 4) as (server, (mortal, *others)), joined(server, tmp_path / "admin", "admin") as admin:
        run = submitted(server, admin, **RUNS[name])
        with MortalAgent(mortal, shim, action, STEP, LAST) as agent, working(*others, patience_s=60.0):
            assert ended(admin, run, within_s=3600.0 if LONG else 400.0) == "finished"
            deaths = agent.deaths
        events = admin.call("GET", f"/v1/runs/{run}/events")["events"]
        with Link(mortal) as link:
            me = link.name
    assert len(deaths) >= 3, "it was killed within the run"
    # Keys are drawn anew where a session begins anew: nothing of an update has left before.
    again = {key for key, found in came.items() if len(found) > 1 and key[2] != "step-advertise"}
    assert again == set(), "what left is never drawn again"
    counted = [event["round"] for event in events if event["event"] == "accepted" and event["device"] == me]
    assert len(counted) == len(set(counted)), "a contribution counts once"
    assert all(event["met"] for event in events if event["event"] == "round_finished")
    assert counted, "it takes part again"
