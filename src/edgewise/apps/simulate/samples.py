"""Samples of text for the report: the base and the model that counts continue the beginning of held-out texts.

Samples print text of devices. So they are made only if the recipe asks for them (``report.samples``), and never with
differential privacy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgewise.apps.runs.chosen import chosen_model
from edgewise.core import events, vector
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.executor import Executor, checked
from edgewise.engine.evaluation import BASE, FEDERATED


def sample(
    store: RunStore, executor: Executor, wanted: int, devices: Sequence[str], tell: Callable[[events.AnyEvent], None]
) -> None:
    """Store ``wanted`` samples (``events.Sampled``), of devices spread evenly over ``devices``.

    Stored samples are not made again. A device whose held-out text is too short has none.
    """
    stored = {(e.device, e.model) for e in store.events("sampled") if isinstance(e, events.Sampled)}
    n = min(wanted, len(devices))
    vectors = {BASE: store.models()[0], FEDERATED: chosen_model(store).digest}
    remaining = [(devices[i * len(devices) // n], model) for model in vectors for i in range(n)]
    remaining = [one for one in remaining if one not in stored]
    if not remaining:
        return
    tell(events.PhaseStarted(phase="samples", steps=len(remaining)))
    params = {model: vector.to_bytes(store.blob(vectors[model])) for _, model in remaining}
    for number, (device, model) in enumerate(remaining):
        executor.submit(jobs.Sample(id=number, device=device, params=params[model]))
    results = {result.id: result for result in (executor.result() for _ in remaining)}
    for number, (device, model) in enumerate(remaining):
        result = results[number]
        if isinstance(result, jobs.Broken) and not result.stops:
            continue
        checked([result])
        assert isinstance(result, jobs.Continued)
        event = events.Sampled(
            device=device, model=model, prompt=result.prompt, actual=result.actual, text=result.text
        )  # fmt: skip
        store.append(event)
        tell(event)
