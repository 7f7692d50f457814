"""Make the personal model of a device: further training of a model on the device's own text, which sends nothing.

A simulation and a real device use the same function. The recipe's [personal] section says how (``plan.personal``). The
trainer is the one of the rounds, without noise in its steps, because no result leaves.
"""

from __future__ import annotations

import numpy as np

from edgewise.core import keys
from edgewise.core.training import DeviceId, FitRequest
from edgewise.core.vector import Vector
from edgewise.drivers.workers.devices import in_steps
from edgewise.drivers.workers.records import without_noise
from edgewise.engine.trainer import Registered
from edgewise.plan.personal import personal_training
from edgewise.plan.plan import Plan


def personalised(plan: Plan, trainer: Registered, device: DeviceId, params: Vector, secret: keys.Key) -> Vector:
    """Make a device's personal model of ``params``.

        v = params after ``personal.steps`` steps on the device's own text
        personal model = params + share (v - params)             share = 1 for ``fine_tune``

    Args:
        params: float32[d], the model to start from. It is not changed.
        secret: the device's own randomness (``FitRequest.secret``).
    Returns:
        float32[d].
    Raises:
        ValueError: the recipe asks for no personal model. EdgewiseError: as the trainer.
    Guarantees:
        Equal arguments give equal bits.
    """
    wanted = personal_training(plan, device)
    if wanted is None:
        raise ValueError("the recipe asks for no personal model")
    rule = in_steps(trainer, plan, device, wanted.rule)
    with without_noise(trainer):
        step = trainer.fit(FitRequest(device, wanted.round, params, rule, wanted.key, secret)).x
    return params + np.float32(wanted.share) * step
