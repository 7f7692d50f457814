"""The devices of one process: each takes a frame of the server, trains where its machine asks for it, and answers.

For a simulation's host and for a real device alike; what they differ in is what they are given. Data and models stay
with the trainer, states with the store (``engine.ports.DeviceStore``), which has them before a frame leaves.

A trainer is foreign code: whatever it raises costs the device its part in the round, never the run. The server is told
the code and, of errors that are not edgewise's own, the name of the type; the traceback stays here, in the log
``edgewise``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import TypeVar

import numpy as np

from edgewise.codecs.wire import pack
from edgewise.core import frame
from edgewise.core.errors import BudgetError, DataError, DecodeError, EdgewiseError, StoreError, TrainingError
from edgewise.core.keys import Secrets
from edgewise.core.metric import BUILT_IN, HELD_OUT, HELD_SHARE
from edgewise.core.own_code import type_and_line
from edgewise.core.training import DeviceId, FitRequest, HeldOut, Update
from edgewise.drivers.workers.held_models import Downloads
from edgewise.drivers.workers.records import records
from edgewise.engine import admission, beacon_device, broadcast, device_events, device_state
from edgewise.engine import device as machine
from edgewise.engine.broadcast import STALE
from edgewise.engine.owner_budget import OwnerBudget
from edgewise.engine.ports import DeviceStore, Trust
from edgewise.engine.trainer import Registered
from edgewise.plan.plan import Plan

BEACON = b"beacon"  # stands for the nonce of an invitation
LOG = logging.getLogger("edgewise")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """A device's frame, None where it says nothing, and where its time went."""

    frame: bytes | None = field(repr=False)
    train_s: float = 0.0
    encode_s: float = 0.0


