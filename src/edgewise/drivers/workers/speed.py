"""Seconds of encoding one update on this machine, for forecasts."""

from __future__ import annotations

import time

import numpy as np

from edgewise.codecs.wire import pack
from edgewise.core import keys
from edgewise.core.training import Update
from edgewise.plan.plan import Plan


def encode_s(plan: Plan) -> float:
    """Measure the seconds to encode and pack an update of normally distributed numbers.

    The second of two runs counts, so kernels are compiled. Masks are not included. 0.0 where devices choose their
    codec.
    """
    if plan.rungs:
        return 0.0
    pipe, key = plan.at(0), keys.derive(plan.key, "speed")
    x = keys.generator(key).standard_normal(plan.layout.sent.dim, np.float32) / np.float32(plan.layout.sent.dim**0.5)
    update = Update(x, dict.fromkeys(pipe.spaces[0].head, 1.0), 1.0)
    took = 0.0
    for i in range(2):
        turn = keys.Turn(0, keys.derive(key, "public", i), keys.derive(key, "private", i))
        began = time.perf_counter()
        payload, _ = pipe.encode(update.x, update.head, update.count, pipe.init(), turn)
        pack.pack(payload, pipe.encoded)
        took = time.perf_counter() - began
    return took
