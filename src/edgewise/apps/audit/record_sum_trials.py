"""Trials of records under secure aggregation: canary records in the sums that devices mask.

Each canary record has a coordinate to itself, and a gradient four clips long. Devices sum theirs by the code that
devices run, add their shares of the noise and encode, and the attacker reads the sum of all devices. The canaries are
dealt to as many devices as surely add noise, and to MOST at most: the shares of fewer devices are larger, and their sum
is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.apps.audit.trial_plans import trial_spend
from edgewise.codecs.quantize.wrap import wrap
from edgewise.core import keys
from edgewise.core.keys import Key, derive
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.training import RecordSums
from edgewise.core.vector import Spec
from edgewise.merges.ring import ring_sum
from edgewise.plan.plan import Plan
from edgewise.privacy import audit, audit_findings
from edgewise.privacy import one_run as guessing
from edgewise.privacy.audit import audited_release
from edgewise.privacy.audit_findings import AuditFinding
from edgewise.privacy.record_noise import record_noise, record_step

RECORDS = 2048  # canaries of one sum
MOST = 8  # devices of a trial
LOUD = 1.0  # Noise multiplier at which an audit is most sensitive. The code is the same.
LEFT_OUT = (
    "the other coordinates of a record (a canary has one)",
    "composition of rounds",
    "masks (they cancel in the sum)",
    "corrupt devices, whose noise is not counted on",
)
Step = Callable[[str, int, int], None]  # (name, done, total)


def audit_record_sums(plan: Plan, runs: int, canaries: int, step: Step) -> list[AuditFinding]:
    """Run all trials of a plan whose devices sum records: length, mechanism, and one run at the plan's own noise."""
    first = _audit_length(plan)
    if not first.holds:
        return [replace(first, left_out=("mechanism and one run (not tried if lengths do not hold)",))]
    return [first, _audit_mechanism(plan, runs, step), _audit_one_run(plan, canaries, step)]


class _Trial(NamedTuple):
    """Devices with canaries as their records.

    Attributes:
        pipe: from a device's sum to the sum of all. sums: of one device. devices: their number.
        mu: the accountant's charge for a release at this noise.
    """

    pipe: Pipeline
    sums: RecordSums
    devices: int
    mu: float


def _trial(plan: Plan, z: float) -> _Trial:
    clip = trial_spend(plan).clipping.l2
    devices = max(1, min(plan.at(0).encoded.noise.honest, MOST))
    most, spec = ceil(RECORDS / devices), Spec.of([("w", (RECORDS,), "float32")])
    space = Space(RECORDS, Quorum(devices, devices), population=devices)
    pipe = pipeline(space, [record_noise(spec, z, clip, most), wrap()], ring_sum())
    sums = RecordSums(clip, record_step(clip, RECORDS), most)
    return _Trial(pipe, sums, devices, sqrt(2.0 * pipe.encoded.noise.rho))


def _scores(trial: _Trial, present: NDArray[np.bool_], key: Key) -> NDArray[np.float64]:
    """Score each canary by its coordinate of the noised sum, in clips: 1 if present, plus noise of z."""
    from edgewise.learn.attacks import canaries  # imports torch

    dealt = np.arange(present.size) % trial.devices
    updates = [
        canaries.canary_sum(trial.sums, present & (dealt == i), derive(key, "sum", i)) for i in range(trial.devices)
    ]
    seen = audited_release(trial.pipe, updates, key).astype(np.float64)
    return -seen * (trial.sums.records / trial.sums.clip)


def _audit_length(plan: Plan) -> AuditFinding:
    """Measure the distance of two devices' sums that differ by one record, in clips over the plan's noise."""
    from edgewise.learn.attacks import canaries  # imports torch

    trial, spend = _trial(plan, LOUD), trial_spend(plan)
    key, with_, longest = derive(keys.root(7), "length"), np.zeros(RECORDS, bool), 0.0
    with_[:16] = True
    for gone in range(8):
        without = with_.copy()
        without[gone] = False
        sums = [canaries.canary_sum(trial.sums, rows, key).astype(np.float64) for rows in (with_, without)]
        longest = max(longest, float(np.linalg.norm(sums[0] - sums[1])) * trial.sums.records)
    noise = spend.z * trial.sums.clip  # of the shares that are sure, together
    claimed = audit_findings.event_mu(spend.events[0])
    found = audit_findings.measured_finding("length", claimed, spend.delta, longest / noise, 8)
    of = f"distance of a device's sum from that without one record, one release at noise multiplier {spend.z:.4g}"
    return replace(found, of=of, left_out=LEFT_OUT[:1])


def _audit_mechanism(plan: Plan, runs: int, step: Step) -> AuditFinding:
    """Release sums with and without a record, with every one of ``runs`` canaries as a run."""
    trial, delta, plays = _trial(plan, LOUD), trial_spend(plan).delta, -(-runs // RECORDS)
    scores: dict[bool, list[NDArray[np.float64]]] = {False: [], True: []}
    for i in range(plays):
        step("mechanism", i, plays)
        for world, seen in scores.items():
            seen.append(_scores(trial, np.full(RECORDS, world), derive(keys.root(7), "sums", int(world), i)))
    out, in_ = (np.concatenate(scores[world])[:runs] for world in (False, True))
    found = audit_findings.mechanism_finding("mechanism", trial.mu, delta, out, in_)
    one, two = (_scores(trial, np.zeros(RECORDS, bool), derive(keys.root(7), "fresh", i)) for i in range(2))
    of = f"one record in one release of {trial.devices} devices' sums, with noise scaled to a mu of {trial.mu:.3g}"
    return replace(audit.fresh_noise_finding(found, delta, one, two), of=of, left_out=LEFT_OUT)


def _audit_one_run(plan: Plan, canaries: int, step: Step) -> AuditFinding:
    """Release sums at the plan's own noise, with each canary record present with probability 1/2."""
    spend = trial_spend(plan)
    trial, present = _trial(plan, spend.z), keys.generator(derive(keys.root(7), "present")).random(canaries) < 0.5
    scores = []
    for start in range(0, canaries, RECORDS):
        step("canaries", start, canaries)
        here = np.zeros(RECORDS, bool)
        part = present[start : start + RECORDS]
        here[: part.size] = part
        scores.append(_scores(trial, here, derive(keys.root(7), "one run", start))[: part.size])
    mu = audit_findings.event_mu(spend.events[0])
    found = guessing.one_run_finding(mu, spend.delta, np.concatenate(scores), present)
    of = f"one release at noise multiplier {spend.z:.4g}, each canary a record"
    return replace(found, of=of, left_out=(*LEFT_OUT, *found.left_out))
