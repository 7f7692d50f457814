"""Results of a closed round: the mean that it released, the checkpoint after it, and the event that tells of it.

released = released_mean(plan, entropy, checkpoint, facts, sums) if sums else None
after = checkpoint_after(plan, checkpoint, facts, released, epsilon)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite

import numpy as np

from edgewise.core import events, vector
from edgewise.core.errors import TrainingError
from edgewise.core.keys import Key
from edgewise.core.memory import Memory
from edgewise.core.stage import Aggregate, together
from edgewise.engine import broadcast
from edgewise.engine.aggregation import Sums
from edgewise.engine.checkpoint import Checkpoint
from edgewise.engine.open_round import OpenRound
from edgewise.engine.released import stepped
from edgewise.engine.round_facts import RoundFacts
from edgewise.engine.split_rest import RestOfModel
from edgewise.plan.plan import Plan
from edgewise.plan.split_part import PART, REST
from edgewise.strategies.base import State


def released_mean(
    plan: Plan, entropy: Callable[[int], Key], checkpoint: Checkpoint, facts: RoundFacts, sums: Sums
) -> tuple[Aggregate, Memory]:
    """Decode the mean of a round, and the server's codec memory after it.

    ``entropy``: round -> 32 secret bytes, for noise. It is asked for each rung.
    """
    number, memory, parts = facts.round, facts.memory, list[Aggregate]()
    for rung, summed in sums:
        part, memory = facts.at(rung).release(summed, facts.turn, entropy(number), memory)
        parts.append(part)
    aggregate = together(parts)
    memory = broadcast.released(facts.pipe, memory, aggregate.mean)
    memory = plan.with_phase_memory(checkpoint.memory, number, memory)
    return plan.measured(plan.layout.aggregated(aggregate)), memory


def checkpoint_after(
    plan: Plan, checkpoint: Checkpoint, facts: RoundFacts, released: tuple[Aggregate, Memory] | None, epsilon: float
) -> Checkpoint:
    """Make the checkpoint after a round.

    Args:
        released: what ``released_mean`` returned. None for a round without a sum.
        epsilon: spent by the run so far, with this round.
    Raises:
        TrainingError: E-NAN where the step gave values that are not finite.
    """
    state, memory, down = checkpoint.state, checkpoint.memory, checkpoint.down
    # A cohort that sampling drew below the minimum is no failure of devices, so it does not count.
    unmet = checkpoint.unmet + int(facts.asked)
    if released is not None:
        aggregate, memory = released
        state, unmet = _applied_aggregate(plan, state, facts, aggregate), 0
    if down is not None and plan.downlink is not None:
        down = broadcast.advance(plan, plan.downlink, down, plan.layout.broadcast(state))
    return Checkpoint(facts.round + 1, state, unmet, memory, down, epsilon)


def _applied_aggregate(plan: Plan, before: State, facts: RoundFacts, aggregate: Aggregate) -> State:
    """Apply the strategy to an aggregate. Raises where the model is no longer finite."""
    with np.errstate(over="ignore", invalid="ignore"):  # The check below finds every value that is not finite.
        after = stepped(plan, before, facts.round, aggregate)
    vectors = (aggregate.mean, *aggregate.beside.values(), after.params, *after.slots.values())
    if not (all(map(vector.finite, vectors)) and all(map(isfinite, aggregate.head.values()))):
        fix = "lower strategy.lr, and dp.clip_l2 or the l2 of clip, with which noise grows."
        raise TrainingError("E-NAN", f"round {facts.round} gave the server values that are not finite.", fix)
    return after


def rest_after(
    rest: RestOfModel, after: Checkpoint, open_round: OpenRound, met: bool
) -> tuple[Checkpoint, Sequence[events.SplitSession]]:
    """Add the rest of a split model after the round to its checkpoint, and the bytes of its sessions to the books.

    Returns:
        The checkpoint, and an event for each session that counts.
    Raises:
        TrainingError: E-NAN where the rest has values that are not finite.
    """
    before, accepted = after.memory.child(REST)[PART], open_round.closed.accepted
    moved, sessions = rest.closed(open_round.facts.round, before, accepted, met)
    if not vector.finite(moved):
        raise TrainingError("E-NAN", "the rest of the model has values that are not finite.", "lower training.lr.")
    for event in sessions:
        open_round.books.events.append(event)
        open_round.books.bytes_up += event.bytes_up
        open_round.books.bytes_down[event.device] += event.bytes_down
    return with_rest(after, moved), sessions


def with_rest(checkpoint: Checkpoint, rest: vector.Vector) -> Checkpoint:
    """Put the rest of a split model into a checkpoint."""
    return replace(checkpoint, memory=checkpoint.memory.put(REST, None, Memory({PART: rest})))


def finished(
    plan: Plan, after: Checkpoint, open_round: OpenRound, aggregate: Aggregate | None, seconds: float
) -> events.RoundFinished:
    """Make the event that ends a round. ``aggregate`` is None for a round without a sum."""
    closed, books, params = open_round.closed, open_round.books, after.state.params
    return events.RoundFinished(
        round=closed.round,
        met=closed.met,
        accepted=len(closed.accepted),
        lost=len(closed.lost),
        late=len(closed.late) if open_round.facts.asked and open_round.facts.buffer is None else 0,
        bytes_up=books.bytes_up,
        bytes_down=sum(books.bytes_down.values()),
        update_l2=0.0 if aggregate is None else vector.norm_l2(aggregate.mean),
        head={} if aggregate is None else dict(aggregate.head),
        train_s=books.train_s,
        encode_s=books.encode_s,
        aggregate_s=books.aggregate_s,
        seconds=seconds,
        model=vector.digest(vector.to_bytes(params)),
        lag_l2=0.0 if after.down is None else vector.norm_l2(params - after.down.shadow[: params.size]),
        code=closed.code,
        epsilon=None if plan.spend is None else after.epsilon,
        waited_s=open_round.last_s - open_round.facts.began.at_s,
    )
