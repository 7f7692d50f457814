"""Count the vectors that a run holds in memory beside a device's training.

device_bytes(plan)         # of a training device: the strategy's vectors, and the memory of the codec
server_bytes(plan)         # of the server, in the same process in a simulation
"""

from __future__ import annotations

import numpy as np

from edgewise.core.memory import flat
from edgewise.merges.seen import ROW_BYTES
from edgewise.plan.plan import Plan


def device_bytes(plan: Plan) -> float:
    """Count what a training device holds beside what its trainer forecasts.

    These are the vectors of the strategy's client half, and the codec's memory twice: as it was and as it will be.
    """
    client = plan.strategy.client
    vectors = len((*client.memory, *client.given, *client.sends)) + (client.shift is not None)
    if client.contrast is not None:
        vectors += 3  # the round's model twice, and the previous one beside the weights
    if plan.recipe.drift.penalty:
        vectors += 4  # the importance and the model that it is of, as they were and as they will be
    codec = sum(x.nbytes for x in flat(plan.at(0).init()).values())
    return 4.0 * plan.spec.dim * vectors + 2.0 * codec


def server_bytes(plan: Plan) -> float:
    """Count the vectors of the server when a round ends.

    These are the model and the optimizer state, float32[d] each, as they were and as they become, the mean, and the
    exact sum, int64 of what is sent. A rule between updates that the server sees (``merges.seen``) keeps all of a
    round in place of a sum. What a rule keeps for the next round (``Merge.kept``) is there as it was and as it becomes.
    """
    state, pipe = plan.strategy.init(np.zeros(plan.spec.dim, np.float32)), plan.at(0)
    seen = pipe.merge.combine is not None and not pipe.merge.blind
    kept = ROW_BYTES * pipe.spaces[0].quorum.n_max if seen else 8.0
    kept += 8.0 * pipe.merge.kept
    return 4.0 * plan.spec.dim * (2 * (1 + len(state.slots)) + 1) + kept * plan.layout.sent.dim
