"""The whole simulated job: load, federate, compare, report. Wires the engine to an executor and a run directory."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from edgewise.apps import reading
from edgewise.apps.chosen import chosen
from edgewise.apps.compare import compare
from edgewise.apps.longer import longer
from edgewise.apps.planned import planned
from edgewise.apps.samples import sample
from edgewise.apps.toml_text import toml
from edgewise.core import events, vector
from edgewise.core.errors import DataError, EdgewiseError, StoreError
from edgewise.core.own_code import fault_of
from edgewise.core.vector import Spec
from edgewise.drivers import jobs
from edgewise.drivers.executor import Executor, Inproc, checked
from edgewise.drivers.files import write_durably
from edgewise.drivers.identities import (
    simulated_entropy,
    simulated_root,
    simulated_sampling,
    simulated_servers,
    simulated_trust,
)
from edgewise.drivers.local_helper import LocalHelper
from edgewise.drivers.pool import Pool
from edgewise.drivers.probes import Probes
from edgewise.drivers.simulated import SimulatedCohort, World
from edgewise.drivers.store import RunStore
from edgewise.drivers.traces import Traces, read_traces
from edgewise.engine.coordinator import Coordinator
from edgewise.engine.ports import Checkpoint, Cohort
from edgewise.plan import explain
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.compile import compile as compile_plan
from edgewise.plan.facts import canonical, stated_noise
from edgewise.plan.plan import Plan
from edgewise.plan.recipe import Recipe, simulation_digest

Wrap = Callable[[Cohort], Cohort]
Tell = Callable[[events.AnyEvent], None]
# What a resumed run must still have, or it would go on as another one: fact -> what it is.
SAME = {
    "fingerprint": "the data",
    "model_fingerprint": "the model's weights",
    "precision": "the arithmetic that the recipe asks for",
    "arithmetic_sha256": "what this processor computes with these libraries",
    "initial_sha256": "the model's trained parameters",
    "base_sha256": "the parameters that the directions start from",
    "spec_sha256": "the layout of the model's trained parameters",
    "extensions": "the extensions",
    "link_trace_sha256": "the file of link traces",
}

BACK = "go on where it began: on the same kind of processor, with the same versions of the libraries"


@dataclass(frozen=True)
class _Loaded:
    """Facts on which the executor's trainers agree. ``initial``: the initial vector. It is taken out where the run
    begins, so that memory does not hold it beside the models that follow it."""

    plan: Plan
    devices: tuple[str, ...]
    initial: list[vector.Vector]
    facts: dict[str, Any]
    traces: Traces


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
) -> Path:
    """Play a recipe to its end in ``out`` and write the report.

    Args:
        out: the run directory; new, or holding this recipe's unfinished run together with ``resume``.
        recipe_dir: relative data paths start here. extensions: importable modules with parts of one's own.
        sinks: called with every event. wrap: put something around the cohort (faults). report: write summary.json,
            plots and report.html at the end. forecast: measure the speed of a step and tell a Forecast before the first
            round.
    Returns:
        ``out``.
    Raises:
        EdgewiseError: with a code; whatever was committed before stays, and ``resume`` goes on from it.
    """
    resumable = False

    def tell(event: events.AnyEvent) -> None:
        nonlocal resumable
        resumable |= isinstance(event, events.RunStarted)
        stamped = msgspec.structs.replace(event, at_s=time.time())
        for sink in sinks:
            sink(stamped)

    try:
        _run(recipe, out, recipe_dir, resume, extensions, wrap, report, forecast, tell)
    except BaseException as e:
        fault = fault_of(e, extensions)
        with suppress(Exception):  # boundary: a sink that fails must not hide why the run failed
            tell(_failed(fault or e, resumable))
        if fault is not None:
            raise fault from e
        raise
    return out


def _failed(e: BaseException, resumable: bool) -> events.RunFailed:
    if isinstance(e, EdgewiseError):
        return events.RunFailed(code=e.code, reason=e.what, resumable=resumable)
    code = "E-INTERRUPTED" if isinstance(e, KeyboardInterrupt) else "crash"
    return events.RunFailed(code=code, reason=type(e).__name__, resumable=resumable)


def _run(
    recipe: Recipe,
    out: Path,
    recipe_dir: Path,
    resume: bool,
    extensions: Sequence[str],
    wrap: Wrap | None,
    report: bool,
    forecast: bool,
    tell: Tell,
) -> None:
    began = time.time()
    if resume and not (out / "run.db").is_file():
        raise _nothing(out)
    with RunStore(out) as store:
        known = _claim(store, recipe, resume)
        tell(events.PhaseStarted(phase="load"))
        executor = _executor(recipe)
        try:
            loaded = _load(executor, recipe, recipe_dir, store, extensions, known)
            if notes := reading.notes(loaded.facts["reading"]) if loaded.facts.get("reading") else []:
                tell(events.Noted(notes=notes))
            if known is None:
                write_durably(out / "recipe.toml", toml(recipe.resolved()).encode())
                store.create(loaded.plan.run, recipe.name, recipe.resolved(), loaded.facts)
            else:
                _same(known["facts"], loaded.facts)
                renewed = {**known["facts"], **_places(recipe_dir, out)}
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
                _forecast(executor, loaded.plan, tell)
            _play(store, executor, recipe, loaded, wrap, tell)
        finally:
            executor.close()
        if report:
            tell(events.PhaseStarted(phase="report"))
            write_report(store, out)
        store.finish()
        tell(events.RunFinished(model=chosen(store).digest, seconds=time.time() - began))


def write_report(store: RunStore, out: Path) -> dict[str, Any]:
    """summary.json, plots and report.html from what the store holds; devices.json with differential privacy."""
    from edgewise.apps import plots, report, summary

    data = summary.build(store)
    summary.write(out, data)
    summary.write_devices(store, data, out)
    report.write(store, data, out)  # before the plots: they need more that can fail
    plots.write(store, data, out)
    return data


def _claim(store: RunStore, recipe: Recipe, resume: bool) -> Any:
    known = store.run()
    if known is None:
        if resume:
            raise _nothing(store.out)
        return None
    if (sha := simulation_digest(known["recipe"])) != recipe.sha256():
        what = f"{store.out} holds a run of another recipe ({known['name']}, {sha[:8]})."
        raise StoreError("E-RESUME" if resume else "E-RUN-EXISTS", what, "choose another --out.")
    if not resume:
        state = "a finished" if known["finished"] else "an unfinished"
        raise StoreError(
            "E-RUN-EXISTS",
            f"{store.out} holds {state} run of this recipe.",
            "add --resume (in Python resume=True), or choose another --out (out=...).",
        )
    return known


def _nothing(out: Path) -> StoreError:
    return StoreError("E-RESUME", f"there is no run in {out}.", "leave out --resume (resume=True).")


def _same(known: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises StoreError(E-RESUME) where something that decides the model is not what it was when the run began."""
    then, commit = (str(facts.get("model_commit") or "") for facts in (known, now))
    if then != commit:
        raise StoreError(
            "E-RESUME",
            f"model.base names no commit of the hub, and the model there moved since this run began ({then[:12]} then, "
            f"{commit[:12]} now).",
            f"start again with another --out, and pin the model: write @{then or commit} behind its name.",
        )
    for fact, what in SAME.items():
        if known.get(fact) != now.get(fact):
            was, is_ = (_short(facts.get(fact)) for facts in (known, now))
            back = BACK if fact == "arithmetic_sha256" else "put it back as it was"
            raise StoreError(
                "E-RESUME",
                f"{what} changed since this run began ({fact}: {was} then, {is_} now).",
                f"{back}, or start again with another --out.",
            )


