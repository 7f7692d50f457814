"""Federate a torch module with a loss.

import edgewise as ew
task = ew.TorchTask(net, lambda net, batch: cross_entropy(net(batch[0]), batch[1]), {"accuracy": accuracy})
federation = ew.Federation(model=task, data={"alice": (x, y), "bob": dataset}, recipe=recipe)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, default_collate

from edgewise.core.errors import DataError, ModelError
from edgewise.core.keys import Key
from edgewise.core.training import POOLED, DeviceId
from edgewise.core.vector import Array
from edgewise.learn.hardware import chosen
from edgewise.learn.own_work import Loop, Metric, OwnWork
from edgewise.learn.row_order import row_order
from edgewise.learn.torch_task import TorchTrainer
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.recipe.sections import TrainingSection

EVAL_RECORDS = 256  # An evaluation takes so many records in a forward pass.


@dataclass(frozen=True, eq=False)
class TorchTask:
    """A training task for a torch module that is not a language model.

        ew.TorchTask(net, lambda net, batch: cross_entropy(net(batch[0]), batch[1]), {"accuracy": accuracy})

    Args:
        module: the module to train. Its float32 parameters with ``requires_grad`` are trained, in a copy of it.
        loss: (module, batch) -> mean loss over the batch, or (mean, number of terms). ``collate`` makes batches from
            records. The default number of terms is the number of rows in the batch's first tensor.
        metrics: name -> (module, a device's held-out data) -> number. They are measured together with the held-out
            loss. Held-out data is a torch ``Dataset`` of the device's last records, a share of ``data.holdout``.
        loop: (module, a device's training data, ``LocalRound``) -> (module or update, n, metrics). It replaces
            edgewise's own training. An update is the change of the parameters, as name -> tensor or as one vector. n is
            the device's weight. The metrics must contain a ``loss``.
        collate: list of records -> batch.
    """

    module: nn.Module
    loss: Callable[[nn.Module, Any], Any]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    loop: Loop | None = None
    collate: Callable[[list[Any]], Any] = default_collate


class DatasetShard:
    """A device's records, split into those for training and those held out."""

    def __init__(self, train: Dataset[Any], held: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.train, self.held, self._collate = train, held, collate
        self.count = float(len(train))  # type: ignore[arg-type]

    def apart(self) -> DatasetShard:
        """Hold the last fifth of the records out, in place of the held-out ones (``TorchTrainer.holding_back``)."""
        return _shard(self.train, 0.2, self._collate)

    @property
    def size(self) -> int:
        """The number of records for training."""
        return int(self.count)

    def batches(self, steps: int, training: TrainingSection, key: Key) -> Iterator[list[Any]]:
        """Iterate over the micro-batches of each step, from records in random order, pass after pass."""
        size = max(1, training.batch // training.accumulate)
        for rows in row_order(self.size, steps, training.batch, key):
            yield [self._batch(self.train, rows[i : i + size]) for i in range(0, len(rows), size)]

    def records(self, rows: Array) -> list[Any]:
        """Return these records, each as a batch of its own."""
        return [self._batch(self.train, [row]) for row in rows]

    def held_out(self) -> Iterator[Any]:
        """Iterate over batches of all held-out records."""
        n = len(self.held)  # type: ignore[arg-type]
        for at in range(0, n, EVAL_RECORDS):
            yield self._batch(self.held, range(at, min(n, at + EVAL_RECORDS)))

    def _batch(self, of: Dataset[Any], rows: Iterable[Any]) -> Any:
        return self._collate([of[int(row)] for row in rows])


class TaskTrainer(TorchTrainer):
    """The trainer of a task over the devices' datasets."""

    def __init__(self, task: TorchTask, data: Mapping[DeviceId, Any], recipe: Recipe) -> None:
        """Split each device's data and copy the module.

        Raises:
            DataError: E-DATA-FORMAT for data without numbered records.
            ModelError: E-LAYOUT for a module without a parameter to train.
        """
        if not any(p.requires_grad for p in task.module.parameters()):
            raise ModelError("E-LAYOUT", "no parameter of the module takes a gradient.", "set requires_grad on some.")
        holdout = recipe.data.holdout
        shards = {device: _shard(_dataset(found, device), holdout, task.collate) for device, found in data.items()}
        everyone: Dataset[Any] = ConcatDataset([shard.train for shard in shards.values()])
        shards[POOLED] = DatasetShard(everyone, Subset(everyone, []), task.collate)
        self.shards = shards
        engine = recipe.engine.on_cpu("your own loop or metrics") if task.loop or task.metrics else recipe.engine
        module = copy.deepcopy(task.module)
        super().__init__(module, _terms(task.loss), shards, recipe.training, processor=chosen(engine.device))
        self.own = OwnWork(
            lambda device: self.shards[device].train, lambda device: self.shards[device].held, task.loop, task.metrics
        )
        self._name = type(task.module).__name__

    def describe(self) -> dict[str, Any]:
        """Describe the model, its parameters, and each device's number of training records."""
        sizes = self.sizes()
        counts = {device: int(shard.count) for device, shard in self.shards.items() if device != POOLED}
        return {
            "model": self._name, "hardware": self.processor.type,
            "parameters": int(sizes["parameters"]), "trainable": int(sizes["trainable"]),
            "devices": counts,
        }  # fmt: skip


def _dataset(data: Any, device: DeviceId) -> Dataset[Any]:
    """Return a device's data as a dataset with numbered records. Raises DataError(E-DATA-FORMAT)."""
    if callable(data) and not hasattr(data, "__getitem__"):
        data = data()
    if isinstance(data, tuple) and data and all(isinstance(x, Tensor | np.ndarray) for x in data):
        data = TensorDataset(*(torch.as_tensor(x) for x in data))
    if isinstance(data, Sequence) or (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        return data  # type: ignore[return-value]
    what = f"the data of device {device!r:.60} is a {type(data).__name__}, whose records have no numbers."
    raise DataError("E-DATA-FORMAT", what, "give a torch Dataset, tensors (x, y), or a list of records.")


def _shard(data: Dataset[Any], holdout: float, collate: Callable[[list[Any]], Any]) -> DatasetShard:
    """Hold out the last ``holdout`` share of the records: at least one where there are two."""
    n = len(data)  # type: ignore[arg-type]
    held = max(round(n * holdout), 1) if n > 1 else 0
    return DatasetShard(Subset(data, range(n - held)), Subset(data, range(n - held, n)), collate)


def _terms(loss: Callable[[nn.Module, Any], Any]) -> Callable[[nn.Module, Any], tuple[Tensor, float]]:
    def counted(module: nn.Module, batch: Any) -> tuple[Tensor, float]:
        found = loss(module, batch)
        return found if isinstance(found, tuple) else (found, float(_rows(batch)))

    return counted


def _rows(batch: Any) -> int:
    """Return the number of rows in the first tensor of a batch."""
    if isinstance(batch, Mapping):
        batch = next(iter(batch.values()))
    return _rows(batch[0]) if isinstance(batch, list | tuple) else len(batch)
