"""The toy federation on enrolled devices: its coordinator over a server, and its devices as threads or processes.

As a program it is one device, until it is killed, or the server of a run (OVERRIDES: TOML keys as JSON):

    python enrolled_toys.py device HOME OVERRIDES
    python enrolled_toys.py server FOLDER OVERRIDES PORT

The simulator's entropy is injected here, by the port of ``Devices``, so that both drivers give the same bytes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

from toy import ToyTrainer
from toy_recipe import make_recipe

from edgewise.apps.server.start import HttpServer
from edgewise.core import events, vector
from edgewise.core.keys import Key
from edgewise.drivers.fleet import mailboxes, members, roster
from edgewise.drivers.http.attend import RunPart, attend
from edgewise.drivers.http.cohort import SILENCE_S, HttpCohort
from edgewise.drivers.http.link import Link
from edgewise.drivers.http.remote_helper import RemoteHelper
from edgewise.drivers.http.share_keys import HELPER, checked_share_key
from edgewise.drivers.simulation.keys import (
    simulated_entropy,
    simulated_root,
    simulated_sampling,
    simulated_secrets,
    simulated_servers,
    simulated_trust,
)
from edgewise.drivers.simulation.local_helper import LocalHelper
from edgewise.drivers.storage.device_store import FileDevices
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers.devices import Devices
from edgewise.drivers.workers.held_models import Downloads
from edgewise.engine.checkpoint import Checkpoint
from edgewise.engine.coordinator import Coordinator
from edgewise.engine.ports import Cohort, Helper, Trust
from edgewise.engine.trainer import registered
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.facts import Instance
from edgewise.plan.plan import Plan


@dataclass(frozen=True)
class Toy:
    """The plan of a toy run, and what its simulation would draw from. ``names``: of the devices."""

    plan: Plan
    trainer: ToyTrainer
    root: Key = field(repr=False)
    trust: Trust = field(repr=False)

    @classmethod
    def of(cls, names: Sequence[str], overrides: Mapping[str, Any], server: HttpServer | None = None) -> Toy:
        """``server``: whose run it is; None for one that nobody signs."""
        recipe = make_recipe({"data.devices": len(names), **overrides})
        trainer = ToyTrainer(recipe, names)
        instance = None
        if server is not None:
            public, keys = server.service.identity.public.hex(), vector.digest(listing(server, names))
            instance = Instance(server=public, nonce="00" * 32, roster=keys)
        plan = compile(recipe, trainer.spec, len(names), BUILT_IN, instance=instance)
        root = simulated_root(plan, recipe.world, trainer.describe())
        return cls(plan, trainer, root, simulated_trust(root, names))

    def part(self, folder: Path) -> RunPart:
        """State that one device needs to answer."""
        downloads = Downloads(self.plan.spec.dim, self.plan.downlink)
        store = FileDevices(folder, self.plan.run)
        secrets = partial(simulated_secrets, self.plan, self.root)
        trainer = registered(self.trainer)
        devices = Devices(self.plan, trainer, store, downloads, self.trust, secrets)
        return RunPart(devices, downloads, folder / "blobs")

    def coordinator(
        self, cohort: Cohort, store: RunStore, tell: Callable[[events.AnyEvent], None], second: Helper | None = None
    ) -> Coordinator:
        """A run over a cohort. ``second``: the second server; None: one in this process."""
        trust, (leader, helper) = self.trust, simulated_servers(self.root)
        return Coordinator(
            plan=self.plan, population=self.trainer.devices(), cohort=cohort, store=store, tell=tell,
            now_s=time.perf_counter, entropy=partial(simulated_entropy, self.plan, self.root),
            sampling_key=simulated_sampling(self.plan, self.root), trust=trust, secret=leader.secret,
            helper=second or LocalHelper(self.plan, helper.secret, trust), evaluator=Measured(self.trainer),
        )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Measures models on the server: no frame of an evaluation crosses the network."""

    trainer: ToyTrainer

    def evaluate(self, model: str, round: int, params: Any) -> events.Evaluated:
        held = {device: self.trainer.evaluate(device, params) for device in self.trainer.devices()}
        nll, tokens = {d: h.nll for d, h in held.items()}, {d: h.tokens for d, h in held.items()}
        return events.Evaluated(round=round, model=model, nll=nll, tokens=tokens, seconds=0.0)


