"""Train a smaller model for a few steps, so that it writes again as the model that it was made of.

    heal_model(smaller, teacher, train_NS, HealingPlan(steps=200))

Weights outside a mask stay zero. The loss is that of distillation, with the dense model as the teacher.

Shape suffixes: N = blocks, B = blocks of a step, S = tokens per block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from edgewise.core.errors import TrainingError
from edgewise.core.keys import derive, generator, root
from edgewise.core.vector import Array
from edgewise.learn.compress.distill import distill_inputs, distillation_divergence, next_token_loss
from edgewise.learn.models.architecture import logits
from edgewise.learn.models.smaller_layers import layer_masks


class HealingPlan(NamedTuple):
    """The training of a smaller model.

    Attributes:
        steps: optimizer steps. batch: blocks of a step.
        lr: learning rate of AdamW. It falls along a half cosine to a tenth.
        distilled: weight of the teacher's loss. The rest is the loss of the true next tokens.
        seed: decides the order of blocks.
    """

    steps: int
    batch: int = 8
    lr: float = 1e-3
    distilled: float = 0.5
    seed: int = 0

    @property
    def says(self) -> str:
        """The loss in words, for reports."""
        if not self.distilled:
            return "next-token loss"
        return f"distillation from the dense model ({self.distilled:g}) and next-token loss ({1 - self.distilled:g})"


def heal_model(
    model: nn.Module,
    teacher: nn.Module,
    blocks_NS: Array,
    plan: HealingPlan,
    step: Callable[[str, int, int], object] = lambda what, done, of: None,
) -> None:
    """Train all parameters of a model, in float32.

        L = w tau^2 KL(teacher || model) + (1 - w) NLL,     tau = 1

    Args:
        teacher: the dense model. It stays as it is.
        blocks_NS: training text.
        step: called after each step with words, the number of the step and that of all.
    Raises:
        TrainingError: E-NAN where the loss is not finite.
    Guarantees: weights outside a mask stay exactly zero.
    """
    trained = list(model.parameters())
    optimizer = torch.optim.AdamW(trained, lr=plan.lr, weight_decay=0.0)
    held: list[tuple[Any, torch.Tensor]] = [
        (model.get_submodule(name).weight, ~mask) for name, mask in layer_masks(model).items()
    ]
    order = generator(derive(root(plan.seed), "heal"))
    model.train()
    teacher.eval()
    for i in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * (0.55 + 0.45 * np.cos(np.pi * i / plan.steps))
        rows = order.integers(len(blocks_NS), size=plan.batch)
        targets = distill_inputs(torch.from_numpy(np.asarray(blocks_NS[rows], np.int64)))
        z_s = logits(model, targets.x_BT)
        loss = (1 - plan.distilled) * next_token_loss(z_s, targets.y_BT, targets.counted_BT)
        if plan.distilled:
            with torch.no_grad():
                z_t = logits(teacher, targets.x_BT)
            loss = loss + plan.distilled * distillation_divergence(z_s, z_t, targets.counted_BT)
        if not bool(torch.isfinite(loss)):
            raise TrainingError("E-NAN", f"the loss of step {i + 1} is not finite.", "lower --lr.")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for p, outside in held:
            p.grad.masked_fill_(outside, 0.0)
        optimizer.step()
        step("healing", i + 1, plan.steps)
    model.eval()
