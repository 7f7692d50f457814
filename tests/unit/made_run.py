"""A run directory as a simulation would leave it, made in milliseconds: what the tests of the apps stand on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.core import events
from edgewise.core.vector import Spec
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine.checkpoint import Change, Checkpoint
from edgewise.plan import explain
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.disclosure import privacy_facts
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import from_plain
from edgewise.strategies.base import State

NAMES = (
    "asyncio collections concurrent ctypes email html http importlib json logging multiprocessing re unittest urllib "
    "wsgiref xml xmlrpc"
).split()
PLAIN: dict[str, Any] = {
    "schema": 1,
    "name": "made",
    "seed": 7,
    "privacy": "none",
    "personal": {"method": "fine_tune"},
    "round": {"rounds": 12},
    "training": {"local_steps": 8, "lr": 2e-3},
    "strategy": {"kind": "fedavgm"},
    "stage": [{"kind": "weigh"}, {"kind": "quantize", "bits": 4}],
    "eval": {"every": 3},
}

FATES = 0.06, 0.03  # shares of the invitations that are lost, and that are late
SECURE = {"kind": "secure_sum"}
GRID = [
    {"kind": "weigh", "cap": 16_000},
    {"kind": "clamp", "linf": 2.0},
    {"kind": "quantize", "bits": 8, "grid": "shared"},
    {"kind": "wrap"},
]
DP: dict[str, Any] = {"stage": [], "metrics": "none", "dp": {"epsilon": 20.0, "delta": 1e-3, "clip_l2": 1.0}}
EXAMPLE = {"epsilon": 2.0, "unit": "example", "sample_rate": 0.1}
RECIPES: dict[str, dict[str, Any]] = {  # the sections in which a recipe of each privacy word differs from ``PLAIN``
    "none": {"privacy": "none"},
    "hidden": {"privacy": "hidden", "merge": SECURE, "stage": GRID},
    "central_dp": {"privacy": "central_dp", **DP},
    "distributed_dp": {"privacy": "distributed_dp", **DP, "trust": {"malicious_fraction": 0.05}, "merge": SECURE},
    "local_dp": {"privacy": "local_dp", **DP},
    "example": {"privacy": "local_dp", **DP, "dp": {**DP["dp"], **EXAMPLE}},
}


def made_plan(devices: int = 17, spec: Spec | None = None, **changes: Any) -> Plan:
    """The plan of ``PLAIN`` with some sections replaced."""
    layout = spec or Spec.of([("embed", (4096, 128), "float32"), ("rest", (853120,), "float32")])
    return compile(from_plain({**PLAIN, **changes}), layout, devices, BUILT_IN)


def make_run(
    out: Path,
    *,
    devices: int = 17,
    rounds_played: int | None = None,
    finished: bool = True,
    params: np.ndarray[Any, Any] | None = None,
    facts: dict[str, Any] | None = None,
    spec: Spec | None = None,
    worse: float = 0.0,
    **changes: Any,
) -> Plan:
    """Fill ``out`` with a plausible run: quality improves, some devices are lost, all figures are deterministic. Its
    base is ``worse`` by so many nats a token."""
    plan = made_plan(devices, spec, **changes)
    names = [NAMES[i] if devices <= len(NAMES) else f"device-{i:04d}" for i in range(devices)]
    draw = np.random.default_rng(3)
    held = {d: int(t) for d, t in zip(names, draw.integers(900, 16_000, devices), strict=True)}
    start = dict(zip(names, draw.normal(6.35, 0.25, devices) + worse, strict=True))  # nats per token
    played = plan.rounds if rounds_played is None else rounds_played
    x = np.zeros(8, np.float32) if params is None else params
    known = {
        "model": "student",
        "parameters": 1_377_408,
        "devices": {d: 9 * t for d, t in held.items()},
        "bytes_per_token": 3.1,
        "fingerprint": "0f" * 32,
        "versions": {"python": "3.11.7", "edgewise": "0.1.0", "torch": "2.13.0"},
        "engine": "pool",
        "workers": 2,
        "started_at": 1_790_000_000.0,
        "plan": {
            "trace": explain.trace(plan),
            "trace_down": explain.trace_down(plan),
            "claims": list(plan.claims),
            "privacy": privacy_facts(plan),
            "upload_bytes": plan.upload_bytes(0),
            "dim": plan.spec.dim,
            "population": devices,
            "rungs": list(plan.rungs),
        },
    }
    with RunStore(out) as store:
        store.create(plan.run, plan.recipe.name, plan.recipe.resolved(), {**known, **(facts or {})})
        store.commit(Checkpoint(0, State(np.zeros_like(x), {}, 0)), ())

        def measure(model: str, round: int, drop: float, spread: float = 0.12) -> None:
            gain = np.random.default_rng(len(model)).normal(1.0, spread, devices)
            nll = {d: float((start[d] - drop * g) * held[d]) for d, g in zip(names, gain, strict=True)}
            store.append(events.Evaluated(round=round, model=model, nll=nll, tokens=held, seconds=1.9))

        measure("base", -1, 0.0)
        for number in range(played):
            told, accepted = _round(plan, names, number, draw)
            moved = State(x * np.float32((number + 1) / played), {}, number + 1)
            store.commit(Checkpoint(number + 1, moved), told, Change(accepted))
            if (number + 1) % 3 == 0 or number + 1 == plan.rounds:
                measure("federated", number, 1.35 * (1 - math.exp(-(number + 1) / 5)))
        if played == plan.rounds and finished:
            if plan.recipe.compare.local_only:
                measure("local_only", played - 1, 0.93, 0.35)
            if plan.recipe.compare.centralised:
                measure("centralised", played - 1, 1.52)
            if plan.recipe.personal.method != "none":
                measure("local_personal", played - 1, 0.9, 0.4)
                measure("personal_elsewhere", played - 1, 1.2)
                measure("personal", played - 1, 1.6)
            store.finish()
    return plan


def _round(
    plan: Plan, names: list[str], number: int, draw: np.random.Generator
) -> tuple[list[events.AnyEvent], list[str]]:
    deltas = plan.delta_bytes is not None and number > 0
    down = (round(plan.delta_bytes or 0) if deltas else 4 * plan.spec.dim) + 310
    up, fate = round(plan.upload_bytes(0)) + 230, draw.random(len(names))
    lost, missed = FATES
    gone = [d for d, f in zip(names, fate, strict=True) if f < lost]
    late = [d for d, f in zip(names, fate, strict=True) if lost <= f < lost + missed]
    accepted = [d for d in names if d not in gone and d not in late]
    told: list[events.AnyEvent] = [
        events.RoundStarted(round=number, invited=len(names), goal=len(names), minimum=plan.sampling.minimum)
    ]
    for i, d in enumerate(gone):
        told.append(events.Lost(round=number, device=d, code="E-NAN" if (i + number) % 4 == 0 else "dropped"))
    for d in accepted:
        rung = names.index(d) % len(plan.rungs) if plan.rungs else None
        told.append(
            events.Accepted(
                round=number, device=d, bytes_up=up, bytes_down=down, train_s=0.41, encode_s=0.012, rung=rung
            )
        )
    loss = 6.3 - 1.4 * (1 - math.exp(-(number + 1) / 4))
    told.append(
        events.RoundFinished(
            round=number,
            met=True,
            accepted=len(accepted),
            lost=len(gone),
            late=len(late),
            bytes_up=up * len(accepted),
            bytes_down=down * len(names),
            update_l2=2.0 / (number + 1),
            head={"loss_first": loss + 0.25, "loss_last": loss},
            train_s=0.41 * len(accepted),
            encode_s=0.012 * len(accepted),
            aggregate_s=0.11,
            seconds=4.2 + 0.1 * math.sin(number),
            model="ab" * 32,
            lag_l2=0.25 if plan.downlink else 0.0,
        )
    )
    return told, accepted
