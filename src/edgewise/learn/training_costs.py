"""Measure what training costs on this machine: the bytes of a model's weights, and the seconds of a step."""

from __future__ import annotations

import time

from torch import nn

from edgewise.core.errors import DataError
from edgewise.core.frame import LocalRule
from edgewise.core.training import FitRequest, as_initial, as_update
from edgewise.engine.trainer import Trainer
from edgewise.learn.models import quantized


def model_weights_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters, and of the scales of quantized ones. Shared ones count once."""
    codes = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    return sum(codes.values()) + quantized.quantized_scale_bytes(model)


def measured_training_step_s(trainer: Trainer, lr: float) -> float | None:
    """Measure the seconds of one step on the first device that can train. None where none can.

    It times the second of two steps, so that caches are warm.
    """
    who = type(trainer).__name__
    for device in trainer.devices():
        took: float | None = None
        for _ in range(2):
            start_D = as_initial(trainer.initial(), trainer.spec.dim, who)
            request = FitRequest(device, 0, start_D, LocalRule(steps=1, lr=lr), bytes(32), bytes(32))
            start = time.perf_counter()
            try:
                update = as_update(trainer.fit(request), trainer.spec.dim, who)
            except DataError:
                break
            if not update.count:  # With example-level noise a device without text takes its steps all the same.
                break
            took = time.perf_counter() - start
        if took is not None:
            return took
    return None
