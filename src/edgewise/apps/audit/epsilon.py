"""Empirical epsilon of a plan's own code: update lengths before the noise, two worlds, and one run with many canaries.

Each finding names the attacked part (``Finding.of``), compares with the claim for exactly that part, and lists the
omissions. A recipe's epsilon covers all rounds together. A trial attacks one release, or the whole run if noise is
correlated over rounds. Canaries have updates that no training would produce: dense random signs, far longer than the
clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.apps.audit import record_sum_trials, record_trials, round_trials
from edgewise.apps.audit.trial_plans import (
    COHORT,
    FINER,
    LONG,
    first_trial_pipeline,
    lacks_corrupt_devices,
    promised_adjacency,
    trial_clip,
    trial_layout,
    trial_mu,
    trial_pipelines,
    trial_spend,
    true_keys,
)
from edgewise.core import keys
from edgewise.core.keys import Turn, derive
from edgewise.core.pipeline import Pipeline
from edgewise.core.vector import Vector
from edgewise.plan.catalogue import BUILT_IN, Catalogue
from edgewise.plan.plan import Plan
from edgewise.plan.promise import Noiser
from edgewise.plan.scaled import scaled_plan
from edgewise.privacy import audit, matrix
from edgewise.privacy import one_run as guessing
from edgewise.privacy.audit import audited_contribution, audited_release, audited_round_release, neighbouring_update
from edgewise.privacy.audit_findings import AuditFinding
from edgewise.privacy.distributed import MOST_BITS
from edgewise.privacy.matrix import BltMatrix

CANARIES = {True: 512, False: 4096}  # By ``quick``, as in the tables below.
RUNS = {True: 1 << 14, False: 1 << 17}
PAIRS = 1 << 13  # Pairs of steps. Each takes four steps.
RELEASES = 8  # A run that is a whole release costs as much as so many runs of a coordinate.
HEADED = 0.9  # Noise multiplier of whole releases: mu is about 1, and an adaptive clip's bit can be paid from it.
WORK = {True: 1 << 27, False: 1 << 29}  # Largest number of coordinates of all canaries and their noise.
NOT_TRIED = (  # No trial covers these, whatever the recipe.
    "secrecy of the noise keys (the trials use their own keys, or those of a simulated run for two rounds or steps)",
    "the device's state machine, which answers a round once, sends zeros if it cannot train, and counts rounds",
    "the recipe's own model and text (canaries are artificial, and under record noise the model is one linear layer)",
    "the wiring, which gives the plan's noise, clip and rate to the trainer and charges before a release",
    "composition of more than two rounds or steps, and of secret draws, which rests on the accountant",
)
GROUPS = 8  # At most so many of the groups that take turns have canaries. Each needs a sum over all rounds.
BY_COORDINATE = (
    "clip",
    "clamp",
    "segments",
    "factors",
    "folds",
    "random_k",
    "rotate",
)  # These decode each coordinate alone.
Step = Callable[[str, int, int], None]  # (name, done, total)


def audit_epsilon(plan: Plan, quick: bool, step: Step, catalogue: Catalogue = BUILT_IN) -> list[AuditFinding]:
    """Run all trials of a plan. Returns no finding for a plan that claims no epsilon.

    If an update is longer than its bound, the other trials are skipped, because later code refuses such updates.
    """
    if plan.spend is None:
        return []
    if plan.promise.sums_records:
        return record_sum_trials.audit_record_sums(plan, RUNS[quick], CANARIES[quick], step)
    if plan.promise.noises_steps:
        return [
            *record_trials.audit_record_mechanism(plan, RUNS[quick], step),
            record_trials.audit_record_steps(plan, PAIRS, step),
            record_trials.audit_records_in_one_run(plan, CANARIES[quick], step),
        ]
    first = audit_length(plan)
    if not first.holds:
        return [replace(first, left_out=("mechanism, rounds and one run (not tried if lengths do not hold)",))]
    released_once = mechanism_release(plan, RUNS[quick], step, catalogue)
    whole = audit_one_run(plan, CANARIES[quick], step, WORK[quick])
    if trial_spend(plan).correlated:  # Then ``whole`` covers all rounds.
        return [first, released_once, whole]
    return [first, released_once, round_trials.audit_two_rounds(plan, RUNS[quick], step, catalogue), whole]


def audit_length(plan: Plan) -> AuditFinding:
    """Measure the largest distance of an update from its neighbour's at the place of the noise.

    Returns the worst finding of all phases.
    """
    dim, size = plan.spec.dim, LONG * trial_clip(plan)
    spike, found = np.zeros(dim, np.float32), []
    spike[dim // 2] = size
    for phase, pipe in enumerate(trial_pipelines(plan)):
        updates = [*(_canary_signs(dim, i) * np.float32(size) for i in range(6)), spike, np.zeros(dim, np.float32)]
        mu, key = trial_mu(plan, phase), derive(keys.root(7), "length", phase)
        found.append(
            audit.length_audit(
                "length",
                pipe,
                mu,
                updates,
                trial_spend(plan).delta,
                key,
                _noise_std(plan, pipe),
                promised_adjacency(plan),
            )
        )
    of = "distance of an update from its neighbour's before the noise, one release"
    of += f" at noise multiplier {_noise_multiplier(plan):.4g}"
    return replace(max(found, key=lambda f: f.lower / f.claimed), of=of)


def _noise_std(plan: Plan, pipe: Pipeline) -> float:
    """Return the noise std of one release. 0 if noise is correlated, because the claim is then for the whole run."""
    if trial_spend(plan).correlated:
        return 0.0
    return pipe.encoded.noise.std if plan.promise.who_noises is Noiser.DEVICE else pipe.total.noise_std


def mechanism_release(plan: Plan, runs: int, step: Step, catalogue: Catalogue = BUILT_IN) -> AuditFinding:
    """Release one worst-case device or its neighbour, with every one of ``runs`` coordinates as a run.

    If numbers travel beside the update, there are ``runs / RELEASES`` releases with them instead, and each is a run.
    The trial has the recipe's stages, clip and share of corrupt devices, on tensors with the model's names and equal
    lengths. The noise multiplier gives a mu of about 1 for one run, where an audit is most sensitive. The code is the
    same.
    """
    step("mechanism", 0, 1)
    spec = trial_layout(plan.spec, runs)
    stages = [table for table in plan.stage_tables if _by_coordinate(table)]
    whole, size, delta = (
        2.0 if plan.promise.who_noises is Noiser.DEVICE else 1.0,
        LONG * trial_clip(plan),
        trial_spend(plan).delta,
    )
    probe = scaled_plan(plan, stages, spec, whole / sqrt(spec.dim), catalogue, COHORT)
    of = "one coordinate of one release"
    if probe.at(0).encoded.head:
        tiny = scaled_plan(plan, stages, trial_layout(plan.spec, len(plan.spec.segments)), HEADED, catalogue, COHORT)
        update, many = np.full(tiny.spec.dim, size, np.float32), runs // RELEASES
        pipe, mu, of = first_trial_pipeline(tiny, plan), trial_mu(tiny, 0), "one release, body and head"
        noised = pipe
        found = audit.releases_audit("mechanism", pipe, update, delta, keys.root(7), many, mu, promised_adjacency(plan))
    else:
        bits = (
            min(MOST_BITS, probe.at(0).encoded.noise.ring_bits + FINER)
            if plan.promise.who_noises is Noiser.COHORT
            else 0
        )
        small = scaled_plan(plan, stages, spec, whole / sqrt(probe.at(0).encoded.dim), catalogue, COHORT, bits)
        update = np.full(spec.dim, size, np.float32)
        noised, mu = first_trial_pipeline(small, plan), trial_mu(small, 0)
        found = audit.mechanism_audit("mechanism", noised, update, delta, keys.root(7), mu, promised_adjacency(plan))
    nothing = [np.zeros_like(update)] * max(1, audit.audited_count(noised.total.space))
    start, public = noised.start_memory(), derive(keys.root(7), "public")
    one, two = (
        audited_round_release(noised, nothing, derive(keys.root(7), "fresh", i), 0, start, public)[0] for i in range(2)
    )
    found = audit.fresh_noise_finding(found, delta, one, two)
    spend, others = trial_spend(plan), [table["kind"] for table in plan.stage_tables if not _by_coordinate(table)]
    left_out = {
        **{f"{kind} (behind it coordinates are not separate runs)": True for kind in others},
        f"{' and '.join(plan.metrics.names)} (they are coordinates of the update here, and do not move)": bool(
            plan.metrics.names and not probe.at(0).encoded.head
        ),
        "correlation of noise over the rounds": spend.correlated,
        "corrupt devices (the trial's cohort is too small for one)": plan.promise.who_noises is Noiser.COHORT
        and lacks_corrupt_devices(plan),
        "dp.bits (the scaled noise needs another ring)": spend.bits > 0,
        "phases after the first": len(plan.pipelines) > 1,
        "the rungs of the ladder": bool(plan.rungs),
    }
    of += f", with noise scaled to a mu of {found.claimed:.3g}"
    return replace(found, of=of, left_out=tuple(dict.fromkeys([*true_keys(left_out), *_left_out(plan)])))


def audit_one_run(plan: Plan, canaries: int, step: Step, work: int = WORK[False]) -> AuditFinding:
    """Run the plan at its own noise with many canary devices, each present with probability 1/2, and score each.

    The canaries are dealt to releases of the plan's stages, each with its own noise. Together they are one run, and
    flipping a canary changes one release. The ``neighbour`` of an absent canary takes its place. With ``local`` noise a
    release is one message. With correlated noise the trial is the run itself. A canary is then in all rounds of its
    group, and its score is the sum of all releases with the weights of a matched filter (``_play_canaries``).

    Args:
        canaries: number of canaries, reduced to fit into ``work`` (at least 64).
        work: largest number of encoded coordinates. Long runs of correlated noise are cut to fit. The claim is then
            that of their beginning.
    """
    pipes, blt = trial_pipelines(plan), _noise_correlation(plan)
    rounds = min(blt.rounds, max(1, work // (4 * plan.spec.dim)))
    takes = min(blt.takes, -(-rounds // blt.gap))
    canaries = min(canaries, max(64, work // (plan.spec.dim * takes)))
    present = keys.generator(derive(keys.root(7), "present")).random(canaries) < 0.5
    if plan.promise.who_noises is Noiser.DEVICE:
        scores = np.array([_canary_message(plan, pipes[i % len(pipes)], i, present, step) for i in range(canaries)])
    else:
        each = min(_canaries_per_release(pipe) for pipe in pipes) * min(blt.gap, rounds, GROUPS)
        scores = np.zeros(canaries)
        for play, start in enumerate(range(0, canaries, each)):
            step("canaries", start, canaries)
            dealt = range(start, min(canaries, start + each))
            scores[start : dealt.stop] = _play_canaries(plan, pipes[play % len(pipes)], blt, rounds, dealt, present)
    mu, of = (
        max(trial_mu(plan, phase) for phase in range(len(pipes))),
        f"one release at noise multiplier {_noise_multiplier(plan):.4g}",
    )
    if blt.rounds > 1:
        column = matrix.matrix_column(blt)
        mu *= matrix.participation_norm(column[:rounds], blt.gap, takes)
        mu /= matrix.participation_norm(column, blt.gap, blt.takes)
        of = f"{rounds} of {blt.rounds} rounds of correlated noise at multiplier {_noise_multiplier(plan):.4g}"
        of += f", a device in {takes}"
    head = pipes[0].released_head
    beside = {f"{' and '.join(head)} beside the update (all canaries move the same number)": bool(head)}
    found = guessing.one_run_finding(mu, trial_spend(plan).delta, scores, present)
    return replace(found, of=of, left_out=(*_left_out(plan), *true_keys(beside), *found.left_out))


def _play_canaries(
    plan: Plan, pipe: Pipeline, blt: BltMatrix, rounds: int, dealt: range, present: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Score the canaries ``dealt``, spread over groups, in one run of ``rounds``.

    The noise of all rounds is C^-1 z with independent z. So C times the releases shows a canary of group g with length
    C u_g in white noise, where u_g[t] = 1 in its rounds. The best score is sum_t (C^T C u_g)[t] <canary, release_t>,
    less half of its expected value for a present canary, because groups have different lengths. With rounds = 1 it is
    the inner product with the release.
    """
    groups = min(blt.gap, rounds, GROUPS)
    column = matrix.matrix_column(blt)[:rounds]
    apart = np.subtract.outer(np.arange(rounds), np.arange(rounds))
    c = np.where(apart >= 0, column[np.maximum(apart, 0)], 0.0)
    u = np.zeros((groups, rounds))
    for g in range(groups):
        u[g, g : blt.gap * blt.takes : blt.gap] = 1.0
    weights, half = u @ c.T @ c, 0.5 * pipe.encoded.l2 * np.square(u @ c.T).sum(1)
    sums, memory = np.zeros((groups, plan.spec.dim)), pipe.start_memory()
    for t in range(rounds):
        key = derive(keys.root(7), "one run", dealt.start, t)
        seen, memory = audited_round_release(pipe, _canary_updates(plan, pipe, dealt, u[:, t], present), key, t, memory)
        for g in range(groups):
            sums[g] += weights[g, t] * seen
    public = derive(derive(keys.root(7), "one run", dealt.start, 0), "public") if rounds == 1 else b""
    scores = np.zeros(len(dealt))
    for at, i in enumerate(dealt):
        along = _canary_direction(plan, pipe, i, Turn(0, public, derive(keys.root(7), "seen", i), device=str(at)))
        scores[at] = along @ sums[i % groups] - half[i % groups]
    return scores


