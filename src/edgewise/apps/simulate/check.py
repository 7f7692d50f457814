"""Examination of a recipe for `edgewise check`: its steps, disclosures, cost and time, from its real model and text.

Nothing is trained but one measured step. ``check_screen`` prints the result.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgewise.apps.report import data_read
from edgewise.core.errors import DataError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.training import FitRequest, Update
from edgewise.drivers.http.presence import short_deadline
from edgewise.drivers.simulation.link_traces import read_traces
from edgewise.drivers.workers import speed
from edgewise.drivers.workers.records import in_steps, protect_records
from edgewise.drivers.workers.trainers import make_trainer
from edgewise.engine.trainer import Registered
from edgewise.plan import explain
from edgewise.plan.catalogue import BUILT_IN, Catalogue
from edgewise.plan.compile import compile
from edgewise.plan.disclosure import privacy_facts
from edgewise.plan.frames import traffic
from edgewise.plan.held_memory import device_bytes, server_bytes
from edgewise.plan.participants import participants
from edgewise.plan.personal import drift_vectors, keeps_private
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.retention import window_of

TOGETHER, TOGETHER_S, FASTER = 16, 4.0, 1.1  # Devices in a measured pass, its longest time, and a speed-up worth it.
COUNTED = 64  # devices whose steps are counted where the recipe counts passes

MOST_BYTES = 1 << 26  # limit of the text that is tokenized for counting; it takes seconds


def examine(recipe: Recipe, recipe_dir: Path, catalogue: Catalogue = BUILT_IN, fast: bool = False) -> dict[str, Any]:
    """Load model and text, compile, measure one optimizer step (not with ``fast``).

    Returns:
        Plain JSON: ``run``, ``recipe_sha256``, ``model``, ``population``, ``trace``, ``claims``, ``chosen`` (the values
        that the privacy word chose, by key), ``ladder``, ``bytes``, ``memory_bytes`` (of a training device),
        ``server_bytes`` (of the server's vectors beside it in one process), ``totals`` (``Window``),
        ``kept_bytes`` (what a device keeps between rounds for the strategy and for itself), ``ends``,
        ``local_epochs``, ``local_steps`` (``fewest``, ``mean`` and ``most`` of a device and round; with epochs of the
        ``devices`` that were counted, of which ``cut`` reach the bound), ``forecast``,
        ``together`` (``devices`` and ``ratio`` of the proposed ``engine.batch_devices``; null without one),
        ``split`` (the cut, and the bytes that cross it: of a token and pass, and of a device and round),
        ``notes`` (sentences about model, tokenizer and deadline). What is not known is null.
    Raises:
        EdgewiseError: whatever would stop a run before its first round.
    """
    if recipe.simulation.engine != "inproc":  # measure as a worker computes: with one thread (torch reads this once)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if recipe.simulation.link_trace:
        read_traces(recipe_dir / recipe.simulation.link_trace)
    with tempfile.TemporaryDirectory(prefix="edgewise-check-") as scratch:
        trainer = make_trainer(recipe, recipe_dir, Path(scratch), catalogue, passing=True)
        names = participants(recipe, trainer.trainer.devices()).seen
        population = len(names)
        plan = compile(recipe, trainer.trainer.spec, population, catalogue)
        protect_records(plan, trainer)
        sizes = trainer.trainer.sizes()
        step_s = None if fast else trainer.step_s()
        together = _step_together_s(trainer, plan, step_s)
        encode_s = 0.0 if fast else speed.encode_s(plan)
        read = _reading_record(trainer)
        steps, personal_steps = _local_steps(trainer, plan, plan.rule(0)), 0.0
        if recipe.personal.method != "none" and recipe.personal.epochs:
            most = recipe.training.max_local_steps
            rule = LocalRule(steps=most, lr=recipe.personal.lr, epochs=recipe.personal.epochs)
            personal_steps = _local_steps(trainer, plan, rule)["mean"]
        token = None if trainer.splits is None else trainer.splits.token_bytes
        notes = [] if trainer.remarks is None else list(trainer.remarks.notes())
        notes += filter(None, [short_deadline(recipe.round.deadline_s, population)])
    parameters = sizes.get("parameters", 0.0)
    workers = recipe.simulation.processes
    forecast = explain.forecast(plan, step_s, workers, steps["mean"], encode_s, personal_steps)
    trained = sizes.get("trainable") or plan.spec.dim  # The run's vector may be shorter than the model's.
    cost = explain.cost(plan, parameters, trained, names)
    turns = [plan.phase(number) for number in range(plan.rounds)]
    up_total = forecast["contributions_per_round"] * sum(traffic(plan, names)[phase].up for phase in turns)
    return {
        "run": plan.run,
        "recipe_sha256": recipe.sha256(),
        "model": recipe.model.base,
        "parameters": parameters or None,
        "trainable": int(trained),
        "notes": notes,
        "population": population,
        "reading": read,
        "rounds": plan.rounds,
        "sampling": {
            "kind": plan.sampling.kind,
            "invited": plan.sampling.invite,
            "goal": plan.sampling.goal,
            "minimum": plan.sampling.minimum,
            "buffer": None if plan.sampling.buffer is None else asdict(plan.sampling.buffer),
        },
        "trace": explain.trace(plan),
        "trace_down": explain.trace_down(plan),
        "claims": list(plan.claims),
        "chosen": recipe.chosen,
        "privacy": privacy_facts(plan),
        "ladder": explain.ladder(plan, catalogue, steps["mean"]),
        "bytes": {**cost, "up_total": up_total, "down_total": explain.down_total(plan, cost["down_frames"])},
        "split": _session_bytes(recipe, token, steps["mean"]),
        "memory_bytes": (sizes.get("memory_bytes") or 0.0) + device_bytes(plan) or None,
        "server_bytes": server_bytes(plan),
        "totals": window_of(plan)._asdict(),
        "kept_bytes": 4 * (plan.spec.dim * len(plan.strategy.client.memory) + _private_parameters(plan, trainer)),
        "ends": _decisions_by_loss(recipe),
        "local_epochs": recipe.training.local_epochs or None,
        "local_steps": steps,
        "step_s": step_s,
        "together": together,
        "workers": workers,
        "forecast": forecast,
    }


def _session_bytes(recipe: Recipe, token: Mapping[str, float] | None, steps: float) -> dict[str, Any] | None:
    """Compute the bytes that cross the cut in a device's session, without headers. None where the model is whole."""
    if token is None:
        return None
    tokens = steps * recipe.training.batch * recipe.data.sequence_len
    if recipe.split.cached:
        tokens = 0.0  # They go up once, and no device's tokens are counted here.
    return {
        "once": recipe.split.cached, "cut": recipe.split.cut, "shape": recipe.split.shape,
        "held_by": recipe.split.held_by,
        "token_up": token["up"], "token_down": token["down"], "up": token["up"] * tokens,
        "down": token["down"] * tokens,
    }  # fmt: skip


def _private_parameters(plan: Plan, trainer: Registered) -> int:
    """Count the private parameters of a device."""
    if not keeps_private(plan):
        return 0
    if (vectors := drift_vectors(plan)) is not None:
        return vectors * plan.spec.dim
    return plan.spec.dim if trainer.keeps is None else trainer.keeps.inner.trainer.spec.dim - plan.spec.dim


def _local_steps(trainer: Registered, plan: Plan, rule: LocalRule) -> dict[str, Any]:
    """Count the optimizer steps of a device by a rule. With passes, ask ``COUNTED`` devices, spread evenly."""
    known = trainer.trainer.devices()
    n = min(COUNTED, len(known)) if rule.epochs else 0
    each = [in_steps(trainer, plan, known[i * len(known) // n], rule).steps for i in range(n)] or [rule.steps]
    cut = sum(steps == rule.steps for steps in each) if n else 0
    return {"fewest": min(each), "mean": sum(each) / len(each), "most": max(each), "devices": n, "cut": cut}


def _reading_record(trainer: Registered) -> dict[str, Any] | None:
    """The record of what the trainer read and left out, or None. Some of the text is tokenized for it.

    Raises DataError(E-DEVICE-DATA) where all devices were looked at and nothing is left to train or to measure on.
    """
    read = None if trainer.reads is None else trainer.reads.reading(MOST_BYTES)
    if read and read["examined"] == read["devices"] and not (read["train_tokens"] and read["held_tokens"]):
        what = "no device has text to train on."
        if read["train_tokens"]:
            what = f"no device has enough text for a hold-out of {read['holdout']:g} of it, so nothing can be measured."
        raise DataError(
            "E-DEVICE-DATA",
            " ".join([what, *data_read.notes(read)]),
            "give devices more text that can be read, or look at data.path, data.text and data.holdout.",
        )
    return read


def _decisions_by_loss(recipe: Recipe) -> str:
    """List the decisions that rest on held-out losses. Empty if there are none."""
    n, decisions = recipe.round.patience, []
    if n:
        decisions.append(f"ends after {n} evaluation{'s' * (n != 1)} in a row without a lower held-out loss")
    if recipe.round.keep == "best":
        decisions.append("the model with the lowest held-out loss counts")
    return "; ".join(decisions)


def _step_together_s(trainer: Registered, plan: Plan, step_s: float | None) -> dict[str, float] | None:
    """Measure a step of several devices in one pass. None where they cannot, or are not clearly faster than in turn.

    A pass that would take long is not measured, because large batches gain nothing. Nor is one that may need more than
    half of the free memory.
    """
    if step_s is None or trainer.together is None or trainer.together.apart() is not None or plan.promise.noises_steps:
        return None
    devices = trainer.trainer.devices()[: min(TOGETHER, plan.sampling.goal)]
    if len(devices) < 2 or step_s * len(devices) > TOGETHER_S:
        return None
    needed = trainer.trainer.sizes().get("memory_bytes", 0.0) * len(devices)
    if "SC_AVPHYS_PAGES" in os.sysconf_names and needed > os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE") / 2:
        return None
    start = trainer.initial()
    rule = LocalRule(steps=1, lr=plan.rule(0).lr)
    asked = [FitRequest(device, 0, start, rule, bytes(32), bytes(32)) for device in devices]
    for _ in range(2):  # The second pass counts, because caches are warm then.
        began = time.perf_counter()
        try:
            updates = trainer.fit_many(asked)
        except TrainingError:  # They may not fit into memory together.
            return None
        took_s = time.perf_counter() - began
    ratio = step_s * sum(isinstance(one, Update) for one in updates) / took_s
    return {"devices": len(devices), "ratio": round(ratio, 2)} if ratio >= FASTER else None
