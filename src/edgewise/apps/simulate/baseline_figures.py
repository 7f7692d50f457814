"""Held-out losses of devices that trained alone. They are stored one by one, and then reported as one evaluation."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

from edgewise.core import events
from edgewise.core.training import POOLED, DeviceId
from edgewise.drivers.storage.run_store import RunStore


def keep(store: RunStore, model: str, last: int, device: DeviceId, nll: float, tokens: int) -> str:
    """Store a device's held-out loss after round ``last``. Returns the note of its progress.

    A device without held-out text has no figure. A loss that is not finite is no figure either, and the note says so.
    """
    if tokens and isfinite(nll):
        store.measure(model, last, device, nll, tokens)
    elif tokens:
        return f"{device}: E-NAN: its held-out loss is not finite."
    return device


def conclude(store: RunStore, tell: Callable[[events.AnyEvent], None], model: str, last: int, seconds: float) -> None:
    """Report and store the evaluation of all stored figures. They are not measured again."""
    measured = sorted(store.measures(model, last).items())
    event = events.Evaluated(
        round=last,
        model=model,
        nll={d: nll for d, (nll, _) in measured},
        tokens={d: tokens for d, (_, tokens) in measured},
        seconds=seconds,
    )
    store.append(event)
    tell(event)


def without(store: RunStore, tell: Callable[[events.AnyEvent], None], model: str, last: int, code: str) -> None:
    """Report and store that ``model`` has no figure, because the trainer has no data of all devices together."""
    event = events.Evaluated(round=last, model=model, nll={}, tokens={}, seconds=0.0, missing={POOLED: code})
    store.append(event)
    tell(event)
