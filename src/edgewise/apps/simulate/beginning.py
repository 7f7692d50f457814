"""Begin or resume a simulated run: claim the folder, load trainers and plan, compare them with the record."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

from edgewise.apps.runs.planned import planned
from edgewise.core import events, vector
from edgewise.core.errors import DataError, StoreError
from edgewise.core.vector import Spec
from edgewise.drivers.simulation.link_traces import Traces, read_traces
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers import jobs, server_distiller
from edgewise.drivers.workers.executor import Executor, checked
from edgewise.plan import explain
from edgewise.plan.client_rules import check_root
from edgewise.plan.compile import compile as compile_plan
from edgewise.plan.facts import canonical, stated_noise
from edgewise.plan.objects import NO_OBJECTS, Objects, catalogue
from edgewise.plan.participants import participants
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import Recipe, simulation_digest

Tell = Callable[[events.AnyEvent], None]
# A resumed run needs the same facts, or it would be another run: fact -> its description.
SAME = {
    "hardware": "the kind of processor that trains",
    "batch_devices": "the number of devices that train together (engine.batch_devices)",
    "memory_limits": "the limits of devices' memory (engine.max_memory_mb and device_memory_mb)",
    "fingerprint": "the data",
    "model_fingerprint": "the model's weights",
    "precision": "the arithmetic that the recipe asks for",
    "arithmetic_sha256": "what this processor computes with these libraries",
    "initial_sha256": "the model's trained parameters",
    "rest_sha256": "the parameters behind the cut",
    "base_sha256": "the parameters that the directions start from",
    "spec_sha256": "the layout of the model's trained parameters",
    "extensions": "the extensions",
    "link_trace_sha256": "the file of link traces",
    **server_distiller.WHAT,
}

# The facts of a run that an earlier version began lack these.
EARLIER = {"hardware": "cpu", "batch_devices": 1, "memory_limits": {}}
BACK = "go on where it began: on the same kind of processor, with the same versions of the libraries"


@dataclass(frozen=True)
class LoadedRun:
    """Facts on which the executor's trainers agree.

    ``devices`` are the population of the rounds, and ``unseen`` the devices that are in no round.
    ``initial`` is the initial vector. It is taken out when the run begins, so that it does not fill memory beside the
    models that follow it. So is ``rest``, the rest of a split model, which is empty without one.
    """

    plan: Plan
    devices: tuple[str, ...]
    initial: list[vector.Vector]
    facts: dict[str, Any]
    traces: Traces
    unseen: tuple[str, ...] = ()
    rest: list[vector.Vector] = field(default_factory=list)


def claim(store: RunStore, recipe: Recipe, resume: bool) -> Any:
    """Return the record of the run in the folder. None: the folder is new.

    Raises StoreError: E-RESUME without a run to resume. E-RUN-EXISTS if another run is in the folder.
    """
    known = store.run()
    if known is None:
        if resume:
            raise no_run(store.out)
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


def no_run(out: Path) -> StoreError:
    """Make the error of a folder without a run to resume."""
    return StoreError("E-RESUME", f"there is no run in {out}.", "leave out --resume (resume=True).")


def check_same(known: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse by StoreError(E-RESUME) to resume a run if a fact that decides the model has changed since it began."""
    then, commit = (str(facts.get("model_commit") or "") for facts in (known, now))
    if then != commit:
        raise StoreError(
            "E-RESUME",
            f"model.base names no commit of the hub, and the model there moved since this run began ({then[:12]} then, "
            f"{commit[:12]} now).",
            f"start again with another --out, and pin the model: write @{then or commit} behind its name.",
        )
    _check_objects(known.get("objects") or {}, now.get("objects") or {})
    for fact, what in SAME.items():
        before, current = (facts.get(fact) or EARLIER.get(fact) for facts in (known, now))
        if before != current:
            was, is_ = _short_fact(before), _short_fact(current)
            back = BACK if fact in ("arithmetic_sha256", "hardware") else "put it back as it was"
            raise StoreError(
                "E-RESUME",
                f"{what} changed since this run began ({fact}: {was} then, {is_} now).",
                f"{back}, or start again with another --out.",
            )


