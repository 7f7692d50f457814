"""A federation of torch trainers whose records have a coordinate each, so that a model shows what every step has drawn.

loss_i(w) = 1000 w_i: its gradient is longer than any clip. The last coordinates have no record, and show noise alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgewise.learn.shards import TensorShard
from edgewise.learn.torch_task import TorchTrainer
from edgewise.plan.catalogue import Extension
from edgewise.plan.recipe.recipe import Recipe

DEVICES, RECORDS, DIM = 3, 200, 2000


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(DIM))


def loss(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
    if not model.training:  # a held-out loss is not negative
        return torch.ones(()), 1.0
    return 1000.0 * model.w[batch[0]].sum(), 1.0


def make(recipe: Recipe, devices: int = DEVICES) -> TorchTrainer:
    shards = {f"d{i}": TensorShard((torch.arange(RECORDS),), (torch.arange(2),)) for i in range(devices)}
    return TorchTrainer(Line(), loss, shards, recipe.training)


EDGEWISE = Extension(trainer=make)
