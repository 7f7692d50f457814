"""The devices of one process. Each takes a server's frame, trains where its machine asks for it, and answers.

A simulation's host and a real device use the same class with different parts. Data and models stay with the trainer.
States stay with the store (``engine.ports.DeviceStore``), which has them before a frame leaves.

A trainer is foreign code. Any error that it raises costs the device its part in the round and never stops the run. The
server learns the code of the error and, where the error is not edgewise's own, the name of its type. The traceback
stays on this machine, in the log ``edgewise``.
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
from edgewise.core.vector import Vector
from edgewise.drivers.workers.held_models import Downloads
from edgewise.drivers.workers.personal import beside
from edgewise.drivers.workers.records import in_steps
from edgewise.engine import admission, beacon_device, broadcast, device_events, device_state
from edgewise.engine import device as machine
from edgewise.engine.broadcast import STALE
from edgewise.engine.owner_budget import OwnerBudget
from edgewise.engine.ports import DeviceStore, Trust
from edgewise.engine.trainer import Registered
from edgewise.plan.plan import Plan

BEACON = b"beacon"  # takes the place of an invitation's nonce
LOG = logging.getLogger("edgewise")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """A device's answer and the time that it took. ``frame`` is None where the device sends nothing."""

    frame: bytes | None = field(repr=False)
    train_s: float = 0.0
    encode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Given:
    """A server's frame for a device. ``elapsed_s`` and ``up_mbit`` are those of ``Devices.answer``."""

    device: DeviceId
    frame: bytes = field(repr=False)
    elapsed_s: float | Callable[[], float] | None = None
    up_mbit: float = inf


@dataclass(frozen=True, slots=True)
class _Training:
    """A device that has taken an invitation and is about to train."""

    given: Given
    state: device_state.State
    request: FitRequest