def _short(fact: Any) -> str:
    return fact[:12] if isinstance(fact, str) else ", ".join(fact) or "none" if isinstance(fact, list) else "none"


def _executor(recipe: Recipe) -> Executor:
    if recipe.simulation.engine == "pool":
        return Pool(recipe.simulation.workers)
    return Inproc()


def _load(
    executor: Executor,
    recipe: Recipe,
    recipe_dir: Path,
    store: RunStore,
    extensions: Sequence[str],
    known: Mapping[str, Any] | None,
) -> _Loaded:
    setup = jobs.Setup(
        recipe=json.dumps(recipe.resolved()),
        recipe_dir=str(recipe_dir.resolve()),
        run_dir=str(store.out.resolve()),
        memory_dir=str(store.memory_dir.resolve()),
        instance=store.instance,
        extensions=tuple(extensions),
    )
    answers = checked(executor.broadcast(setup))
    first = answers[0]
    assert isinstance(first, jobs.Described)
    for other in answers[1:]:
        if not isinstance(other, jobs.Described) or (other.spec, other.devices, other.initial) != (
            first.spec,
            first.devices,
            first.initial,
        ):
            raise StoreError("E-WORKER", "the worker processes disagree about model or data.", "run it again.")
    if not first.devices:
        raise DataError("E-DATA-EMPTY", "the trainer knows no device.", "check where its data comes from.")
    spec = Spec.of([(name, shape, dtype) for name, shape, dtype in first.spec])
    catalogue = with_extensions(extensions)
    begun = None if known is None else known["facts"].get("plan_facts")  # a run of an earlier program has none
    stated = None if begun is None else stated_noise(begun)
    plan = compile_plan(recipe, spec, len(first.devices), catalogue, stated)
    published = canonical(plan.facts)
    checked(executor.broadcast(jobs.Compile(facts=published)))
    initial = vector.from_bytes(first.initial, spec.dim)
    facts = {
        **first.facts,
        "initial_sha256": vector.digest(first.initial),
        "spec_sha256": spec.digest(),
        "extensions": list(extensions),
        "spec": first.spec,
        "plan_facts": published.decode("ascii"),
        **_places(recipe_dir, store.out),
        "versions": _versions(),
        "started_at": time.time(),
        "engine": recipe.simulation.engine,
        "workers": recipe.simulation.workers if recipe.simulation.engine == "pool" else 1,
        "plan": planned(plan),
    }
    if recipe.simulation.link_trace:
        traces, facts["link_trace_sha256"] = read_traces(recipe_dir / recipe.simulation.link_trace)
        return _Loaded(plan, tuple(first.devices), [initial], facts, traces)
    return _Loaded(plan, tuple(first.devices), [initial], facts, ())


