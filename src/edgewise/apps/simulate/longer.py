"""Compare the federation with devices that train alone for longer.

Some devices train alone for ``compare.longer`` times the steps that they take in the federation. The schedule of
learning rates is stretched over them: each of its rounds is played that many times, with other batches each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edgewise.apps.report.alone_or_together import LONGER
from edgewise.apps.simulate import baseline_figures
from edgewise.core import events, vector
from edgewise.drivers.simulation.probes import Probes
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.executor import Executor
from edgewise.plan.recipe.outcome import CompareSection


def longer(
    store: RunStore,
    executor: Executor,
    probes: Probes,
    wanted: CompareSection,
    tell: Callable[[events.AnyEvent], None],
    rounds: int,
) -> None:
    """Run the comparison if the recipe wants it and it is not stored yet.

    Each device's figure is stored at once, so a killed run continues with the others. A device that cannot train has no
    figure, and a Progress note says why.

    Args:
        rounds: the rounds that the federation played.
    Raises:
        EdgewiseError: only if the run directory or a worker fails.
    """
    plan, last = probes.plan, rounds - 1
    if not wanted.longer or store.evaluated(LONGER, last):
        return
    began = time.perf_counter()
    devices = sample(probes.devices, wanted.longer_devices)
    stored = store.measures(LONGER, last)
    remaining = [d for d in devices if d not in stored]
    tell(events.PhaseStarted(phase=LONGER, steps=len(devices)))
    start = vector.to_bytes(store.blob(store.models()[0]))  # the initial vector
    stretched = tuple(number for number in plan.rounds_alone(rounds) for _ in range(wanted.longer))
    for i, device in enumerate(remaining):
        executor.submit(jobs.Solo(id=i, device=device, params=start, rounds=stretched, measure=True))

    def take(result: jobs.Result) -> str:
        assert isinstance(result, jobs.TrainedAlone)
        return baseline_figures.keep(store, LONGER, last, result.device, result.nll, result.tokens, result.metrics)

    baseline_figures.collect(executor, remaining, len(devices), LONGER, tell, take)
    baseline_figures.conclude(store, tell, LONGER, last, time.perf_counter() - began)


def sample(devices: list[str], limit: int) -> list[str]:
    """Choose at most ``limit`` of the devices, spread evenly over them."""
    n, count = len(devices), min(limit, len(devices))
    return [devices[i * n // count] for i in range(count)]
