"""Federate any torch model: a module, a loss, and for each device its batches. The text trainer is one of these.

trainer = TorchTrainer(net, lambda m, b: (cross_entropy(m(b[0]), b[1]), len(b[0])), shards, recipe.training)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.core.errors import DataError, StoreError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key, derive, generator
from edgewise.core.own_code import type_and_line
from edgewise.core.training import (
    POOLED,
    DeviceId,
    FitRequest,
    HeldOut,
    Note,
    StepNoise,
    Update,
    as_initial,
    as_update,
)
from edgewise.core.vector import Array, Spec, Vector
from edgewise.engine.trainer import Trainer
from edgewise.learn import dp_sgd
from edgewise.learn.evaluate import evaluate
from edgewise.learn.flat import Flat
from edgewise.learn.own_work import OwnWork
from edgewise.learn.probe import probe
from edgewise.learn.train import Batch, Loss, Optimizer, fit
from edgewise.plan.recipe.sections import TrainingSection

LOG = logging.getLogger("edgewise")


class Shard(Protocol):
    """What one device holds. ``count`` is its natural weight: training tokens, or examples."""

    @property
    def count(self) -> float:
        """Training tokens or examples; 0 means that the device cannot train."""
        ...

    def batches(self, steps: int, training: TrainingSection, key: Key) -> Iterable[Sequence[Batch]]:
        """The micro-batches of each of ``steps`` steps; a function of the arguments only."""
        ...

    def held_out(self) -> Iterable[Batch]:
        """Batches that are never trained on; none where the device has no hold-out."""
        ...

    @property
    def size(self) -> int:
        """Records: what example-level privacy takes for one."""
        ...

    def records(self, rows: Array) -> Sequence[Batch]:
        """These records, a batch of each."""
        ...


class TorchTrainer:
    """The ``Trainer`` port over one model instance, whose weights are overwritten for each device.

    Args:
        model: its float32 parameters that require a gradient are trained, unless ``flat`` says which.
        loss: (mean loss of a batch, number of terms).
        shards: device -> shard: a mapping, or a function beside ``devices``.
        devices: the population where ``shards`` is a function. POOLED is asked of ``shards`` as any other, and is no
            device; without it there is no centralised comparison.
        activation_bytes: memory of one micro-batch's activations, for forecasts. forward_bytes: the same without a
            backward pass to keep them for.
        arithmetic: of matrix work in the optimizer (Muon); the loss decides its own.
    Attributes:
        step_noise: of ``noise_steps``; None where steps are not noised.
        own: a training loop and metrics of one's own; None without them.
    Guarantees:
        ``fit`` is a function of the request alone, the same bits in any process: it computes with one torch thread,
        whatever is set outside, since sums over threads round differently. Not thread-safe: one instance per worker.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        shards: Mapping[DeviceId, Shard] | Callable[[DeviceId], Shard],
        training: TrainingSection,
        devices: Sequence[DeviceId] = (),
        flat: Flat | None = None,
        activation_bytes: float = 0.0,
        arithmetic: torch.dtype = torch.float32,
        forward_bytes: float = 0.0,
    ) -> None:
        self.model, self.loss, self.training = model, loss, training
        self.flat = flat or Flat([(n, p) for n, p in model.named_parameters() if p.requires_grad])
        self._shard = shards if callable(shards) else _of(shards)
        self._devices = tuple(sorted({*(devices or shards)} - {POOLED}))  # type: ignore[misc]
        self._optimizer = Optimizer(training, self.flat, arithmetic)
        self._initial = self.flat.read()
        self._activation_bytes, self.forward_bytes = activation_bytes, forward_bytes
        self.step_noise: StepNoise | None = None
        self._examined = False
        self.own: OwnWork | None = None

    @property
    def spec(self) -> Spec:
        """Layout of the trainable vector."""
        return self.flat.spec

    def initial(self) -> Vector:
        """float32[d]: the trainable parameters before round 0."""
        return self._initial.copy()

    def devices(self) -> Sequence[DeviceId]:
        """The population, sorted."""
        return self._devices

    def noise_steps(self, noise: StepNoise) -> None:
        """Noise every step's gradient from now on (``learn.dp_sgd``). Who runs the devices asks for it, by the plan.

        Raises: TrainingError(E-BN) for a model or a loss that carries something from one record to the next.
        """
        if self.own is not None and self.own.loop is not None:
            what = 'dp.unit = "example" noises every step, and a training loop of your own takes its steps itself.'
            raise TrainingError("E-TRAIN", what, 'leave out the loop, or dp.unit = "example".')
        dp_sgd.check(self.model)
        self.step_noise = noise
        for device in self.devices():
            self._examine(device, self._initial, bytes(32))
            if self._examined:
                return

    @contextmanager
    def without_noise(self) -> Iterator[None]:
        """Plain steps inside."""
        noise, self.step_noise = self.step_noise, None
        try:
            yield
        finally:
            self.step_noise = noise

    def _examine(self, device: DeviceId, params: Vector, key: Key) -> None:
        """Once per trainer, on the first device that can train. Raises as ``noise_steps``."""
        if self._examined:
            return
        try:
            shard = self._shard(device)
            records = list(dp_sgd.taken(shard.records, np.unique([0, shard.size - 1]))) if shard.size else []
        except StoreError:  # a disk that is full says nothing of the text, and ends the run by name
            raise
        except Exception:  # boundary: text that cannot be read; ``fit`` answers for it
            return
        if records:
            with computing(device):
                self.flat.write(params)
                self._examined = dp_sgd.examine(self.model, self.loss, records, self.flat, derive(key, "examine"))

    def fit(self, request: FitRequest) -> Update:
        """Local training.

        With ``step_noise`` a device that cannot train gives the update of steps without a record, noise alone: an
        answer without noise, or none, would say what its text did. Its noise is as large as that of any device with as
        many records as it has; where not even their number can be found out, there are none.

        Raises:
            DataError: E-DEVICE-DATA where the device has nothing to train on.
            TrainingError: E-NAN; E-TRAIN for what torch refuses (out of memory, wrong shapes), with torch's own words
                as its cause only: they may quote data. What else a loss of one's own raises passes through.
                With ``step_noise``: E-BN; E-NAN where noise alone is not finite.
            StoreError: E-DISK where a shard cannot be written.
        """
        if self.own is not None and self.own.loop is not None:
            with computing(request.device):
                return self.own.fit(self.model, self.flat, request, self.training.batch)
        if self.step_noise is None or request.device == POOLED:
            return self._fitted(request, *self.work(request))
        dp, steps = self.step_noise, range(request.rule.steps)
        dp_sgd.check(self.model)
        self._examine(request.device, request.params, request.secret)
        expected = dp.rate  # of a device without a record, which is a neighbour of one with a single record
        try:
            shard, key = self._shard(request.device), derive(request.secret, "records")
            expected *= max(1, shard.size)
            rows = (dp_sgd.drawn(shard.size, dp.rate, derive(key, i)) for i in steps)
            batches = (list(dp_sgd.taken(shard.records, at)) for at in rows)
            return self._fitted(request, batches, float(shard.count), dp, expected)
        except StoreError:  # as in ``_examine``
            raise
        except Exception:  # boundary: a shard and a loss are foreign code, and what they raise may depend on the text
            LOG.warning("device %.60r: local training failed, its update is noise alone", request.device, exc_info=True)
            blank = replace(request, secret=derive(request.secret, "blank"))  # no noise is drawn twice
            return self._fitted(blank, ([] for _ in steps), 0.0, dp, expected)

    def _fitted(
        self,
        request: FitRequest,
        batches: Iterable[Sequence[Batch]],
        count: float,
        dp: StepNoise | None = None,
        expected: float = 0.0,
    ) -> Update:
        with computing(request.device):
            fitted = fit(
                self.model, self.loss, batches, self.flat, request.params, request.rule, self.training, request.key,
                self._optimizer, dp, expected, request.secret, request.correction,
            )  # fmt: skip
        return Update(fitted.x, {"loss_first": fitted.loss_first, "loss_last": fitted.loss_last}, count)

    def records(self, device: DeviceId) -> int:
        """Records of a device, or of all together (POOLED): one pass over them is an epoch. Raises DataError."""
        return int(self._shard(device).size)

    def work(self, request: FitRequest) -> tuple[Iterable[Sequence[Batch]], float]:
        """The micro-batches of each step, and the device's weight. Raises DataError(E-DEVICE-DATA) as ``fit``."""
        shard = self._shard(request.device)
        if not shard.count:
            what = f"device {request.device!r:.60} has no token to predict; it needs two tokens of text."
            raise DataError("E-DEVICE-DATA", what, "give it more text, or leave it out.")
        batches = shard.batches(request.rule.steps, self.training, derive(request.key, "batches"))
        return batches, float(shard.count)

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Held-out loss of ``params`` on one device.

        Raises:
            DataError: E-DEVICE-DATA where the device has no hold-out. TrainingError: E-NAN, E-TRAIN.
        """
        batches = self._shard(device).held_out()
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
        """One's own metrics since this was asked last."""
        if self.own is None:
            return []
        found, self.own.notes = self.own.notes, []
        return found

    def arithmetic(self) -> bytes:
        """What torch makes of a small fixed training on this processor (``learn.probe``)."""
        with computing("probe"):
            return probe(self.training)

    def step_s(self) -> float:
        """Seconds of one optimizer step here."""
        return measured_step_s(self, self.training.lr)

    def sizes(self) -> Mapping[str, float]:
        """Forecasts: ``parameters``, ``trainable``, ``memory_bytes``.

        ``memory_bytes``: weights, gradient, optimizer state, the round's model and the update, activations; without
        Python and torch themselves.
        """
        vectors = 3 + len(self._optimizer.state)  # gradient, round's model, update
        return {
            "parameters": float(sum(p.numel() for p in self.model.parameters())),
            "trainable": float(self.spec.dim),
            "memory_bytes": weights_bytes(self.model) + 4.0 * self.spec.dim * vectors + self._activation_bytes,
        }


