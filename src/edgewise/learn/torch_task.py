"""Federate any torch model: a module, a loss, and the batches of each device.

    trainer = TorchTrainer(net, lambda m, b: (cross_entropy(m(b[0]), b[1]), len(b[0])), shards, recipe.training)

The text trainer is a ``TorchTrainer`` (``learn.text.trainer``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from edgewise.core.errors import DataError, StoreError, TrainingError
from edgewise.core.keys import Key, derive
from edgewise.core.training import (
    POOLED,
    DeviceId,
    FitRequest,
    HeldOut,
    Note,
    RecordSums,
    StepNoise,
    Update,
)
from edgewise.core.vector import Spec, Vector
from edgewise.learn import dp_sgd
from edgewise.learn.batched import DeviceBuffers, Passes, fit_many
from edgewise.learn.computing import LESS_MEMORY, computing
from edgewise.learn.evaluate import evaluate
from edgewise.learn.flat import Flat
from edgewise.learn.hardware import CPU, move_model, moved
from edgewise.learn.models import quantized
from edgewise.learn.own_work import OwnWork
from edgewise.learn.probe import arithmetic_probe
from edgewise.learn.record_sums import record_sum
from edgewise.learn.shards import Shard, shard_by_device
from edgewise.learn.train import Batch, FittedModel, LocalOptimizer, Loss, Penalty, fit
from edgewise.learn.training_costs import measured_training_step_s, model_weights_bytes
from edgewise.plan.recipe.sections import TrainingSection

LOG = logging.getLogger("edgewise")


class TorchTrainer:
    """The ``Trainer`` port over one model instance, whose weights are overwritten for each device.

    Args:
        model: the module to train. Its float32 parameters that require a gradient are trained, unless ``flat`` names
            others.
        loss: (model, batch) -> mean loss of the batch, and the number of its terms.
        shards: device -> shard, as a mapping, or as a function beside ``devices``. The key POOLED is not a device. Its
            shard holds the data of all devices, for the centralised comparison, and may be absent.
        training: the recipe's local training.
        devices: the population, where ``shards`` is a function.
        flat: the trained parameters. None trains all that require a gradient.
        arithmetic: dtype of matrix products in the optimizer (Muon). The loss chooses its own.
        forward_bytes: memory of one micro-batch's activations in a forward pass, for forecasts.
        processor: the processor that trains and measures. Model and batches are moved to it.
    Attributes:
        step_noise: noise of every step (``noise_steps``). None without noise.
        record_sums: clip and grid of sums of records, which then are the updates (``sum_records``). None without.
        own: the user's training loop and metrics. None without them.
        passes: the way to train several devices in one pass. None without one.
    Guarantees:
        ``fit`` is a function of the request alone, with the same bits in any process. It always computes with one torch
        thread, because sums over several threads round differently. An instance is not thread-safe. Use one per worker.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        shards: Mapping[DeviceId, Shard] | Callable[[DeviceId], Shard],
        training: TrainingSection,
        devices: Sequence[DeviceId] = (),
        flat: Flat | None = None,
        arithmetic: torch.dtype = torch.float32,
        forward_bytes: float = 0.0,
        processor: torch.device = CPU,
    ) -> None:
        self.model, self.loss, self.training, self.processor = model, loss, training, processor
        self.flat = flat or Flat([(n, p) for n, p in model.named_parameters() if p.requires_grad])
        if processor.type != "cpu":
            move_model(model, processor)
            self.flat.move(processor)
        self._shard = shards if callable(shards) else shard_by_device(shards)
        self._devices = tuple(sorted({*(devices or shards)} - {POOLED}))  # type: ignore[misc]
        self._optimizer, self._arithmetic = LocalOptimizer(training, self.flat, arithmetic), arithmetic
        self._initial = self.flat.read()
        self.forward_bytes = forward_bytes
        self.step_noise: StepNoise | None = None
        self.record_sums: RecordSums | None = None
        self._examined = False
        self.own: OwnWork | None = None
        self.passes: Passes | None = None
        self._buffers: DeviceBuffers | None = None

    @property
    def spec(self) -> Spec:
        """The layout of the trainable vector."""
        return self.flat.spec

    def initial(self) -> Vector:
        """Return the trainable parameters before round 0: float32[d]."""
        return self._initial.copy()

    def devices(self) -> Sequence[DeviceId]:
        """Return the population, sorted."""
        return self._devices

    def noise_steps(self, noise: StepNoise) -> None:
        """Add noise to every step's gradient from now on (``learn.dp_sgd``). The driver of the devices calls it.

        Raises:
            TrainingError: E-BN for a model or a loss that carries state from one record to the next, E-TRAIN beside a
                training loop of the user's own.
        """
        if self.own is not None and self.own.loop is not None:
            what = 'dp.unit = "example" adds noise to every step, but your own training loop takes its steps itself.'
            raise TrainingError("E-TRAIN", what, 'leave out the loop, or dp.unit = "example".')
        self.step_noise = noise
        self._examine_records()

    def sum_records(self, sums: RecordSums) -> None:
        """Return sums of clipped records as updates from now on. The driver of the devices calls it.

        Raises:
            TrainingError: as ``noise_steps``.
        """
        if self.own is not None and self.own.loop is not None:
            what = 'dp.unit = "example" sums gradients of records, but your own training loop takes its steps itself.'
            raise TrainingError("E-TRAIN", what, 'leave out the loop, or dp.unit = "example".')
        self.record_sums = sums
        self._examine_records()

    def _examine_records(self) -> None:
        """Check that records stay apart, on the first device that can train. Raises TrainingError(E-BN)."""
        dp_sgd.check_example_gradients(self.model)
        for device in self.devices():
            self._examine(device, self._initial, bytes(32))
            if self._examined:
                return

    @contextmanager
    def without_noise(self) -> Iterator[None]:
        """Train without step noise, and in local steps, inside."""
        noise, self.step_noise = self.step_noise, None
        sums, self.record_sums = self.record_sums, None
        try:
            yield
        finally:
            self.step_noise, self.record_sums = noise, sums

    @contextmanager
    def holding_back(self) -> Iterator[None]:
        """Train inside without the last fifth of a device's training data, and measure on that fifth.

        A shard of a person's own has a method ``apart`` for it, which returns such a shard.
        Raises TrainingError(E-TRAIN) inside for a shard without the method.
        """
        whole = self._shard

        def part(device: DeviceId) -> Shard:
            shard = whole(device)
            if not callable(getattr(shard, "apart", None)):
                what = f"the shard of device {device!r:.60} cannot hold a part back: it has no method apart()."
                raise TrainingError("E-TRAIN", what, "add it, or give personal.weight.")
            apart: Shard = shard.apart()  # type: ignore[attr-defined]
            return apart

        self._shard = part
        try:
            yield
        finally:
            self._shard = whole

    def _examine(self, device: DeviceId, params: Vector, key: Key) -> None:
        """Examine model and loss once per trainer, on the first device that can train. Raises as ``noise_steps``."""
        if self._examined:
            return
        try:
            shard = self._shard(device)
            records = list(dp_sgd.taken_records(shard.records, np.unique([0, shard.size - 1]))) if shard.size else []
            records = self._moved(records)
        except StoreError:  # A full disk reveals nothing about the text, so it may end the run by name.
            raise
        except Exception:  # boundary: text may be unreadable, and ``fit`` deals with that
            return
        if records:
            with computing(device):
                self.flat.write(params)
                self._examined = dp_sgd.examine_model_for_dp(
                    self.model, self.loss, records, self.flat, derive(key, "examine")
                )

    def fit(self, request: FitRequest) -> Update:
        """Train one device from the round's model.

        With ``step_noise`` a device that cannot train returns the update of steps without a record, which is noise
        alone. An answer without noise, or no answer, would reveal the effect of its text. The noise is as large as that
        of any device with the same number of records. An unknown number counts as none.

        Raises:
            DataError: E-DEVICE-DATA where the device has nothing to train on.
            TrainingError: E-NAN where the loss or the update is not finite. E-TRAIN for an error of torch (out of
                memory, wrong shapes), whose own words are the cause only, because they may quote data. Other errors of
                a user's loss pass through. With ``step_noise`` also E-BN, and E-NAN where noise alone is not finite.
            StoreError: E-DISK where a shard cannot be written.
        """
        if self.own is not None and self.own.loop is not None:
            with computing(request.device):
                return self.own.fit(self.model, self.flat, request, self.training.batch)
        if self.record_sums is not None and request.device != POOLED:
            dp_sgd.check_example_gradients(self.model)
            self._examine(request.device, request.params, request.secret)
            loss, sums = self.loss_of(request), self.record_sums
            return record_sum(self.model, loss, self._shard_of, self.flat, request, sums, self._moved_one)
        if self.step_noise is None or request.device == POOLED:
            return self.fitted(request, *self.work(request))
        dp, steps = self.step_noise, range(request.rule.steps)
        dp_sgd.check_example_gradients(self.model)
        self._examine(request.device, request.params, request.secret)
        expected = dp.rate  # A device without a record is a neighbour of one with a single record.
        try:
            shard, key = self._shard(request.device), derive(request.secret, "records")
            expected *= max(1, shard.size)
            rows = (dp_sgd.drawn_records(shard.size, dp.rate, derive(key, i)) for i in steps)
            batches = (self._moved(list(dp_sgd.taken_records(shard.records, at))) for at in rows)
            return self.fitted(request, batches, float(shard.count), dp, expected)
        except StoreError:  # The reason is that of ``_examine``.
            raise
        except Exception:  # boundary: a shard and a loss are foreign code, and what they raise may depend on the text
            LOG.warning("device %.60r: local training failed, its update is noise alone", request.device, exc_info=True)
            blank = replace(request, secret=derive(request.secret, "blank"))  # No noise may be drawn twice.
            return self.fitted(blank, ([] for _ in steps), 0.0, dp, expected)

    def apart(self) -> str | None:
        """Return the reason why devices cannot be trained together (``engine.trainer.BatchesDevices``)."""
        if self.own is not None and self.own.loop is not None:
            return "your own training loop takes one device at a time"
        if self.step_noise is not None or self.record_sums is not None:
            return "privacy of records clips the gradient of each record by itself"
        return "the trainer takes one device at a time" if self.passes is None else self.passes.apart

    def fit_many(self, requests: Sequence[FitRequest]) -> list[Update | Exception]:
        """Train several devices in one pass (``learn.batched``). Devices of other layers are in a pass of their own.

        Raises:
            ValueError: where they cannot be trained together (``apart``).
            TrainingError: E-TRAIN for an error of torch, which ends the part of all of them.
        """
        if (why := self.apart()) is not None:
            raise ValueError(f"devices cannot be trained together: {why}")
        assert self.passes is not None
        found: dict[int, Update | Exception] = {}
        work: dict[int, tuple[Iterable[Sequence[Batch]], float]] = {}
        for i, request in enumerate(requests):
            try:
                work[i] = self.work(request)
            except Exception as e:  # boundary: a shard is foreign code, and other devices go on
                found[i] = e
        groups: dict[tuple[str, ...], list[int]] = {}
        for i in work:
            groups.setdefault(tuple(requests[i].rule.segments), []).append(i)
        if not self.model.training:
            self.model.train()
        for group in groups.values():
            with computing(f"{requests[group[0]].device} and {len(group) - 1} more", self.smaller):
                if self._buffers is None or self._buffers.n < len(group):
                    self._buffers = None  # Its memory is free before the larger ones are made.
                    self._buffers = DeviceBuffers(len(group), self.flat, self.training, self._arithmetic)
                results = fit_many(
                    self.passes, self._buffers, [requests[i] for i in group], [work[i][0] for i in group]
                )  # fmt: skip
            for i, one in zip(group, results, strict=True):
                found[i] = one if isinstance(one, Exception) else _update(one, work[i][1])
        return [found[i] for i in range(len(requests))]

    def fitted(
        self,
        request: FitRequest,
        batches: Iterable[Sequence[Batch]],
        count: float,
        dp: StepNoise | None = None,
        expected: float = 0.0,
        penalty: Penalty | None = None,
    ) -> Update:
        """Train on these micro-batches of each step. ``count`` is the device's weight. Raises as ``fit``."""
        with computing(request.device, self.smaller):
            fitted = fit(
                self.model, self.loss_of(request), batches, self.flat, request.params, request.rule, self.training,
                request.key, self._optimizer, dp, expected, request.secret, request.correction, request.rank,
                penalty,
            )  # fmt: skip
        return _update(fitted, count)

    def loss_of(self, request: FitRequest) -> Loss:
        """Return the loss that a request trains by. Raises TrainingError(E-TRAIN) for a contrast of representations."""
        if request.correction.contrast is not None:
            what = "the strategy contrasts representations of models, and this trainer gives none."
            raise TrainingError("E-TRAIN", what, "use the text trainer, or strategy fedavg or fedprox.")
        return self.loss

    def records(self, device: DeviceId) -> int:
        """Count the records of a device, or of all together (POOLED). An epoch is one pass. Raises DataError."""
        return int(self._shard(device).size)

    def work(self, request: FitRequest) -> tuple[Iterable[Sequence[Batch]], float]:
        """Return the micro-batches of each step, and the device's weight. Raises DataError as ``fit``."""
        shard = self._shard_of(request)
        if not shard.count:
            what = f"device {request.device!r:.60} has no token to predict; it needs two tokens of text."
            raise DataError("E-DEVICE-DATA", what, "give it more text, or leave it out.")
        batches = shard.batches(request.rule.steps, self._training_of(request.device), derive(request.key, "batches"))
        return map(self._moved, batches), float(shard.count)

    def _shard_of(self, request: FitRequest) -> Shard:
        """Return the data that a request trains on. A trainer whose data arrives over time goes by the round."""
        return self._shard(request.device)

    def _training_of(self, device: DeviceId) -> TrainingSection:
        """Return the settings of a device's training. A trainer whose devices have limits of memory has others."""
        return self.training

    def _moved_one(self, batch: Batch) -> Batch:
        return moved(batch, self.processor)

    def _moved(self, batches: Sequence[Batch]) -> list[Batch]:
        return [moved(batch, self.processor) for batch in batches]

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Measure the held-out loss of ``params`` on one device.

        Raises:
            DataError: E-DEVICE-DATA where the device has no hold-out.
            TrainingError: E-NAN, E-TRAIN as ``fit``.
        """
        batches = (moved(batch, self.processor) for batch in self._shard(device).held_out())
        with computing(device):
            self.flat.write(params)
            measured = evaluate(self.model, self.loss, batches)
            if self.own is not None and measured.tokens:
                self.own.measure(self.model, device)
        if not measured.tokens:
            what = f"device {device!r:.60} has too little text for a hold-out."
            raise DataError("E-DEVICE-DATA", what, "give it more text, or raise data.holdout.")
        return measured

    def noted(self) -> list[Note]:
        """Return the values of the user's metrics since the last call."""
        if self.own is None:
            return []
        notes, self.own.notes = self.own.notes, []
        return notes

    def arithmetic(self) -> bytes:
        """Return the bytes of a small fixed training on this processor (``learn.probe``)."""
        with computing("probe"):
            return arithmetic_probe(self.training, self.processor)

    def smaller(self) -> str:
        """Describe training that needs less memory, for a message."""
        return LESS_MEMORY

    def step_s(self) -> float | None:
        """Measure the seconds of one optimizer step on this machine."""
        return measured_training_step_s(self, self.training.lr)

    def sizes(self) -> Mapping[str, float]:
        """Forecast ``parameters``, ``trainable`` and ``memory_bytes``.

        ``memory_bytes`` counts weights, gradient, optimizer state, the round's model and the update. It leaves out
        activations, Python and torch themselves.
        """
        vectors = 3 + len(self._optimizer.state)  # Three are the gradient, the round's model and the update.
        return {
            "parameters": float(sum(quantized.count(p) for p in self.model.parameters())),
            "trainable": float(self.flat.moves),
            "memory_bytes": model_weights_bytes(self.model) + 4.0 * self.spec.dim * vectors,
        }


def _update(fitted: FittedModel, count: float) -> Update:
    return Update(fitted.x, {"loss_first": fitted.loss_first, "loss_last": fitted.loss_last}, count)
