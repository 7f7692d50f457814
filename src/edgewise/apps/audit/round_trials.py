"""Trials of two rounds of one device: attacks on the difference and the sum of two noised releases.

A difference removes noise that is repeated, and a sum removes noise that is repeated with the opposite sign. So the
device sends u and then p u, with random signs p_j of coordinates, and the attacker looks at

    s_j = sign(u_j) (r_j + p_j r'_j)

of the two releases r, r' at the place of the noise. u moves s_j by twice as much as r_j. Independent noise makes it
only sqrt(2) times as uncertain. So mu is sqrt(2) times that of one release, which is the joint claim of two releases.
The keys are those of a simulated run: of its devices, of its server, and of two rounds with one nonce, because a server
may repeat a nonce.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from edgewise.apps.audit.record_trials import NONCE, Step
from edgewise.apps.audit.trial_plans import (
    COHORT,
    FINER,
    LONG,
    first_trial_pipeline,
    promised_adjacency,
    trial_clip,
    trial_layout,
    trial_mu,
    trial_spend,
    true_keys,
)
from edgewise.core import keys
from edgewise.core.decoding import undo
from edgewise.core.keys import Turn, derive
from edgewise.core.payload import Payload
from edgewise.core.pipeline import Pipeline
from edgewise.core.space import Adjacency
from edgewise.core.vector import Vector
from edgewise.drivers.simulation.keys import simulated_entropy, simulated_root, simulated_secrets
from edgewise.plan.catalogue import BUILT_IN, Catalogue
from edgewise.plan.plan import Plan
from edgewise.plan.promise import Noiser
from edgewise.plan.scaled import scaled_plan
from edgewise.privacy import audit_findings
from edgewise.privacy.audit import FULL_WEIGHT, audited_count, neighbouring_update
from edgewise.privacy.audit_findings import AuditFinding
from edgewise.privacy.distributed import MOST_BITS


def audit_two_rounds(plan: Plan, runs: int, step: Step, catalogue: Catalogue = BUILT_IN) -> AuditFinding:
    """Play two rounds of one worst-case device or its neighbour, with every one of ``runs`` coordinates as a run.

    The trial has the recipe's clip, noise and merge without its stages and metrics. Its noise multiplier gives a mu of
    about 1, as in ``mechanism``. A clip that follows the updates stays at its initial value.
    """
    step("rounds", 0, 1)
    spec, whole = trial_layout(plan.spec, runs), 2.0 if plan.promise.who_noises is Noiser.DEVICE else 1.0
    z, bits, stages = whole / sqrt(spec.dim), 0, [table["kind"] for table in plan.stage_tables]
    if plan.promise.who_noises is Noiser.COHORT:
        probe = scaled_plan(plan, [], spec, z, catalogue, COHORT, metrics=False)
        bits = min(MOST_BITS, probe.at(0).encoded.noise.ring_bits + FINER)
    small = scaled_plan(plan, [], spec, z, catalogue, COHORT, bits, metrics=False, adaptive_clip=False)
    update = np.full(spec.dim, LONG * trial_clip(plan), np.float32)
    found = _play_two_rounds(
        small, first_trial_pipeline(small, plan), trial_mu(small, 0), update, promised_adjacency(plan)
    )
    left_out = {
        **{f"{kind} (the two rounds run without it)": True for kind in stages},
        "composition of more than two rounds of a device": trial_spend(plan).rounds_each > 2,
        f"{' and '.join(plan.metrics.names)} beside the update": bool(plan.metrics.names),
        "changes of the clip": trial_spend(plan).clipping.follows,
        "masks and shares (they cancel in the sum)": plan.hides is not None,
    }
    of = f"one coordinate of two releases in a row, with noise scaled to a mu of {found.claimed:.3g}"
    return replace(found, of=of, left_out=true_keys(left_out))


def _play_two_rounds(plan: Plan, pipe: Pipeline, mu: float, update: Vector, adjacency: Adjacency) -> AuditFinding:
    """Play two rounds with one device's updates, and with its neighbour's. Every coordinate is a run.

    Args:
        plan: source of the keys.
        pipe: its stages, merge and noise, without a head and without a server's half.
        mu: claim for one release.
        update: float32[d] with equal |update_i| > 0.
        adjacency: the promised neighbours.
    Guarantees: ``lower`` holds with 95 %.
    """
    signs = 1.0 - 2.0 * keys.generator(derive(keys.root(7), "signs")).integers(0, 2, update.size)
    scores = []
    for world in ("without", "with"):
        root, score = simulated_root(plan, "", {"fingerprint": world}), np.zeros(update.size)
        for number, by in ((0, np.ones(update.size)), (1, signs)):
            turn = Turn(number, derive(keys.root(7), "public", number))
            x = _sent_as(pipe, (update * by).astype(np.float32), turn)
            own = x if world == "with" else neighbouring_update(x, adjacency)
            others = (
                0 if adjacency == "replace_one" else (audited_count(pipe.total.space) or pipe.spaces[0].quorum.n_min)
            )
            updates = [] if own is None else [own]
            updates += [np.zeros_like(update)] * (others - len(updates))
            score += by * _noised_sum(plan, pipe, updates, turn, root)
        scores.append(np.sign(update) * score)
    lower, claimed = 0.0, sqrt(2.0 / update.size) * mu
    for part in (signs < 0.0, signs > 0.0):  # Differences and sums. Both bounds hold together with 95 %.
        lower = max(lower, audit_findings.gaussian_mu(scores[0][part], scores[1][part], 0.975))
    return audit_findings.measured_finding("rounds", claimed, trial_spend(plan).delta, lower, update.size)


def _noise_stage(pipe: Pipeline) -> int:
    """Return the index of the stage in which devices add noise; -1 if the server does."""
    return next((i for i in range(len(pipe.stages)) if pipe.spaces[i + 1].noise.std > 0.0), -1)


def _sent_as(pipe: Pipeline, shape: Vector, turn: Turn) -> Vector:
    """Find the update that the stages before the noise turn into ``shape``, up to its length."""
    at = max(0, _noise_stage(pipe))
    before = Payload(shape, np.zeros(0), count=FULL_WEIGHT)
    return undo(pipe.stages[:at], pipe.spaces[: at + 1], before, turn).dense(pipe.spaces[0].dim).body


def _noised_sum(plan: Plan, pipe: Pipeline, updates: list[Vector], turn: Turn, root: keys.Key) -> NDArray[np.float64]:
    """Return the noised sum of one round: in units of the hidden sum or the message, or as it is released."""
    at, total, payload = _noise_stage(pipe), pipe.start_sum(), None
    for payload in _encoded_updates(plan, pipe, updates, turn, root):
        total = pipe.add(total, payload, turn)
    if at < 0:
        entropy = simulated_entropy(plan, root, turn.round)
        aggregate, _ = pipe.release(total, turn, entropy, pipe.start_memory())
        return aggregate.mean.astype(np.float64) * aggregate.weight
    if pipe.merge.blind:
        payload = pipe.merge.finish(total.acc, pipe.encoded, False)
    assert payload is not None, "a device that hides itself is in its own sum"
    return undo(pipe.stages, pipe.spaces, payload, turn, at + 1).body.astype(np.float64)


def _encoded_updates(
    plan: Plan, pipe: Pipeline, updates: list[Vector], turn: Turn, root: keys.Key
) -> Iterator[Payload]:
    """Yield the encoded updates of one round."""
    for i, x in enumerate(updates):
        secrets = simulated_secrets(plan, root, str(i), turn.round, NONCE)
        own = Turn(turn.round, turn.public, secrets.encoding, device=str(i))
        yield pipe.encode(x, {}, FULL_WEIGHT, pipe.init(), own)[0]