def weights_bytes(model: nn.Module) -> int:
    """Bytes of all parameters; shared ones count once."""
    return sum({p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}.values())


def measured_step_s(trainer: Trainer, lr: float) -> float:
    """Seconds of one step on the first device that can train, the second of two so that caches are warm; 0.0 where
    none can."""
    who = type(trainer).__name__
    for device in trainer.devices():
        took = 0.0
        for _ in range(2):
            start_D = as_initial(trainer.initial(), trainer.spec.dim, who)
            request = FitRequest(device, 0, start_D, LocalRule(steps=1, lr=lr), bytes(32), bytes(32))
            start = time.perf_counter()
            try:
                update = as_update(trainer.fit(request), trainer.spec.dim, who)
            except DataError:
                break
            if not update.count:  # with example-level noise a device without text takes its steps all the same
                break
            took = time.perf_counter() - start
        if took:
            return took
    return 0.0


def _of(shards: Mapping[DeviceId, Shard]) -> Callable[[DeviceId], Shard]:
    def shard(device: DeviceId) -> Shard:
        if device in shards:
            return shards[device]
        if device == POOLED:
            fix = f"add a shard of all devices' examples as shards[{POOLED!r}], or set compare.centralised = false."
            raise DataError("E-DEVICE-DATA", "there is no shard with all training data together.", fix)
        raise DataError("E-DEVICE-DATA", f"there is no device {device!r:.60}.")

    return shard


