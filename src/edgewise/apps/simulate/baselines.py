"""Baselines of the federated model at equal steps: every device alone, and all text in one place.

Equal steps. A device takes part in rounds x expected / population rounds on average, where the round wants ``expected``
contributions. So a device alone trains that many rounds, spread evenly over the schedule of learning rates. (It trains
all of them if every device is in every round.) The centralised run takes ``expected`` times the steps in every round.

The centralised run is one chain of optimizer steps and cannot be split over workers, so it is started first and runs
beside the devices' own training. Its progress is stored after every chunk, and each device's figure at once, so a
killed run continues from both.

Time. The event of local_only has the wall-clock seconds of both together. The event of centralised has them if
local_only was not run beside it. Time spent before a crash or Ctrl-C is missing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import msgspec

from edgewise.apps.simulate import baseline_figures
from edgewise.core import events, vector
from edgewise.core.training import POOLED
from edgewise.drivers.simulation.probes import Probes
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.executor import Executor, checked
from edgewise.engine.ports import Evaluator
from edgewise.plan.recipe.outcome import CompareSection

CENTRALISED, LOCAL_ONLY = "centralised", "local_only"
LOCAL_PERSONAL = "local_personal"  # each device alone, with the steps of the rounds and of the personal model together


def compare(
    store: RunStore,
    executor: Executor,
    probes: Probes,
    wanted: CompareSection,
    tell: Callable[[events.AnyEvent], None],
    rounds: int,
    measured_by: Evaluator,
    personal: bool = False,
) -> None:
    """Run the comparisons that the recipe wants and that are not stored yet.

    local_only: each device that evaluations measure repeats its federated schedule (same steps, rates and batches) on
    its own model. Where the recipe asks for personal models, each device then takes their steps too, and is measured
    again (local_personal). centralised: rounds x expected x local_steps steps on the pooled text, by the same schedule
    over rounds. With local_epochs it makes expected / population x local_epochs passes in every round, about as many
    steps.

    A model that cannot train has no figure, and a Progress note says why. Nothing replaces the figure. If the trainer
    has no data of all devices together, there is no centralised figure, and the run is complete without it.

    Args:
        rounds: the rounds that the federation played. ``round.patience`` may have ended it early.
        measured_by: measures the centralised model on each device.
        personal: the recipe asks for personal models.
    Raises:
        EdgewiseError: only if the run directory or a worker fails.
    """
    plan, last = probes.plan, rounds - 1
    wants_locals = wanted.local_only and not store.evaluated(LOCAL_ONLY, last)
    locals_left = deque(probes.devices if wants_locals else ())
    pooled = wanted.centralised and not store.evaluated(CENTRALISED, last)
    if not (locals_left or pooled):
        return
    began, ids = time.perf_counter(), 0
    start = vector.to_bytes(store.blob(store.models()[0]))  # the initial vector
    checkpoint = store.kept(CENTRALISED) if pooled else None
    chain, played = (vector.to_bytes(checkpoint[0]), checkpoint[1]) if checkpoint else (start, 0)
    chain_left = rounds - played if pooled else 0
    total = len(locals_left) + (rounds if pooled else 0)
    tell(events.PhaseStarted(phase="compare", steps=total))
    had_locals, stored = bool(locals_left), store.measures(LOCAL_ONLY, last)
    locals_left = deque(d for d in locals_left if d not in stored)
    done = played + len(stored)

    def submit_chain() -> None:
        number, scale = rounds - chain_left, plan.sampling.expected
        passes = plan.rule(0).epochs * scale / plan.sampling.population
        executor.submit(jobs.Solo(device=POOLED, params=chain, rounds=(number,), scale=scale, epochs=passes))

    if chain_left:
        submit_chain()
    under_way: dict[int, str] = {}
    alone = plan.rounds_alone(rounds)
    while chain_left or locals_left or under_way:
        # The chain occupies one place while it lasts. The devices share the others.
        places = max(1, executor.parallel - 1) if chain_left else executor.parallel
        while locals_left and len(under_way) < places:
            ids += 1
            under_way[ids] = device = locals_left.popleft()
            executor.submit(
                jobs.Solo(id=ids, device=device, params=start, rounds=alone, measure=True, personal=personal)
            )
        result = executor.result()
        done += 1
        if isinstance(result, jobs.Broken):
            if result.stops:
                checked([result])
            if result.id:
                note = f"{under_way.pop(result.id)}: {result.code}"
            else:
                note = f"{CENTRALISED}: {result.code}: {result.what}"
                done, chain_left, pooled = done + chain_left - 1, 0, False
                if result.code == "E-DEVICE-DATA":  # A resumed run would meet the same error.
                    baseline_figures.without(store, tell, CENTRALISED, last, result.code)
            tell(events.Progress(phase="compare", done=done, total=total, note=note))
            continue
        assert isinstance(result, jobs.TrainedAlone)
        note = result.device
        if result.device == POOLED:
            assert result.params is not None
            chain, chain_left = result.params, chain_left - 1
            store.keep(CENTRALISED, vector.from_bytes(chain, len(chain) // 4), rounds - chain_left)
            if chain_left:
                submit_chain()
        else:
            del under_way[result.id]
            if personal:
                baseline_figures.keep(
                    store, LOCAL_PERSONAL, last, result.device, *result.personal, result.personal_metrics
                )
            note = baseline_figures.keep(
                store, LOCAL_ONLY, last, result.device, result.nll, result.tokens, result.metrics
            )
        tell(events.Progress(phase="compare", done=done, total=total, note=note))
    if had_locals and personal:
        baseline_figures.conclude(store, tell, LOCAL_PERSONAL, last, 0.0)
    if had_locals:
        baseline_figures.conclude(store, tell, LOCAL_ONLY, last, time.perf_counter() - began)
    if pooled:
        trained_s = 0.0 if had_locals else time.perf_counter() - began
        event = measured_by.evaluate(CENTRALISED, last, vector.from_bytes(chain, len(chain) // 4))
        event = timed(event, trained_s)
        store.append(event)
        tell(event)


def timed(event: events.Evaluated, trained_s: float) -> events.Evaluated:
    """Make the evaluation of a model that trained for ``trained_s`` before, with both in its seconds."""
    return msgspec.structs.replace(event, seconds=event.seconds + trained_s)
