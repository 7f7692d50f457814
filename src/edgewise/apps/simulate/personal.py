"""Make the personal model of each measured device after the rounds, and measure it.

Each device goes on from the model that counts, on its own text (``drivers.workers.personal``). Its model is measured on
its own held-out text (``personal``), and on that of the next devices in the population (``elsewhere``). The second
figure shows what a personal model forgets: the federated model is measured on the same text.

The models are kept in the run's folder (``drivers.storage.personal_models``) as long as ``personal.keep_mb`` has room.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgewise.apps.runs.chosen import chosen
from edgewise.apps.simulate import baseline_figures
from edgewise.core import events, vector
from edgewise.core.training import DeviceId
from edgewise.drivers.simulation.probes import Probes
from edgewise.drivers.storage.personal_models import PersonalModel, keep_personal
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.executor import Executor, checked
from edgewise.plan.recipe.personal import PersonalSection

PERSONAL, ELSEWHERE = "personal", "personal_elsewhere"  # names of figures in measures and events
NEIGHBOURS = 2  # devices on whose text a personal model is measured beside its own


def personalise(
    store: RunStore,
    executor: Executor,
    probes: Probes,
    wanted: PersonalSection,
    tell: Callable[[events.AnyEvent], None],
    rounds: int,
) -> None:
    """Make and measure the personal models that the recipe asks for and that are not stored yet.

    Each device's figures are stored at once, so a killed run continues with the others. A device that cannot train has
    no figure, and a Progress note says why.

    Args:
        rounds: the rounds that the federation played.
    Raises:
        EdgewiseError: only if the run directory or a worker fails.
    """
    last = rounds - 1
    if wanted.method == "none" or store.evaluated(PERSONAL, last):
        return
    began, devices = time.perf_counter(), probes.devices
    stored = store.measures(PERSONAL, last)
    remaining = [device for device in devices if device not in stored]
    tell(events.PhaseStarted(phase=PERSONAL, steps=len(devices)))
    digest = chosen(store).digest
    start = vector.to_bytes(store.blob(digest))
    room = int(wanted.keep_mb * 1e6 // (4 * probes.plan.spec.dim))
    kept = frozenset(devices[:room])
    for number, device in enumerate(remaining):
        executor.submit(jobs.Personalise(id=number, device=device, params=start, elsewhere=neighbours(devices, device)))
    for done in range(len(devices) - len(remaining) + 1, len(devices) + 1):
        result = executor.result()
        if isinstance(result, jobs.Broken):
            if result.stops:
                checked([result])
            note = f"{remaining[result.id]}: {result.code}"
        else:
            assert isinstance(result, jobs.Personalised)
            if result.device in kept:
                params = vector.from_bytes(result.params, probes.plan.spec.dim)
                keep_personal(store.out, PersonalModel(result.device, digest, wanted.method, params))
            baseline_figures.keep(store, ELSEWHERE, last, result.device, *result.elsewhere)
            note = baseline_figures.keep(store, PERSONAL, last, result.device, *result.own)
        tell(events.Progress(phase=PERSONAL, done=done, total=len(devices), note=note))
    baseline_figures.conclude(store, tell, ELSEWHERE, last, 0.0)
    baseline_figures.conclude(store, tell, PERSONAL, last, time.perf_counter() - began)


def neighbours(devices: Sequence[DeviceId], device: DeviceId) -> tuple[DeviceId, ...]:
    """Choose the devices on whose text a personal model is measured: the next two, in a ring."""
    at, n = devices.index(device), len(devices)
    return tuple(devices[(at + i) % n] for i in range(1, min(NEIGHBOURS, n - 1) + 1))