@contextmanager
def computing(device: DeviceId) -> Iterator[None]:
    """One torch thread inside; what torch refuses becomes TrainingError(E-TRAIN)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        fix = "torch's own words are in the run's log.txt; `edgewise check --debug` shows them too."
        raise TrainingError("E-TRAIN", f"device {device!r:.60}: {type_and_line(e)}.", fix) from e
    finally:
        torch.set_num_threads(threads)


def row_order(n: int, steps: int, batch: int, key: Key) -> Iterator[Array]:
    """Row numbers of each step: successive random permutations of ``n`` rows, dealt out ``batch`` at a time.

    A batch never has a row twice in one pass: with fewer rows than ``batch`` each step takes all of them once, since
    repeating rows would cost time and change nothing in the mean.
    """
    rng, batch = generator(key), min(batch, n)
    waiting = np.zeros(0, np.int64)
    for _ in range(steps):
        if len(waiting) < batch:
            waiting = np.concatenate([waiting, rng.permutation(n)])
        yield waiting[:batch]
        waiting = waiting[batch:]


class TensorShard:
    """A device's examples as tensors, rows first; a batch is the tuple of their rows.

    Args:
        train, held: equally long tensors, e.g. ``(x, y)``. shuffle: random order by key; else in order, from the start
            in every round.
    """

    def __init__(self, train: Sequence[Tensor], held: Sequence[Tensor] = (), shuffle: bool = True) -> None:
        self._train, self._held, self._shuffle = tuple(train), tuple(held), shuffle
        self.count = float(len(self._train[0]))

    def batches(self, steps: int, training: TrainingSection, key: Key) -> Iterator[list[tuple[Tensor, ...]]]:
        """See ``Shard``."""
        n, size = len(self._train[0]), max(1, training.batch // training.accumulate)
        for step, rows in enumerate(row_order(n, steps, training.batch, key) if self._shuffle else range(steps)):
            if self._shuffle:
                chosen = tuple(t[torch.from_numpy(rows)] for t in self._train)
            else:
                at = step * training.batch % n
                chosen = tuple(t[at : at + training.batch] for t in self._train)
            yield [tuple(t[i : i + size] for t in chosen) for i in range(0, len(chosen[0]), size)]

    @property
    def size(self) -> int:
        """See ``Shard``."""
        return len(self._train[0])

    def records(self, rows: Array) -> list[tuple[Tensor, ...]]:
        """See ``Shard``."""
        return [tuple(t[int(r) : int(r) + 1] for t in self._train) for r in rows]

    def held_out(self) -> Iterator[tuple[Tensor, ...]]:
        """See ``Shard``."""
        if self._held:
            yield self._held