@dataclass(frozen=True)
class Devices:
    """Answer a server's frames for devices.

    Attributes:
        downloads: the blobs that the server has published, and the models that follow from them.
        secrets: (device, round, nonce of the invitation) -> the device's own randomness for this attempt.
        out_of_step: (device, round that the server names) -> the error to raise for a device whose codec memory is of
            another round. None: the device refuses the round with E-STALE and continues with empty memory, as a real
            device does.
        budget: the owner's limits for each device over all runs; None: no limit.
        evaluates: whether the held-out loss of a round's model may leave. Otherwise zeros take its place, as on a
            device without held-out text.
    """

    plan: Plan
    trainer: Registered
    store: DeviceStore
    downloads: Downloads
    trust: Trust
    secrets: Callable[[DeviceId, int, bytes | None], Secrets]
    out_of_step: Callable[[device_state.Idle, int | None], StoreError] | None = None
    budget: OwnerBudget | None = None
    evaluates: bool = True

    def answer(
        self, device: DeviceId, raw: bytes, elapsed_s: float | Callable[[], float] | None = None, up_mbit: float = inf
    ) -> TimedAnswer:
        """Answer a frame for a device. When this returns, the store has every state that must last.

        Args:
            elapsed_s, up_mbit: as in ``engine.device.Trained``. A function is called when the device has trained.
        Raises:
            DecodeError: for a frame that no server sends.
            StoreError: where a state cannot be read or saved.
        """
        begun = self._begin(Given(device, raw, elapsed_s, up_mbit))
        return begun if isinstance(begun, TimedAnswer) else self._end(begun, partial(self.trainer.fit, begun.request))

    def answer_many(self, given: Sequence[Given]) -> list[TimedAnswer]:
        """Answer frames of several devices, in order. Those that train do so together, where the trainer can.

        States, memory and frames stay apart. A device's ``train_s`` is its share of the time. Raises as ``answer``.
        """
        begun = [self._begin(one) for one in given]
        waiting = [one.request for one in begun if isinstance(one, _Training)]
        began = time.perf_counter()
        fits = iter(self._fits(waiting))
        share_s = (time.perf_counter() - began) / max(1, len(waiting))
        return [one if isinstance(one, TimedAnswer) else self._end(one, next(fits), share_s) for one in begun]

    def _fits(self, requests: Sequence[FitRequest]) -> list[Callable[[], Update]]:
        """Train, and return for each request a function that gives its update or raises its error."""
        if len(requests) < 2:
            return [partial(self.trainer.fit, request) for request in requests]
        results: Sequence[Update | Exception]
        try:
            results = self.trainer.fit_many(requests)
        except Exception as e:  # boundary: a trainer is foreign code; each device reports the error
            results = [e] * len(requests)
        return [partial(_given_back, result) for result in results]

    def _begin(self, given: Given) -> TimedAnswer | _Training:
        """Answer a frame, or take the invitation in it and save the state before training."""
        device, raw = given.device, given.frame
        message = frame.from_server(raw, self.plan.frame_limit_bytes)
        if isinstance(message, frame.Probe):
            return TimedAnswer(frame.dump(self._measure(device, message)))
        known = self._load(device)
        if isinstance(message, frame.Call | frame.Commitments):
            entropy = self.secrets(device, message.round, BEACON).session
            return self._finish(device, beacon_device.answer(self.plan, known, message, self.trust, entropy)[1])
        if isinstance(message, frame.Step):
            began = time.perf_counter()
            _, effects = machine.step(self.plan, known, device_events.Delivered(message), self.trust)
            effects = self._charge(known, effects)
            return self._finish(device, effects, encode_began_s=began)
        state, effects = machine.step(self.plan, known, self._resolve(known, message), self.trust)
        request = next((effect.request for effect in effects if isinstance(effect, device_events.Train)), None)
        if request is None:
            if self.out_of_step and any(isinstance(effect, device_events.Save) for effect in effects):
                idle = known if isinstance(known, device_state.Idle) else known.idle
                raise self.out_of_step(idle, message.accepted)
            return self._finish(device, effects)
        self._save_states(device, effects)
        return _Training(given, state, replace(request, rule=in_steps(self.trainer, self.plan, device, request.rule)))

    def _end(self, training: _Training, fit: Callable[[], Update], spent_s: float = 0.0) -> TimedAnswer:
        """Take the update of ``fit`` and answer. ``spent_s`` are seconds of training before this call."""
        began = time.perf_counter()
        # The machine gets the only reference, so that the update is freed before the frame is made.
        event = [self._train(training, fit)]
        trained = time.perf_counter()
        _, effects = machine.step(self.plan, training.state, event.pop(), self.trust)
        effects = self._charge(training.state, effects)
        train_s = spent_s + trained - began
        return self._finish(training.given.device, effects, train_s=train_s, encode_began_s=trained)

    def wanted(self, device: DeviceId, invite: frame.Invite) -> tuple[str, ...]:
        """List the digests of the blobs that an invitation names.

        The list is empty where the device will refuse the invitation, so that a server cannot make it download
        anything. Raises StoreError as ``answer``.
        """
        return () if self._refusal(self._load(device), invite) is not None else broadcast.downloads(invite)

    def _load(self, device: DeviceId) -> device_state.Kept:
        """Load a device's state, with the rounds that its owner's ledger knows."""
        known = self.store.load(device) or device_state.join(self.plan, device)
        if self.budget is None or not admission.counts_rounds(self.plan):
            return known
        return device_state.recalled(known, self.budget.last(device, self.plan))

    def _charge(
        self, state: device_state.State, effects: tuple[device_events.Effect, ...]
    ) -> tuple[device_events.Effect, ...]:
        """Charge the effects of a step from ``state`` where an update leaves.

        Return the effects of a refusal where it may not.
        """
        try:
            for effect in effects:
                if isinstance(effect, device_events.ChargeOwner) and self.budget is not None:
                    self.budget.charge(state.device, self.plan, effect.round)
        except BudgetError as e:  # another run of this device has spent the rest of the budget since the invitation
            return machine.step(self.plan, state, device_events.Withheld(e.code, e.what), self.trust)[1]
        return effects

    def _save_states(self, device: DeviceId, effects: Sequence[device_events.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, device_events.Save):
                self.store.save(device, effect.state)

    def _finish(
        self,
        device: DeviceId,
        effects: Sequence[device_events.Effect],
        train_s: float = 0.0,
        encode_began_s: float | None = None,
    ) -> TimedAnswer:
        """Save the states of a step and return its frame."""
        encode_s = 0.0 if encode_began_s is None else time.perf_counter() - encode_began_s
        self._save_states(device, effects)
        raw = next((effect.frame for effect in effects if isinstance(effect, device_events.SendFrame)), None)
        return TimedAnswer(raw, train_s, encode_s)

    def _resolve(self, state: device_state.Kept, invite: frame.Invite) -> device_events.Invited | device_events.Unready:
        """Collect the parts that an invitation names: the model, by snapshot or by deltas, and the last release's
        support.

        Nothing is looked up for an invitation that the device will refuse.
        """
        if (refusal := self._refusal(state, invite)) is not None:
            return device_events.Unready(invite, *refusal)
        try:
            params = self.downloads.model(invite)
            if params is None:
                return device_events.Unready(
                    invite, STALE, "the deltas start from a model that this device no longer has"
                )
            support = None
            if support_size := self.plan.at(invite.round).encoded.announced:
                support = np.zeros(0, np.int64)
                if invite.support is not None:
                    support = pack.unpack_support(
                        self.downloads.blob(invite.support), support_size, self.plan.layout.sent.dim
                    )
            beacon = None if invite.draw is None else bytes(self.downloads.blob(invite.draw.beacon))
        except DecodeError as e:
            return device_events.Unready(invite, e.code, e.what)
        secrets = self.secrets(state.device, invite.round, invite.nonce)
        return device_events.Invited(invite, params, secrets, support, beacon)

    def _refusal(self, state: device_state.Kept, invite: frame.Invite) -> admission.No | None:
        idle = state if isinstance(state, device_state.Idle) else state.idle
        if (refusal := admission.invitation_refusal(self.plan, invite, idle.answered)) is not None:
            return refusal
        if self.budget is None:
            return None
        reason = self.budget.refusal(state.device, self.plan, invite.round, idle.answered)
        return None if reason is None else admission.No("E-BUDGET", reason)

    def _train(self, training: _Training, fit: Callable[[], Update]) -> device_events.Trained | device_events.Failed:
        given, request = training.given, training.request
        update = guarded(given.device, partial(self._measured, request, fit))
        if isinstance(update, device_events.Failed):
            return update
        self._check_metrics(update)
        passed_s = given.elapsed_s() if callable(given.elapsed_s) else given.elapsed_s
        return device_events.Trained(update, passed_s, given.up_mbit, request.rule.steps)

    def _measured(self, request: FitRequest, fit: Callable[[], Update]) -> Update:
        """Train, and add the held-out loss of the round's model where the plan asks for it and the trainer did not
        report it. The owner may forbid it.
        """
        update = beside(self.plan, self.trainer, request, fit())
        if self.plan.evaluations.on_devices and not self.evaluates:
            return replace(update, head={**update.head, HELD_OUT: 0.0, HELD_SHARE: 0.0})
        asked = self.plan.evaluations.on_devices and HELD_OUT not in update.head
        if not asked:
            return update
        try:
            measured = self.trainer.trainer.evaluate(request.device, request.params)
        except DataError:  # a device with too little text for a hold-out still trains
            measured = HeldOut(0.0, 0)
        loss, share = (measured.nll / measured.tokens, 1.0) if measured.tokens else (0.0, 0.0)
        return replace(update, head={**update.head, HELD_OUT: loss, HELD_SHARE: share})

    def _check_metrics(self, update: Update) -> None:
        """Refuse an update whose numbers are not those that the trainer names. Raises TrainingError(E-TRAIN).

        This also matters under noise. A trainer's code fixes the names, and nobody would notice a device that always
        sent zeros for a missing number.
        """
        who, names = type(self.trainer.trainer).__name__, set(self.plan.metrics.names)
        if lacks := sorted(names - update.head.keys()):
            raise TrainingError("E-TRAIN", f"{who}.fit gave no {lacks[0]} in its head, but this run sends it.")
        if odd := sorted(update.head.keys() - names - self.trainer.reported - BUILT_IN):
            what = f"{who}.fit gave {odd[0]} in its head, which {who}.metrics() does not name."
            raise TrainingError("E-TRAIN", what, "name it there, and declare it as [[metric]] in the recipe.")

    def _measure(self, device: DeviceId, probe: frame.Probe) -> frame.Measurement | frame.Refusal:
        run, number = probe.run, probe.round
        measured: HeldOut | device_events.Failed
        if run != self.plan.run or not -1 <= number < self.plan.rounds:
            measured = device_events.Failed(
                "E-FRAME", "the probe is for another run, or for a round that this one does not have"
            )
        else:
            measured = guarded(device, lambda: self.trainer.evaluate(device, self._probed(probe)))
        if isinstance(measured, device_events.Failed):
            return frame.Refusal(
                run=run, round=number, device=device, code=measured.code, reason=frame.legible(measured.reason)
            )
        return frame.Measurement(run=run, round=number, device=device, nll=measured.nll, tokens=measured.tokens)

    def _probed(self, probe: frame.Probe) -> Vector:
        """Return the model of a probe: of the run's layout, or a whole one where devices keep a part of it."""
        dim, size = self.plan.spec.dim, len(self.downloads.blob(probe.model))
        if self.trainer.keeps is not None and size == 4 * self.trainer.keeps.inner.trainer.spec.dim:
            dim = self.trainer.keeps.inner.trainer.spec.dim
        return self.downloads.snapshot(probe.model, dim)


def _given_back(result: Update | Exception) -> Update:
    if isinstance(result, Exception):
        raise result
    return result


def guarded(device: DeviceId, work: Callable[[], T]) -> T | device_events.Failed:
    """Call the trainer and turn its errors into ``Failed``. Raises StoreError only."""
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