@dataclass(frozen=True)
class Devices:
    """What devices need to answer.

    Attributes:
        downloads: the blobs that the server has published, and the models that they make.
        secrets: (device, round, nonce of the invitation) -> the device's own randomness for this attempt.
        out_of_step: (device, round that the server names) -> the error to raise for a device whose codec memory is not
            of that round. None: it refuses the round with E-STALE and goes on with empty memory, as a real device does.
        budget: what each device's owner allows over all runs; None: no limit.
    """

    plan: Plan
    trainer: Registered
    store: DeviceStore
    downloads: Downloads
    trust: Trust
    secrets: Callable[[DeviceId, int, bytes | None], Secrets]
    out_of_step: Callable[[device_state.Idle, int | None], StoreError] | None = None
    budget: OwnerBudget | None = None

    def answer(
        self, device: DeviceId, raw: bytes, elapsed_s: float | Callable[[], float] = 0.0, up_mbit: float = inf
    ) -> Answer:
        """A device's answer to a frame; what must be kept of its state is in the store when this returns.

        Args:
            elapsed_s, up_mbit: as in ``engine.device.Trained``; a function is asked when the device has trained.
        Raises:
            DecodeError for a frame that no server sends. StoreError where a state cannot be read or kept.
        """
        message = frame.from_server(raw, self.plan.frame_limit_bytes)
        if isinstance(message, frame.Probe):
            return Answer(frame.dump(self._measured(device, message)))
        known = self._known(device)
        if isinstance(message, frame.Call | frame.Commitments):
            entropy = self.secrets(device, message.round, BEACON).session
            return self._sent(device, beacon_device.answer(self.plan, known, message, self.trust, entropy)[1])
        if isinstance(message, frame.Step):
            began = time.perf_counter()
            _, effects = machine.step(self.plan, known, device_events.Delivered(message), self.trust)
            effects = self._charged(known, effects)
            return self._sent(device, effects, encode_began_s=began)
        state, effects = machine.step(self.plan, known, self._invited(known, message), self.trust)
        request = next((effect.request for effect in effects if isinstance(effect, device_events.Train)), None)
        if request is None:
            if self.out_of_step and any(isinstance(effect, device_events.Save) for effect in effects):
                idle = known if isinstance(known, device_state.Idle) else known.idle
                raise self.out_of_step(idle, message.accepted)
            return self._sent(device, effects)
        self._kept(device, effects)
        began = time.perf_counter()
        # The machine gets the only reference, so that the update is gone before the frame is made.
        event = [self._trained(device, request, elapsed_s, up_mbit)]
        trained = time.perf_counter()
        _, effects = machine.step(self.plan, state, event.pop(), self.trust)
        effects = self._charged(state, effects)
        return self._sent(device, effects, train_s=trained - began, encode_began_s=trained)

    def wanted(self, device: DeviceId, invite: frame.Invite) -> tuple[str, ...]:
        """Digests of the blobs that an invitation names; none where the device will refuse it: nothing is fetched for a
        server's word. Raises StoreError as ``answer``."""
        return () if self._refused(self._known(device), invite) is not None else broadcast.downloads(invite)

    def _known(self, device: DeviceId) -> device_state.Kept:
        known = self.store.load(device) or device_state.join(self.plan, device)
        if self.budget is None or not self.plan.promise.leaves_once:
            return known
        return device_state.recalled(known, self.budget.last(device, self.plan))

    def _charged(
        self, state: device_state.State, effects: tuple[device_events.Effect, ...]
    ) -> tuple[device_events.Effect, ...]:
        """The effects of a step from ``state``, charged where an update leaves; or what follows where it may not."""
        try:
            for effect in effects:
                if isinstance(effect, device_events.Charge) and self.budget is not None:
                    self.budget.charge(state.device, self.plan, effect.round)
        except BudgetError as e:  # another run of this device has spent what was left since the invitation
            return machine.step(self.plan, state, device_events.Withheld(e.code, e.what), self.trust)[1]
        return effects

    def _kept(self, device: DeviceId, effects: Sequence[device_events.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, device_events.Save):
                self.store.save(device, effect.state)

    def _sent(
        self,
        device: DeviceId,
        effects: Sequence[device_events.Effect],
        train_s: float = 0.0,
        encode_began_s: float | None = None,
    ) -> Answer:
        encode_s = 0.0 if encode_began_s is None else time.perf_counter() - encode_began_s
        self._kept(device, effects)
        raw = next((effect.frame for effect in effects if isinstance(effect, device_events.Send)), None)
        return Answer(raw, train_s, encode_s)

    def _invited(self, state: device_state.Kept, invite: frame.Invite) -> device_events.Invited | device_events.Unready:
        """The invitation with what it names: the model by its snapshot or by the deltas, the last release's support.
        Nothing is looked up for an invitation that will be refused."""
        if (no := self._refused(state, invite)) is not None:
            return device_events.Unready(invite, *no)
        try:
            params = self.downloads.model(invite)
            if params is None:
                return device_events.Unready(
                    invite, STALE, "the deltas start from a model that this device no longer has"
                )
            support = None
            if most := self.plan.at(invite.round).encoded.announced:
                support = np.zeros(0, np.int64)
                if invite.support is not None:
                    support = pack.unpack_support(self.downloads.blob(invite.support), most, self.plan.layout.sent.dim)
            beacon = b"" if invite.draw is None else bytes(self.downloads.blob(invite.draw.beacon))
        except DecodeError as e:
            return device_events.Unready(invite, e.code, e.what)
        secrets = self.secrets(state.device, invite.round, invite.nonce)
        return device_events.Invited(invite, params, secrets, support, beacon)

    def _refused(self, state: device_state.Kept, invite: frame.Invite) -> admission.No | None:
        idle = state if isinstance(state, device_state.Idle) else state.idle
        if (no := admission.refused(self.plan, invite, idle.answered)) is not None:
            return no
        if self.budget and (reason := self.budget.refusal(state.device, self.plan, invite.round, idle.answered)):
            return admission.No("E-BUDGET", reason)
        return None

    def _trained(
        self, device: DeviceId, request: FitRequest, elapsed_s: float | Callable[[], float], up_mbit: float
    ) -> device_events.Trained | device_events.Failed:
        request = replace(request, rule=in_steps(self.trainer, self.plan, device, request.rule))
        update = guarded(device, partial(self._fitted, request))
        if isinstance(update, device_events.Failed):
            return update
        self._check_metrics(update)
        passed_s = elapsed_s() if callable(elapsed_s) else elapsed_s
        return device_events.Trained(update, passed_s, up_mbit, request.rule.steps)

    def _fitted(self, request: FitRequest) -> Update:
        """What training gives, with the held-out loss of the round's model where the plan asks for it and the trainer
        has not measured it by itself."""
        update = self.trainer.fit(request)
        asked = self.plan.evaluations.on_devices and HELD_OUT not in update.head
        if not asked:
            return update
        try:
            held = self.trainer.trainer.evaluate(request.device, request.params)
        except DataError:  # too little text for a hold-out: it trains all the same
            held = HeldOut(0.0, 0)
        loss, share = (held.nll / held.tokens, 1.0) if held.tokens else (0.0, 0.0)
        return replace(update, head={**update.head, HELD_OUT: loss, HELD_SHARE: share})

    def _check_metrics(self, update: Update) -> None:
        """Raises TrainingError(E-TRAIN) where a trainer gives other numbers than it says. With noise too: names follow
        from its code, and a device that sent zeros for it in every round would never be noticed."""
        who, names = type(self.trainer.trainer).__name__, set(self.plan.metrics.names)
        if lacks := sorted(names - update.head.keys()):
            raise TrainingError("E-TRAIN", f"{who}.fit gave no {lacks[0]} in its head, which travels in this run.")
        if odd := sorted(update.head.keys() - names - self.trainer.reported - BUILT_IN):
            what = f"{who}.fit gave {odd[0]} in its head, which {who}.metrics() does not name."
            raise TrainingError("E-TRAIN", what, "name it there, and declare it as [[metric]] in the recipe.")

    def _measured(self, device: DeviceId, probe: frame.Probe) -> frame.Measurement | frame.Refusal:
        run, number = probe.run, probe.round
        held: HeldOut | device_events.Failed
        if run != self.plan.run or not -1 <= number < self.plan.rounds:
            held = device_events.Failed(
                "E-FRAME", "the probe is for another run, or for a round that this one does not have"
            )
        else:
            blob, dim = probe.model, self.plan.spec.dim
            held = guarded(device, lambda: self.trainer.evaluate(device, self.downloads.snapshot(blob, dim)))
        if isinstance(held, device_events.Failed):
            return frame.Refusal(
                run=run, round=number, device=device, code=held.code, reason=frame.legible(held.reason)
            )
        return frame.Measurement(run=run, round=number, device=device, nll=held.nll, tokens=held.tokens)


def in_steps(trainer: Registered, plan: Plan, device: DeviceId, rule: frame.LocalRule) -> frame.LocalRule:
    """The rule as ``Trainer.fit`` takes it: passes over the device's records made into steps."""
    if not rule.epochs:
        return rule
    return rule.counted(records(trainer, device) or 0, plan.batch)  # of one that cannot be read, training says so


def guarded(device: DeviceId, work: Callable[[], T]) -> T | device_events.Failed:
    """What the trainer gives, or why it failed. Raises StoreError only."""
    try:
        return work()
    except StoreError:
        raise
    except EdgewiseError as e:
        if e.__cause__ is not None:
            LOG.warning("device %.60r: %s", device, e.code, exc_info=e)
        return device_events.Failed(e.code, e.what)
    except Exception as e:  # boundary: a trainer may raise anything, and its message may quote the device's text
        LOG.warning("device %.60r: local training failed", device, exc_info=e)
        return device_events.Failed("E-TRAIN", type_and_line(e))
