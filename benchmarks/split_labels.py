"""Extension for ``strategies.py``: 24 owners of points in ten classes, most of them of few classes, of unequal amounts.

A point is a random vector of its class (32 numbers, among them much noise); the model is a small net, and its loss on
one common set of points is what every device measures, so that an evaluation is the loss of the whole population.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgewise.learn.shards import TensorShard
from edgewise.learn.torch_task import TorchTrainer
from edgewise.plan.catalogue import Extension
from edgewise.plan.recipe.recipe import Recipe

OWNERS, CLASSES, WIDTH, TEST = 24, 10, 32, 24 * 40
SKEW = 0.2  # of the Dirichlet distribution over classes: one or two classes are most of an owner's points


def points(rng: np.random.Generator, labels: np.ndarray, centres: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of these classes: the centre of a half of the class, and noise."""
    x = centres[labels, rng.integers(0, 2, labels.size)] + rng.normal(0.0, 1.0, (labels.size, WIDTH))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels)


def make(recipe: Recipe) -> TorchTrainer:
    """The trainer of a recipe's seed."""
    rng = np.random.default_rng(recipe.seed)
    centres = rng.normal(0.0, 0.6, (CLASSES, 2, WIDTH))
    test_x, test_y = points(rng, rng.integers(0, CLASSES, TEST), centres)
    shards = {}
    for i in range(OWNERS):
        shares = rng.dirichlet([SKEW] * CLASSES)
        x, y = points(rng, rng.choice(CLASSES, int(rng.integers(20, 240)), p=shares), centres)
        shards[f"owner {i:02d}"] = TensorShard((x, y), (test_x[i::OWNERS], test_y[i::OWNERS]))
    torch.manual_seed(recipe.seed)
    net = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    return TorchTrainer(
        net, lambda m, b: (nn.functional.cross_entropy(m(b[0]), b[1]), len(b[0])), shards, recipe.training
    )


EDGEWISE = Extension(trainer=make)
