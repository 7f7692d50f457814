"""The checkpoint after a round whose model the server distilled again."""

from __future__ import annotations

from dataclasses import replace

from edgewise.core import vector
from edgewise.core.errors import TrainingError
from edgewise.core.events import Redistilled
from edgewise.core.stage import Aggregate
from edgewise.engine import broadcast
from edgewise.engine.checkpoint import Checkpoint
from edgewise.engine.ports import Distiller
from edgewise.engine.released import DISTILLED
from edgewise.plan.plan import Plan


def distilled(
    plan: Plan, distiller: Distiller, after: Checkpoint, aggregate: Aggregate
) -> tuple[Checkpoint, Aggregate, Redistilled]:
    """Distil the model of a round that is stepped and not committed yet.

    Args:
        after: the checkpoint after the step.
        aggregate: the round's.
    Returns:
        The checkpoint to commit, the aggregate with the distilled model recorded beside it, and the verdict. Both are
        as they were where the distilled model is rejected. Devices download the whole distilled model, because a
        compressed delta would leave most of the change out.
    Raises:
        TrainingError: E-NAN for a model that is not finite.
    """
    round = after.next_round - 1
    params, event = distiller.distil(round, after.state.params)
    if not event.kept:
        return after, aggregate, event
    if not vector.finite(params):
        raise TrainingError("E-NAN", f"the distillation after round {round} is not finite.", "lower distill.lr.")
    state, down = replace(after.state, params=params), after.down
    if down is not None:
        down = broadcast.replace_broadcast_model(down, plan.layout.broadcast(state))
    kept = replace(aggregate, beside={**aggregate.beside, DISTILLED: params})
    return replace(after, state=state, down=down), kept, event
