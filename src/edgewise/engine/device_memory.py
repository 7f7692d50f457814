"""What a device keeps between rounds: its codec memory, and of which round it is (``engine.device``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgewise.core.pipeline import Pipeline
from edgewise.core.stage import Memory
from edgewise.core.training import DeviceId
from edgewise.core.vector import Array
from edgewise.plan.compile import Plan

_NUMBERS = ("committed_round", "pending_round", "answered")  # of Idle, as they are saved


@dataclass(frozen=True, slots=True)
class Idle:
    """Between rounds. ``committed`` is the memory after the contribution to ``committed_round`` (-1: before the first);
    ``pending`` is the memory that holds if the contribution to ``pending_round`` was accepted (-1: there is none).
    ``answered``: the last round for which an update has left that leaves once (``engine.invitation``)."""

    device: DeviceId
    committed: Memory = field(repr=False)
    pending: Memory = field(default_factory=dict, repr=False)
    pending_round: int = -1
    answered: int = -1
    committed_round: int = -1


def join(plan: Plan, device: DeviceId) -> Idle:
    """The state of a device that has never taken part."""
    return Idle(device, plan.each(Pipeline.init))


def remembers(plan: Plan) -> bool:
    """Whether devices keep codec memory between rounds."""
    return any(pipe.encoded.memory for pipe in (*plan.pipelines, *plan.ways))


def settled(plan: Plan, state: Idle, accepted: int) -> Idle | None:
    """The device with the one codec memory that holds when the server last used its contribution to round ``accepted``
    (-1: none); None where the device has the memory of another round only."""
    if state.pending_round >= 0 and accepted == state.pending_round:
        return Idle(state.device, state.pending, answered=state.answered, committed_round=accepted)
    if accepted == state.committed_round or not remembers(plan):
        return Idle(state.device, state.committed, answered=state.answered, committed_round=accepted)
    return None


def _part(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def save(state: Idle) -> dict[str, Array]:
    """The state as named arrays, for a safetensors file."""
    out: dict[str, Array] = {name: np.array([getattr(state, name)], np.int64) for name in _NUMBERS}
    out.update({f"committed/{k}": v for k, v in state.committed.items()})
    out.update({f"pending/{k}": v for k, v in state.pending.items()})
    return out


def restore(device: DeviceId, arrays: Mapping[str, Array]) -> Idle:
    """Inverse of ``save``. Raises KeyError on foreign arrays."""
    numbers = {name: int(arrays[name][0]) for name in _NUMBERS}
    return Idle(device, _part(arrays, "committed/"), _part(arrays, "pending/"), **numbers)