def _canary_updates(
    plan: Plan, pipe: Pipeline, dealt: range, turn: NDArray[np.float64], present: NDArray[np.bool_]
) -> Iterator[Vector]:
    """Yield the updates of one round.

    They are canaries or their neighbours from the devices in turn, and zeros from other devices whose noise counts.
    """
    n = 0
    for i in dealt:
        if turn[i % turn.size]:
            x = _canary_update(plan, i)
            if (sent := x if present[i] else neighbouring_update(x, promised_adjacency(plan))) is not None:
                yield sent
            n += 1
    for _ in range(max(audit.audited_count(pipe.total.space), 1) - n):
        yield np.zeros(plan.spec.dim, np.float32)


def _canary_message(plan: Plan, pipe: Pipeline, i: int, present: NDArray[np.bool_], step: Step) -> float:
    """Score a canary from its device's own noised message."""
    step("canaries", i, present.size)
    x = _canary_update(plan, i)
    sent = x if present[i] else neighbouring_update(x, promised_adjacency(plan))
    seen = audited_release(pipe, [] if sent is None else [sent], derive(keys.root(7), "message", i))
    return float(_clipped_direction(plan, i) @ seen)


def _canaries_per_release(pipe: Pipeline) -> int:
    """Return the number of canaries of one release: at most an eighth of the coordinates, so that they stay apart."""
    space = pipe.total.space
    return min(audit.audited_count(space) or space.quorum.n_max, max(8, pipe.spaces[0].dim // 8))


def _canary_update(plan: Plan, i: int) -> Vector:
    """Make a canary: random signs, longer than the clip."""
    return _canary_signs(plan.spec.dim, i) * np.float32(LONG * trial_clip(plan))


def _canary_direction(plan: Plan, pipe: Pipeline, i: int, turn: Turn) -> NDArray[np.float64]:
    """Return the direction, of length 1, in which a canary moves the release.

    It is the output of the stages in this round, which anyone who knows the canary can compute. If devices add noise or
    rounds are weighted, it is the canary's own direction.
    """
    if turn.public and not pipe.encoded.noise.std:
        moved = audited_contribution(pipe, _canary_update(plan, i), turn).astype(np.float64)
        if moved.size == plan.spec.dim and (norm := float(np.linalg.norm(moved))):
            return np.asarray(moved / norm)
    return _clipped_direction(plan, i)


def _clipped_direction(plan: Plan, i: int) -> NDArray[np.float64]:
    """Return a canary's direction behind the clip, of length 1. A clip per tensor gives all tensors equal length."""
    shape = _canary_signs(plan.spec.dim, i).astype(np.float64)
    if trial_spend(plan).clipping.tensor_l2:
        for s in plan.spec.segments:
            shape[s.start : s.stop] /= sqrt(max(1, s.size))
    return shape / float(np.linalg.norm(shape))


def _canary_signs(dim: int, i: int) -> Vector:
    """Draw the signs of a canary."""
    drawn = keys.generator(derive(keys.root(7), "canary", i)).integers(0, 2, dim, np.int8)
    return (2 * drawn - 1).astype(np.float32)


def _noise_correlation(plan: Plan) -> BltMatrix:
    """Return the correlation of noise over the rounds; that of a one-round run if noise is independent."""
    event = trial_spend(plan).events[0]
    if event.kind != "matrix":
        return BltMatrix((), (), 1, 1, 1)
    return matrix.choose_blt(event.rounds, event.gap, event.takes, trial_spend(plan).buffers)


def _noise_multiplier(plan: Plan) -> float:
    """Noise multiplier of the plan."""
    return trial_spend(plan).z


def _by_coordinate(table: Mapping[str, Any]) -> bool:
    return table.get("kind") in BY_COORDINATE and not table.get("each")


def _left_out(plan: Plan) -> tuple[str, ...]:
    """List the parts of the plan that no trial of its releases covers."""
    pipe, spend, event = trial_pipelines(plan)[0], trial_spend(plan), trial_spend(plan).events[0]
    space = pipe.encoded
    halves = [stage.name for stage in pipe.stages if stage.server is not None and not spend.clipping.follows]
    found = {
        f"the noised sum before the server's half of {', '.join(halves)} (scores use its output)": bool(halves),
        "sampling (the attacker knows who takes part, and the claim is without it)": event.amplified,
        "composition of a device's rounds": event.kind != "matrix" and spend.rounds_each > 1,
        "residuals of error feedback from earlier rounds": space.residual,
        "positions that earlier releases chose": space.announced > 0,
        "changes of the clip over the rounds": spend.clipping.follows,
        "all rungs of the ladder except that of the fastest link": bool(plan.rungs) and not plan.rung_pipelines,
        "the rule between the groups (the server sees each group's sum)": plan.pipelines[0].merge.groups > 1,
        "masks and shares (they cancel in the sum)": plan.hides is not None,
    }
    return true_keys(found)
