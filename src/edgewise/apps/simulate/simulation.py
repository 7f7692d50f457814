"""The whole simulated job: load, federate, compare, report. It connects engine, executor and run directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from edgewise.apps.report import data_read
from edgewise.apps.report.simulator_metrics import SimulatorMetrics
from edgewise.apps.runs.chosen import chosen_model
from edgewise.apps.runs.joined import REST_START
from edgewise.apps.runs.toml_text import toml
from edgewise.apps.simulate.baselines import compare
from edgewise.apps.simulate.beginning import LoadedRun, Tell, check_same, claim, load, no_run, places, tell_forecast
from edgewise.apps.simulate.longer import longer
from edgewise.apps.simulate.personal import personalise, unseen
from edgewise.apps.simulate.samples import sample
from edgewise.codecs.weigh import CAP
from edgewise.core import events
from edgewise.core.errors import EdgewiseError, RecipeError, StoreError
from edgewise.core.own_code import fault_of
from edgewise.core.vector import Spec, Vector, to_bytes
from edgewise.drivers.simulation.cohort import SimulatedCohort, World
from edgewise.drivers.simulation.keys import (
    simulated_entropy,
    simulated_root,
    simulated_sampling,
    simulated_servers,
    simulated_trust,
)
from edgewise.drivers.simulation.local_helper import LocalHelper
from edgewise.drivers.simulation.probes import Probes
from edgewise.drivers.storage.files import write_durably
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.storage.split_sessions import SimulatedRest
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.executor import Executor, Inproc
from edgewise.drivers.workers.host import Host
from edgewise.drivers.workers.memory_use import peak_bytes
from edgewise.drivers.workers.pool import Pool
from edgewise.drivers.workers.ray_pool import RayPool
from edgewise.drivers.workers.server_distiller import ServerDistiller
from edgewise.engine.checkpoint import Checkpoint
from edgewise.engine.coordinator import Coordinator
from edgewise.engine.ports import Cohort
from edgewise.plan.objects import NO_OBJECTS, Objects
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.retention import window_of

Wrap = Callable[[Cohort], Cohort]


def run(
    recipe: Recipe,
    *,
    out: Path,
    recipe_dir: Path,
    resume: bool = False,
    extensions: Sequence[str] = (),
    sinks: Sequence[events.Sink] = (),
    wrap: Wrap | None = None,
    report: bool = True,
    forecast: bool = False,
    objects: Objects = NO_OBJECTS,
) -> Path:
    """Play a recipe to its end in ``out`` and write the report. Returns ``out``. Arguments as of ``play``."""
    for _ in play(
        recipe, out=out, recipe_dir=recipe_dir, resume=resume, extensions=extensions, sinks=sinks, wrap=wrap,
        report=report, forecast=forecast, objects=objects,
    ):  # fmt: skip
        pass
    return out


def play(
    recipe: Recipe,
    *,
    out: Path,
    recipe_dir: Path,
    resume: bool = False,
    extensions: Sequence[str] = (),
    sinks: Sequence[events.Sink] = (),
    wrap: Wrap | None = None,
    report: bool = True,
    forecast: bool = False,
    objects: Objects = NO_OBJECTS,
    until: Callable[[], bool] = lambda: False,
) -> Generator[Spec, None, None]:
    """Play a recipe in ``out``, one round for each step of the iterator, then the comparisons and the report.

    Args:
        out: the run directory. It is new, or it holds this recipe's unfinished run together with ``resume``.
        recipe_dir: the folder that relative data paths start from.
        extensions: importable modules with your own parts.
        sinks: called with every event.
        wrap: wraps the cohort, for example with faults.
        report: write summary.json, plots and report.html at the end.
        forecast: measure the speed of a step and report a Forecast before the first round.
        objects: parts, trainer and data of this process, for the engine "inproc".
        until: called between two rounds. If it returns True, the run rests. The report is written without comparisons.
    Yields:
        The layout of the model, after each round that is committed and measured. An iterator that is closed early
        leaves a run that ``resume`` continues.
    Raises:
        EdgewiseError: with a code. Committed rounds stay, and ``resume`` continues from them.
    """
    resumable = False

    def tell(event: events.AnyEvent) -> None:
        nonlocal resumable
        resumable |= isinstance(event, events.RunStarted)
        stamped = msgspec.structs.replace(event, at_s=time.time())
        for sink in sinks:
            sink(stamped)

    try:
        yield from _run_in_store(
            recipe, out, recipe_dir, resume, extensions, wrap, report, forecast, tell, objects, until
        )
    except BaseException as e:
        fault = fault_of(e, (*extensions, *objects.modules))
        with suppress(Exception):  # boundary: a sink that fails must not hide why the run failed
            tell(_run_failed_event(fault or e, resumable))
        if fault is not None:
            raise fault from e
        raise


def _run_failed_event(e: BaseException, resumable: bool) -> events.RunFailed:
    """Make the event of a run that ends with an error."""
    if isinstance(e, EdgewiseError):
        return events.RunFailed(code=e.code, reason=e.what, resumable=resumable)
    code = "E-INTERRUPTED" if isinstance(e, KeyboardInterrupt | GeneratorExit) else "crash"
    return events.RunFailed(code=code, reason=type(e).__name__, resumable=resumable)


def _run_in_store(
    recipe: Recipe,
    out: Path,
    recipe_dir: Path,
    resume: bool,
    extensions: Sequence[str],
    wrap: Wrap | None,
    report: bool,
    forecast: bool,
    tell: Tell,
    objects: Objects,
    until: Callable[[], bool],
) -> Generator[Spec, None, None]:
    """Play a run in its folder, and write its report."""
    began = time.time()
    if resume and not (out / "run.db").is_file():
        raise no_run(out)
    with RunStore(out) as store:
        known = claim(store, recipe, resume)
        tell(events.PhaseStarted(phase="load"))
        executor = _make_executor(recipe, objects)
        try:
            loaded = load(executor, recipe, recipe_dir, store, extensions, known, objects)
            if notes := data_read.notes(loaded.facts["reading"]) if loaded.facts.get("reading") else []:
                tell(events.Noted(notes=notes))
            if known is None:
                write_durably(out / "recipe.toml", toml(recipe.resolved()).encode())
                window = window_of(loaded.plan).rounds
                store.create(loaded.plan.run, recipe.name, recipe.resolved(), loaded.facts, window)
            else:
                check_same(known["facts"], loaded.facts)
                renewed = {**known["facts"], **places(recipe_dir, out)}
                if renewed != known["facts"]:
                    store.renew(renewed)
                if known["id"] != loaded.plan.run:
                    raise StoreError(
                        "E-RESUME",
                        f"{out} holds a run that began with another number of devices or another version of the wire's "
                        f"protocols ({known['id'][:12]} then, {loaded.plan.run[:12]} now).",
                        "resume it with the program and the devices that it began with, or choose another --out.",
                    )
            if forecast and known is None:
                tell_forecast(executor, loaded.plan, tell)
            over = yield from _play_rounds(store, executor, recipe, recipe_dir, loaded, wrap, tell, until)
        finally:
            executor.close()
        _keep_peak(store, executor)
        if report:
            from edgewise.apps.report.files import write_report

            tell(events.PhaseStarted(phase="report"))
            write_report(store, out)
        if not over:
            return
        store.finish()
        tell(events.RunFinished(model=chosen_model(store).digest, seconds=time.time() - began))


def _keep_peak(store: RunStore, executor: Executor) -> None:
    """Record the largest memory of a training process, over all sessions of the run."""
    used = executor.peak_bytes if isinstance(executor, RayPool) else peak_bytes(isinstance(executor, Pool))
    run = store.run()
    if used and run is not None:
        store.renew({**run["facts"], "peak_bytes": max(used, run["facts"].get("peak_bytes", 0))})


def _make_executor(recipe: Recipe, objects: Objects) -> Executor:
    """Start what trains the devices: this process, a pool, or workers on a cluster."""
    if recipe.simulation.engine == "inproc":
        return Inproc(Host(objects=objects))
    if objects.local:
        what = f'simulation.engine = "{recipe.simulation.engine}" starts processes that import what they run, and '
        what += f"these are objects of this process: {', '.join(objects.local)}."
        fix = 'use simulation.engine = "inproc", or put them into a module as EDGEWISE = Extension(...) and name it in '
        raise RecipeError("E-COMBO", what, fix + 'extensions=["module"].')
    return RayPool(recipe.simulation) if recipe.simulation.engine == "ray" else Pool(recipe.simulation.workers)


def _play_rounds(
    store: RunStore,
    executor: Executor,
    recipe: Recipe,
    recipe_dir: Path,
    loaded: LoadedRun,
    wrap: Wrap | None,
    tell: Tell,
    until: Callable[[], bool],
) -> Generator[Spec, None, bool]:
    """Play rounds, then comparisons. Returns whether the run is over."""
    plan = loaded.plan
    world = World(recipe.simulation, plan.key, loaded.traces)
    simulated = SimulatedCohort(executor, plan, world, recipe.engine.batch_devices)
    cohort: Cohort = simulated if wrap is None else wrap(simulated)

    root = simulated_root(plan, recipe.world, loaded.facts)
    trust, (leader, helper) = simulated_trust(root, loaded.devices), simulated_servers(root)
    probes = Probes(cohort, plan, loaded.devices, time.perf_counter)
    own = SimulatorMetrics(probes, executor, store, tell)
    coordinator = Coordinator(
        plan=plan,
        population=loaded.devices,
        cohort=cohort,
        store=store,
        tell=tell,
        now_s=time.perf_counter,
        entropy=partial(simulated_entropy, plan, root),
        sampling_key=simulated_sampling(plan, root),
        trust=trust,
        secret=leader.secret,
        helper=LocalHelper(plan, helper.secret, trust),
        evaluator=own,
        rest=_rest_of_model(store, executor, recipe, loaded),
        distiller=ServerDistiller(recipe, recipe_dir, recipe_dir, store) if recipe.distill.active else None,
    )
    reached = _begin_coordinator(recipe.name, coordinator, simulated, loaded, tell)
    for after in coordinator.rounds(reached, until):
        reached = after
        own.take()
        yield plan.spec
    if reached.next_round < plan.rounds and until():
        return False
    personal = recipe.personal.method != "none"
    compare(store, executor, probes, recipe.compare, tell, reached.next_round, own, personal)
    longer(store, executor, probes, recipe.compare, tell, reached.next_round)
    personalise(store, executor, probes, recipe.personal, tell, reached.next_round)
    unseen(store, executor, replace(probes, population=loaded.unseen), recipe.personal, tell, reached.next_round)
    if wanted := recipe.report.samples:
        sample(store, executor, wanted, probes.devices, tell)
    return True


def _rest_of_model(store: RunStore, executor: Executor, recipe: Recipe, loaded: LoadedRun) -> SimulatedRest | None:
    """Make the keeper of a split model's rest. None where the model is whole."""
    if not recipe.split.used:
        return None

    def give(number: int, rest: Vector) -> None:
        executor.broadcast(jobs.Rest(round=number, data=to_bytes(rest)))

    caps = [float(stage.get("cap", CAP)) for stage in recipe.stage if stage["kind"] == "weigh"]
    cap = caps[0] if caps else None
    initial = loaded.rest.pop()
    if store.kept(REST_START) is None:
        store.keep(REST_START, initial)
    kind = recipe.split.server_parts if recipe.split.trains_rest else "frozen"
    return SimulatedRest(store.out, initial, kind, cap, give)


def _begin_coordinator(
    name: str, coordinator: Coordinator, simulated: SimulatedCohort, loaded: LoadedRun, tell: Tell
) -> Checkpoint:
    """Begin or resume the rounds."""
    plan, checkpoint = loaded.plan, coordinator.begin(loaded.initial.pop())
    if checkpoint.down is not None:
        simulated.restore(checkpoint.down)
    tell(
        events.RunStarted(
            run=plan.run,
            name=name,
            rounds=plan.rounds,
            population=len(loaded.devices),
            cohort=plan.sampling.goal,
            dim=plan.spec.dim,
            resumed_round=checkpoint.next_round or None,
        )
    )
    tell(events.PhaseStarted(phase="federated", steps=plan.rounds))
    return checkpoint
