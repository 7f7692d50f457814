"""Trials of example-level privacy: steps of DP-SGD by the code that devices train with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgewise.core import keys
from edgewise.core.keys import Key, derive
from edgewise.drivers.simulation.keys import simulated_root, simulated_secrets
from edgewise.drivers.workers.records import steps_noise
from edgewise.plan.noise import PlannedSpend
from edgewise.plan.plan import Plan
from edgewise.privacy import audit, audit_findings
from edgewise.privacy import one_run as guessing
from edgewise.privacy.audit_findings import AuditFinding, event_mu

if TYPE_CHECKING:
    from edgewise.core.training import StepNoise

NONCE = b"two rounds"
STEP_RECORDS = 2048  # Canaries of one step of DP-SGD.
LEFT_OUT = (
    "the draw of records (the attacker knows the records of the step, and the claim is without it)",
    "composition of steps and rounds",
)
Step = Callable[[str, int, int], None]  # (name, done, total)


def audit_record_mechanism(plan: Plan, runs: int, step: Step) -> tuple[AuditFinding, AuditFinding]:
    """Take many steps of DP-SGD at the recipe's noise multiplier and clip, with and without a record.

    Returns one finding on the size of the released values, and one on their last bits
    (``audit_findings.noise_grain_finding``). Every record of a step is a run, because its gradient has a coordinate to
    itself (``learn.attacks.canaries``).
    """
    spend, plays = _plan_spend(plan), -(-runs // STEP_RECORDS)
    clip, delta = spend.clipping.l2, spend.delta
    scores: dict[bool, list[NDArray[np.float64]]] = {False: [], True: []}
    for i in range(plays):
        step("mechanism", i, plays)
        for world, seen in scores.items():
            seen.append(_record_step(plan, np.full(STEP_RECORDS, world), derive(keys.root(7), "record", int(world), i)))
    out, in_ = (np.concatenate(scores[world])[:runs] for world in (False, True))
    one, two = (_record_step(plan, np.zeros(64, bool), derive(keys.root(7), "fresh", i)) for i in range(2))
    size = audit.fresh_noise_finding(
        audit_findings.mechanism_finding("mechanism", _claimed_mu(plan), delta, out, in_), delta, one, two
    )
    # The scores are in units of the clip. These are the float32 values that left the step.
    bits = audit_findings.noise_grain_finding(
        "grain", _claimed_mu(plan), delta, (out * clip).astype(np.float32), (in_ * clip).astype(np.float32), clip
    )
    of = _one_step(plan)
    return replace(size, of=of, left_out=LEFT_OUT), replace(bits, of=f"the last bits of {of}", left_out=LEFT_OUT)


def audit_record_steps(plan: Plan, runs: int, step: Step) -> AuditFinding:
    """Attack the difference and the sum of two steps of one device, of one round and of two rounds.

    A record is in both steps or in neither. The method and the keys of a simulated run are those of ``round_trials``.
    The accountant counts every step as visible, so the attacker sees both. The finding is the worst of four bounds,
    which hold together with 95 %.
    """
    from edgewise.learn.attacks import canaries  # imports torch

    plays, dp = -(-runs // STEP_RECORDS), _record_dp(plan)
    signs = 1.0 - 2.0 * keys.generator(derive(keys.root(7), "signs")).integers(0, 2, STEP_RECORDS)
    seen: dict[tuple[bool, int], list[NDArray[np.float64]]] = {}
    for i in range(plays):
        step("steps", i, plays)
        for world in (False, True):
            root = simulated_root(plan, "", {"fingerprint": str(world)})
            one, two = (simulated_secrets(plan, root, str(i), number, NONCE).training for number in range(2))
            first, *others = canaries.score_canaries_by_pairs(dp, np.full(STEP_RECORDS, world), signs < 0.0, one, two)
            for which, other in enumerate(others):
                seen.setdefault((world, which), []).append(first + signs * other)
    mu, lower, part = sqrt(2.0) * _claimed_mu(plan), 0.0, np.tile(signs, plays)
    for which, by in product(range(2), (-1.0, 1.0)):
        out, in_ = (np.concatenate(seen[world, which])[part == by] for world in (False, True))
        lower = max(lower, audit_findings.gaussian_mu(out, in_, 1.0 - 0.05 / 4))
    found = audit_findings.measured_finding("steps", mu, _plan_spend(plan).delta, lower, part.size)
    of = _one_step(plan).replace("one of", "two of", 1)
    left_out = (LEFT_OUT[0], "composition of more than two steps")
    return replace(found, of=f"{of}, within one round and in two rounds", left_out=left_out)


def audit_records_in_one_run(plan: Plan, canaries: int, step: Step) -> AuditFinding:
    """Take steps of DP-SGD with canaries as records, each present with probability 1/2."""
    present = keys.generator(derive(keys.root(7), "present")).random(canaries) < 0.5
    starts = range(0, canaries, STEP_RECORDS)
    scores = []
    for start in starts:
        step("canaries", start, canaries)
        key = derive(keys.root(7), "record one run", start)
        scores.append(_record_step(plan, present[start : start + STEP_RECORDS], key))
    found = guessing.one_run_finding(_claimed_mu(plan), _plan_spend(plan).delta, np.concatenate(scores), present)
    return replace(found, of=_one_step(plan), left_out=(*LEFT_OUT, *found.left_out))


def _record_step(plan: Plan, present: NDArray[np.bool_], key: Key) -> NDArray[np.float64]:
    from edgewise.learn.attacks import canaries  # imports torch

    return canaries.score_canaries_by_step(_record_dp(plan), present, key)


def _record_dp(plan: Plan) -> StepNoise:
    return steps_noise(_plan_spend(plan))


def _one_step(plan: Plan) -> str:
    steps, clip = plan.rule(0).steps * plan.rounds, _plan_spend(plan).clipping.l2
    return f"one of up to {steps} steps of a device, at noise multiplier {_plan_spend(plan).z:.4g} and clip {clip:g}"


def _plan_spend(plan: Plan) -> PlannedSpend:
    """Privacy spend of a plan that has one."""
    assert plan.spend is not None
    return plan.spend


def _claimed_mu(plan: Plan) -> float:
    """Claimed mu of the plan's steps."""
    return event_mu(_plan_spend(plan).events[0])
