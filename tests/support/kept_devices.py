"""Rounds of masks on devices that are made anew from their files, and driven by a server that the test plays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from weakref import finalize

from invited import invitation
from toy import ToyTrainer
from toy_recipe import make_recipe

from edgewise.core import frame, vector
from edgewise.drivers.simulation.keys import simulated_root, simulated_secrets, simulated_trust
from edgewise.drivers.storage.device_store import FileDevices
from edgewise.drivers.workers.devices import Devices
from edgewise.drivers.workers.held_models import Downloads
from edgewise.engine.device_state import InSecAgg
from edgewise.engine.owner_budget import OwnerBudget
from edgewise.engine.trainer import registered
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.compile import compile
from edgewise.secagg import events, server

GRID = [{"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}]
MASKED: Mapping[str, Any] = {
    "privacy": "hidden", "metrics": "none", "merge": {"kind": "secure_sum"}, "stage": [{"kind": "feedback"}, *GRID],
    "data.devices": 5, "round.minimum": 0.6, "round.rounds": 2, "compare.local_only": False,
    "compare.centralised": False,
}  # fmt: skip


class Round:
    """Devices that are made anew, from their files, whenever ``restarts`` says so. Then they hear each frame twice, as
    from a server that does not know that it was answered, and answer it with the same bytes.

    Args:
        budget: what their owner allows over all runs. seen: names of the states in which a frame was heard.
    """

    def __init__(
        self,
        folder: Path,
        restarts: Callable[[], bool] = lambda: True,
        settings: Mapping[str, Any] = MASKED,
        budget: OwnerBudget | None = None,
    ) -> None:
        folder.mkdir()
        recipe = make_recipe({**settings})
        self.folder, self.restarts, self.trainer, self.budget = folder, restarts, ToyTrainer(recipe), budget
        self.names, self.model = self.trainer.devices(), self.trainer.initial()
        self.plan = compile(recipe, self.trainer.spec, len(self.names), with_extensions(["toy"]))
        root = simulated_root(self.plan, "", {})
        self.trust, self.secrets = simulated_trust(root), partial(simulated_secrets, self.plan, root)
        self.seen: set[str] = set()
        self._closes: finalize | None = None
        self.devices = self.made()

    def made(self) -> Devices:
        """The devices, as after a restart."""
        if self._closes is not None:
            self._closes()
        self.store = FileDevices(self.folder, self.plan.run)
        self._closes = finalize(self, self.store.close)
        downloads = Downloads(self.plan.spec.dim, self.plan.downlink)
        downloads.put(vector.digest(vector.to_bytes(self.model)), vector.to_bytes(self.model))
        return Devices(
            self.plan, registered(self.trainer), self.store, downloads, self.trust, self.secrets, budget=self.budget
        )

    def said(self, device: str, message: frame.Message) -> frame.Message | None:
        """A device's answer, None where it says nothing."""
        if self.restarts():
            self.devices = self.made()
        state = self.store.load(device)
        self.seen.add(type(state.client if isinstance(state, InSecAgg) else state).__name__)
        raw = self.devices.answer(device, frame.dump(message)).frame
        if raw is not None and self.restarts() and isinstance(self.store.load(device), InSecAgg):
            assert self.made().answer(device, frame.dump(message)).frame == raw
        return None if raw is None else frame.load(raw)

    def answer(self, device: str, message: frame.Message) -> frame.Message:
        """The same of a device that says something."""
        answer = self.said(device, message)
        assert answer is not None
        return answer

    def invite(self, number: int, nonce: int | None = None) -> frame.Invite:
        """The invitation to a round. ``nonce``: of another attempt at it."""
        drawn = bytes([number if nonce is None else nonce]) * 32
        return invitation(self.plan, number, self.model, accepted=number - 1 if number else None, nonce=drawn)

    def play(
        self, number: int, nonce: int | None = None, lost: Callable[[str, server.State], bool] = lambda *_: False
    ) -> server.State:
        """A round to its end. ``lost``: whether a device's next answer does not come."""
        message, mail = self.invite(number, nonce), list[tuple[str, bytes]]()
        session = server.SecAggSession(self.plan.secagg(number), self.plan.session(message), self.trust.registry)
        state: server.State = server.start(session)

        def feed(event: events.Event) -> None:
            nonlocal state
            state, effects = server.step_secagg_server(state, event)
            mail.extend((e.device, e.raw) for e in effects if isinstance(e, events.SecAggSend))

        for device in self.names:
            feed(events.SecAggReceived(device, self.answer(device, message).body))  # type: ignore[union-attr]
        feed(events.SecAggStepClosed())
        while mail:
            device, body = mail.pop(0)
            if not lost(device, state):
                step = frame.Step(run=self.plan.run, round=number, device=device, body=body)
                feed(events.SecAggReceived(device, self.answer(device, step).body))  # type: ignore[union-attr]
            if not mail and not isinstance(state, server.Released | server.Aborted):
                feed(events.SecAggStepClosed())
        return state