def _check_objects(known: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise StoreError(E-RESUME) with the name of an object that is missing, new or changed."""
    if known and not now:
        what = f"this run began from Python objects: {_some_names(known)}."
        raise StoreError("E-RESUME", what, "go on from the script that began it, with fed.run(out, resume=True).")
    for name in sorted({*known, *now}):
        if known.get(name) != now.get(name):
            how = "is new" if name not in known else "is missing" if name not in now else "changed"
            then, today = _short_fact(known.get(name)), _short_fact(now.get(name))
            what = f"{name} {how} since this run began ({then} then, {today} now)."
            fix = "put it back as it was, or start again with another out (or overwrite=True)."
            raise StoreError("E-RESUME", what, fix)


def _some_names(names: Mapping[str, str], most: int = 5) -> str:
    """List some names, and the number of the others."""
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _short_fact(fact: Any) -> str:
    """Write a fact in few characters."""
    if isinstance(fact, int | str):
        return str(fact)[:12]
    return ", ".join(fact) or "none" if isinstance(fact, list) else "none"


def load(
    executor: Executor,
    recipe: Recipe,
    recipe_dir: Path,
    store: RunStore,
    extensions: Sequence[str],
    known: Mapping[str, Any] | None,
    objects: Objects = NO_OBJECTS,
) -> LoadedRun:
    """Make trainers and plan, on the executor's workers and here. ``known`` is the record of a resumed run.

    Raises:
        EdgewiseError: as ``plan.compile`` and the trainer.
        StoreError(E-WORKER): if workers disagree.
        DataError(E-DATA-EMPTY): without devices.
    """
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
    begun = None if known is None else known["facts"].get("plan_facts")  # A run of an earlier version has none.
    stated = None if begun is None else stated_noise(begun)
    seen, unseen = participants(recipe, first.devices)
    check_root(recipe, seen)
    plan = compile_plan(recipe, spec, len(seen), catalogue(extensions, objects), stated)
    published = canonical(plan.facts)
    checked(executor.broadcast(jobs.Compile(facts=published)))
    initial = vector.from_bytes(first.initial, spec.dim)
    facts = {
        **first.facts,
        "initial_sha256": vector.digest(first.initial),
        "spec_sha256": spec.digest(),
        "extensions": list(extensions),
        **({"objects": dict(objects.digests)} if objects.digests else {}),
        "spec": first.spec,
        "plan_facts": published.decode("ascii"),
        **places(recipe_dir, store.out),
        "versions": versions(),
        "started_at": time.time(),
        "engine": recipe.simulation.engine,
        "batch_devices": recipe.engine.batch_devices,
        "memory_limits": recipe.engine.limits,
        "workers": recipe.simulation.processes,
        "plan": planned(plan),
    }
    rest: list[vector.Vector] = []
    traces: Traces = ()
    if recipe.split.used:
        assert first.rest is not None
        rest.append(vector.from_bytes(first.rest, len(first.rest) // 4))
        facts["rest_sha256"] = vector.digest(first.rest)
    if recipe.distill.active:
        facts |= server_distiller.ServerDistiller(recipe, recipe_dir, recipe_dir, store).facts()
    if recipe.simulation.link_trace:
        traces, facts["link_trace_sha256"] = read_traces(recipe_dir / recipe.simulation.link_trace)
    return LoadedRun(plan, seen, [initial], facts, traces, unseen, rest)


def places(recipe_dir: Path, out: Path) -> dict[str, str]:
    """Return the recipe's path, absolute and relative to the run. The second survives a move of both."""
    here, run = recipe_dir.resolve(), out.resolve()
    try:
        return {"recipe_dir": str(here), "recipe_from_run": Path(os.path.relpath(here, run)).as_posix()}
    except ValueError:  # The path is on another drive of Windows.
        return {"recipe_dir": str(here)}


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of Python, of this machine's system, and of the packages that decide a model."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in ("edgewise", "numpy", "torch", "transformers", "peft"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def tell_forecast(executor: Executor, plan: Plan, tell: Tell) -> None:
    """Report how long the run will take, if a step can be measured and the recipe counts steps."""
    answers = [t for t in executor.broadcast(jobs.Time()) if isinstance(t, jobs.Timed)]
    timed = [(t.step_s, t.encode_s) for t in answers if t.step_s is not None]
    if not timed or plan.rule(0).epochs:
        return
    step_s, encode_s = map(fmean, zip(*timed, strict=True))
    found = explain.forecast(plan, step_s, executor.parallel, encode_s=encode_s)
    tell(events.Forecast(rounds_s=found["federated_s"], compare_s=found["compare_s"]))
