"""Held-out losses of devices that train or go on alone: stored one by one, then reported as one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite

from edgewise.core import events
from edgewise.core.training import POOLED, DeviceId
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.executor import Executor, checked


def keep(
    store: RunStore,
    model: str,
    last: int,
    device: DeviceId,
    nll: float,
    tokens: int,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Store a device's held-out loss of a baseline after round ``last``. Returns the note of its progress.

    A device without held-out text has no figure. A loss that is not finite is no figure either, and the note says so.

    Args:
        metrics: the trainer's own metrics of the baseline on the device, by name.
    """
    if metrics:
        of_device = {name: {device: value} for name, value in metrics.items()}
        store.append(events.OwnMeasured(round=last, model=model, metrics=of_device))
    if tokens and isfinite(nll):
        store.measure(model, last, device, nll, tokens)
    elif tokens:
        return f"{device}: E-NAN: its held-out loss is not finite."
    return device


def collect(
    executor: Executor,
    remaining: Sequence[DeviceId],
    total: int,
    phase: str,
    tell: Callable[[events.AnyEvent], None],
    take: Callable[[jobs.Result], str],
) -> None:
    """Take the answers of a job for each remaining device as they come, and report each as progress.

    Args:
        remaining: the devices. The number of a job is its device's place here.
        total: the number of devices, those of an earlier start of the run included.
        take: stores an answer. Returns the note of its progress.
    Raises:
        EdgewiseError: of an answer that stops the run. Others become a note.
    """
    for done in range(total - len(remaining) + 1, total + 1):
        result = executor.result()
        if isinstance(result, jobs.Broken):
            if result.stops:
                checked([result])
            note = f"{remaining[result.id]}: {result.code}"
        else:
            note = take(result)
        tell(events.Progress(phase=phase, done=done, total=total, note=note))


def conclude(store: RunStore, tell: Callable[[events.AnyEvent], None], model: str, last: int, seconds: float) -> None:
    """Report and store the evaluation of all stored figures. They are not measured again.

    Nothing happens where the evaluation is stored: a run that was killed right after it comes here again.
    """
    if store.evaluated(model, last):
        return
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
