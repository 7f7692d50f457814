"""Make the personal model of each measured device after the rounds, and measure it.

Each device goes on from the model that counts, on its own text (``drivers.workers.personal``). Its model is measured on
its own held-out text (``personal``), and on that of the next devices in the population (``elsewhere``). The second
figure shows what a personal model forgets: the federated model is measured on the same text.

The models are kept in the run's folder (``drivers.storage.personal_models``) as long as ``personal.keep_mb`` has room.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgewise.apps.report.personal import ELSEWHERE
from edgewise.apps.runs.chosen import chosen_model
from edgewise.apps.simulate import baseline_figures
from edgewise.core import events, vector
from edgewise.core.training import DeviceId
from edgewise.drivers.simulation.probes import Probes
from edgewise.drivers.storage.personal_models import PersonalModel, keep_personal, personal_files, personal_path
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.executor import Executor
from edgewise.plan.recipe.personal import PersonalSection

PERSONAL = "personal"  # name of the figures in measures and events, as ``ELSEWHERE`` is
UNSEEN = "unseen"  # ends the names of figures of devices that were in no round
NEIGHBOURS = 2  # devices on whose text a personal model is measured beside its own


def personalise(
    store: RunStore,
    executor: Executor,
    probes: Probes,
    wanted: PersonalSection,
    tell: Callable[[events.AnyEvent], None],
    rounds: int,
    name: str = PERSONAL,
) -> None:
    """Make and measure the personal models that the recipe asks for and that are not stored yet.

    Each device's figures are stored at once, so a killed run continues with the others. A device that cannot train has
    no figure, and a Progress note says why.

    Args:
        probes: of the devices.
        rounds: the rounds that the federation played.
        name: of the figures. Only those of ``PERSONAL`` are measured elsewhere too.
    Raises:
        EdgewiseError: only if the run directory or a worker fails.
    """
    last = rounds - 1
    if wanted.method == "none" or store.evaluated(name, last):
        return
    began, devices = time.perf_counter(), probes.devices
    stored = store.measures(name, last)
    remaining = [device for device in devices if device not in stored]
    tell(events.PhaseStarted(phase=PERSONAL, steps=len(devices)))
    digest = chosen_model(store).digest
    start = vector.to_bytes(store.blob(digest))
    kept = {path.name for path in personal_files(store.out)}  # one of them may be of a device that is made again
    for number, device in enumerate(remaining):
        elsewhere = neighbours(devices, device) if name == PERSONAL else ()
        executor.submit(jobs.Personalise(id=number, device=device, params=start, elsewhere=elsewhere))

    def take(result: jobs.Result) -> str:
        assert isinstance(result, jobs.Personalised)
        made = kept | {personal_path(store.out, result.device).name}
        if len(made) * len(result.params) <= wanted.keep_mb * 1e6:
            params = vector.from_bytes(result.params, len(result.params) // 4)
            keep_personal(store.out, PersonalModel(result.device, digest, wanted.method, params))
            kept.update(made)
        if name == PERSONAL:
            baseline_figures.keep(store, ELSEWHERE, last, result.device, *result.elsewhere)
        return baseline_figures.keep(store, name, last, result.device, *result.own, result.metrics)

    baseline_figures.collect(executor, remaining, len(devices), PERSONAL, tell, take)
    if name == PERSONAL:
        baseline_figures.conclude(store, tell, ELSEWHERE, last, 0.0)
    baseline_figures.conclude(store, tell, name, last, time.perf_counter() - began)


def unseen(
    store: RunStore,
    executor: Executor,
    probes: Probes,
    wanted: PersonalSection,
    tell: Callable[[events.AnyEvent], None],
    rounds: int,
) -> None:
    """Measure the base and the model that counts on devices that were in no round, and then their personal models.

    Args:
        probes: of those devices.
        rounds: the rounds that the federation played.
    Raises:
        EdgewiseError: if the run directory or a worker fails, or no device can measure.
    """
    if not probes.population:
        return
    for model, digest in (("base", store.models()[0]), ("federated", chosen_model(store).digest)):
        if not store.evaluated(f"{model}_{UNSEEN}", rounds - 1):
            event = probes.evaluate(f"{model}_{UNSEEN}", rounds - 1, store.blob(digest))
            store.append(event)
            tell(event)
    personalise(store, executor, probes, wanted, tell, rounds, f"{PERSONAL}_{UNSEEN}")


def neighbours(devices: Sequence[DeviceId], device: DeviceId) -> tuple[DeviceId, ...]:
    """Choose the devices on whose text a personal model is measured: the next two, in a ring."""
    at, n = devices.index(device), len(devices)
    return tuple(devices[(at + i) % n] for i in range(1, min(NEIGHBOURS, n - 1) + 1))