def played(
    server: HttpServer,
    toy: Toy,
    out: Path,
    tell: Callable[[events.AnyEvent], None] = lambda _: None,
    silence_s: float = SILENCE_S,
    helper: Helper | None = None,
) -> dict[int, str]:
    """Play, or go on with, a run over a server; returns the digests of its models by the rounds played."""
    with RunStore(out) as store:
        if store.run() is None:
            store.create(toy.plan.run, "toy", toy.plan.recipe.resolved(), {"initial_sha256": ""})
        server.service.database.write(lambda c: mailboxes.admit(c, toy.plan.run, toy.trainer.devices()))
        cohort = HttpCohort(server.service, toy.plan.run, toy.plan.frame_limit_bytes, silence_s)
        coordinator = toy.coordinator(cohort, store, tell, helper)
        checkpoint: Checkpoint = coordinator.begin(toy.trainer.initial())
        coordinator.run(checkpoint)
        return store.models()


@contextmanager
def helped_by(
    toy: Toy, server: HttpServer, url: str, name: str, patience_s: float = 60.0
) -> Iterator[tuple[Toy, RemoteHelper]]:
    """The run with a gateway as its second server. Devices sign with the keys by which they are enrolled."""
    keys = listing(server, toy.trainer.devices())
    with RemoteHelper.connect(name, url, server.service.identity, toy.plan, keys, patience_s) as helper:
        registry = roster.parse_roster(keys, toy.plan.facts.population).get
        trust = replace(
            toy.trust, registry=registry, helper=checked_share_key(helper.statement, HELPER, toy.plan.run, name)
        )
        yield replace(toy, trust=trust), helper


def listing(server: HttpServer, names: Sequence[str]) -> bytes:
    """The roster of members of a server."""
    with server.service.database.read() as c:
        found = [members.find(c, name) for name in names]
    return roster.dump([member.public for member in found if member is not None])


def signing(toy: Toy, link: Link) -> Toy:
    """The run as a device has it that signs with its own enrolled key, where the run has a gateway."""
    if toy.plan.facts.instance is None:
        return toy
    return replace(toy, trust=replace(toy.trust, identity=lambda _: link.identity.secret))


@contextmanager
def working(links: Sequence[Link], toy: Toy, folder: Path) -> Iterator[None]:
    """Devices as threads of this process."""
    stop, threads, stores = Event(), [], []
    for link in links:
        home = folder / link.name
        home.mkdir(parents=True, exist_ok=True)
        part = signing(toy, link).part(home)
        stores.append(part.devices.store)
        arguments = (link, lambda run, part=part: part, stop.is_set, 0.2)
        threads.append(Thread(target=attend, args=arguments, daemon=True))
        threads[-1].start()
    try:
        yield
    finally:
        stop.set()
        for link in links:
            link.patience_s = 0.0  # the server may be gone
        for thread in threads:
            thread.join()
        for store in stores:
            store.close()


def serve(folder: Path, port: int, toy: Toy) -> None:
    """Be the server of a run: play it, or go on with it, and tell on standard output what happens."""

    def tell(event: events.AnyEvent) -> None:
        print(events.to_json(event), flush=True)

    with HttpServer(folder / "server", port=port) as server:
        print(json.dumps({"url": server.url}), flush=True)
        print(json.dumps({"models": played(server, toy, folder / "out", tell)}), flush=True)


if __name__ == "__main__":
    role, place, overrides = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    me = Toy.of(os.environ["TOY_NAMES"].split(","), overrides)
    if role == "server":
        serve(place, int(sys.argv[4]), me)
    else:
        with Link(place) as own:
            mine = me.part(place)
            attend(own, lambda run: mine, until=lambda: False, wait_s=2.0)