def _places(recipe_dir: Path, out: Path) -> dict[str, str]:
    """Where the recipe lies: from the root of this machine, and from the run, so that both may move together."""
    here, run = recipe_dir.resolve(), out.resolve()
    try:
        return {"recipe_dir": str(here), "recipe_from_run": Path(os.path.relpath(here, run)).as_posix()}
    except ValueError:  # on another drive of Windows
        return {"recipe_dir": str(here)}


@cache
def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in ("edgewise", "numpy", "torch", "transformers", "peft"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _forecast(executor: Executor, plan: Plan, tell: Tell) -> None:
    """Tell how long the run will take, where a step can be measured and the recipe counts steps."""
    timed = [t for t in executor.broadcast(jobs.Time()) if isinstance(t, jobs.Timed) and t.step_s]
    if not timed or plan.rule(0).epochs:
        return
    step_s, encode_s = (fmean(getattr(t, name) for t in timed) for name in ("step_s", "encode_s"))
    found = explain.forecast(plan, step_s, executor.parallel, encode_s=encode_s)
    tell(events.Forecast(rounds_s=found["federated_s"], compare_s=found["compare_s"]))


def _play(store: RunStore, executor: Executor, recipe: Recipe, loaded: _Loaded, wrap: Wrap | None, tell: Tell) -> None:
    plan = loaded.plan
    simulated = SimulatedCohort(executor, plan, World(recipe.simulation, plan.key, loaded.traces))
    cohort: Cohort = simulated if wrap is None else wrap(simulated)

    root = simulated_root(plan, recipe.world, loaded.facts)
    trust, (leader, helper) = simulated_trust(root), simulated_servers(root)
    probes = Probes(cohort, plan, loaded.devices, time.perf_counter)
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
        helper=LocalHelper(plan, helper.secret, trust.registry),
        evaluator=probes,
    )
    reached = coordinator.run(_begun(recipe.name, coordinator, simulated, loaded, tell))
    compare(store, executor, probes, recipe.compare, tell, reached.next_round)
    longer(store, executor, probes, recipe.compare, tell, reached.next_round)
    if wanted := recipe.report.samples:
        sample(store, executor, wanted, probes.devices, tell)


def _begun(name: str, coordinator: Coordinator, simulated: SimulatedCohort, loaded: _Loaded, tell: Tell) -> Checkpoint:
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
