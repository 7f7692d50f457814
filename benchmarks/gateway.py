"""The second server of shared sums: in the coordinator's process, and as a gateway in its own over TLS.

    python benchmarks/gateway.py [--devices 16,50] [--dim 1048576] [--rounds 5]

What a coordinator asks of it in one round: the invitation, a ticket of each device, and the batch. Devices seal their
reports before the clock starts. The gateway is a process of `edgewise gateway serve`; every step is on its disk before
it is answered. In-process and gateway alternate. No bar: it says what the second operator costs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench
import numpy as np

from edgewise.apps.gateway.start import join
from edgewise.apps.server.start import HttpServer
from edgewise.core import frame, vector
from edgewise.core.keys import derive, root
from edgewise.core.vector import Spec
from edgewise.crypto import sign
from edgewise.drivers.fleet import roster
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http.allowed import Allowed
from edgewise.drivers.http.identity import key_fingerprint
from edgewise.drivers.http.remote_helper import RemoteHelper
from edgewise.drivers.simulation.local_helper import LocalHelper
from edgewise.engine.ports import Helper
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.facts import Instance
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import from_plain
from edgewise.secagg import two_server

RECIPE: dict[str, Any] = {
    "name": "gateway",
    "privacy": "hidden",
    "merge": {"kind": "shared_sum"},
    "round": {"rounds": 1000, "minimum": 0.5},
    "trust": {"malicious_fraction": 0.0},
    "data": {"source": "plays", "partition": "iid"},
}


def plan_of(server: bytes, listing: bytes, devices: int, dim: int) -> Plan:
    """The plan of a run of this server."""
    recipe = from_plain({**RECIPE, "data": {**RECIPE["data"], "devices": devices}}, "the benchmark")
    instance = Instance(server=server.hex(), nonce="00" * 32, roster=vector.digest(listing))
    return compile(recipe, Spec.of([("w", (dim,), "float32")]), devices, BUILT_IN, None, instance)


def invitation(plan: Plan, round: int) -> frame.Invite:
    """An invitation to a round."""
    return frame.Invite(
        run=plan.run, round=round, spec=plan.spec.digest(), model="0" * 64, public=plan.public(round), accepted=None,
        deadline_s=60.0, rule=plan.rule(round), nonce=derive(root(1), round),
    )  # fmt: skip


class Cohort:
    """Devices whose keys are known."""

    def __init__(self, devices: int) -> None:
        pairs = [sign.pair(derive(root(2), i)) for i in range(devices)]
        self.pairs = {key_fingerprint(pair.public): pair for pair in pairs}
        self.listing = roster.dump([pair.public for pair in pairs])
        self.leader = two_server.server_pair(derive(root(2), "leader"))

    def key(self, device: str) -> bytes | None:
        """The public key of a device."""
        return self.pairs[device].public if device in self.pairs else None

    def tickets(self, plan: Plan, told: frame.Invite, key: bytes) -> list[bytes]:
        """What the helper gets of their reports."""
        params, context = plan.secagg(told.round), plan.session(told)
        leader, made = two_server.lead_two_servers(params, context, self.leader.secret, self.key), []
        body = np.zeros(params.dim, np.uint32)
        for device, pair in self.pairs.items():
            raw = two_server.split(
                params, context, device, pair.secret, self.leader.public, key, body,
                np.zeros(params.heads, np.uint64), derive(root(3), device, told.nonce),
            )  # fmt: skip
            made.append(two_server.dump_ticket(two_server.open_share_report(leader, device, raw)[0]))
        return made


def played(helper: Helper, told: frame.Invite, tickets: list[bytes], devices: list[str]) -> tuple[float, float]:
    """Seconds of a round's reports, and of its batch."""
    begun = time.perf_counter()
    helper.begin(told)
    assert [helper.admit(ticket) for ticket in tickets] == [None] * len(tickets)
    middle = time.perf_counter()
    helper.open(devices)
    return middle - begun, time.perf_counter() - middle


def measured(folder: Path, devices: int, dim: int, rounds: int) -> dict[str, float]:
    """Medians over rounds."""
    cohort = Cohort(devices)
    with HttpServer(folder / "server") as server:
        join(server.url, server.token(Grant("gateway", approved=True)), folder / "gateway").close()
        me = server.service.identity
    Allowed(folder / "gateway").add(cohort.pairs)
    plan = plan_of(me.public, cohort.listing, devices, dim)
    near = two_server.server_pair(derive(root(2), "helper"))
    command = [sys.executable, "-m", "edgewise.apps.cli.main", "gateway", "serve", str(folder / "gateway")]
    child = subprocess.Popen([*command, "--listen", "127.0.0.1:0", "--json"], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        told = json.loads(child.stdout.readline())
        local, names = LocalHelper(plan, near.secret, cohort.key), sorted(cohort.pairs)
        times: dict[str, list[tuple[float, float]]] = {"in process": [], "gateway": []}
        with RemoteHelper.connect(told["gateway"], told["url"], me, plan, cohort.listing) as far:
            for round in range(rounds + 1):
                invite = invitation(plan, round)
                for name, helper, key in (("in process", local, near.public), ("gateway", far, far.key)):
                    spent = played(helper, invite, cohort.tickets(plan, invite, key), names)
                    if round:  # the first one imports, compiles and fills caches
                        times[name].append(spent)
    finally:
        child.terminate()
        child.communicate()
    ticket = len(cohort.tickets(plan, invitation(plan, 0), near.public)[0])
    params = plan.secagg(0)
    found: dict[str, float] = {"devices": devices, "dim": dim, "bits": params.bits, "ticket_bytes": ticket}
    found["share_bytes"] = len(two_server.dump_share(local.open(names)))
    for name, spent in times.items():
        found[f"{name}: ms a report"] = 1e3 * float(np.median([a for a, _ in spent])) / devices
        found[f"{name}: ms for the batch"] = 1e3 * float(np.median([b for _, b in spent]))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="16,50")
    parser.add_argument("--dim", type=int, default=2**20)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    results = []
    for devices in map(int, asked.devices.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            results.append(measured(Path(folder), devices, asked.dim, asked.rounds))
        for name, value in results[-1].items():
            print(f"{name:32} {value:12,.2f}")
        print()
    bench.say(benchmark="gateway", rounds=asked.rounds, machine=bench.machine(), results=results)


if __name__ == "__main__":
    main()
