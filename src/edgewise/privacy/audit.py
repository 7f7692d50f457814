"""Audit of a privacy claim on a mechanism's real output, through the real pipeline.

*Mechanism audit*: many runs with and without one worst-case device. ``audit_findings`` derives a lower bound of mu from
their scores. ``mechanism_audit`` takes the coordinates of one large release as the many runs.
*Length audit*: the distance of two neighbours' contributions where the noise is added. Without statistics,
mu >= distance / noise_std.
Body and head are scored as one vector, because one noise is on both. The other world has the neighbour's real message:
the encoding of zeros, nothing, or the encoding of the opposite update (``neighbouring_update``).
The audit with many devices and a single release is in ``privacy.one_run``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf, isfinite, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.keys import Key, Turn, derive
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.pipeline import Pipeline
from edgewise.core.space import Adjacency, Space
from edgewise.core.stage import Stage, placed
from edgewise.core.vector import Vector, norm_l2
from edgewise.privacy.audit_findings import AuditFinding, gdp_epsilon, mechanism_finding

FULL_WEIGHT = 1e9  # amount of data with which every update counts in full, whatever the cap
REPEATED = 1e3  # mu of repeated noise. The difference of two releases then has no noise, so any large bound holds.
SLACK = 1.0 + 1e-5  # float32 rounding of an honest encoder, as ``Pipeline.add`` allows it


def audited_release(pipe: Pipeline, updates: Iterable[Vector], key: Key) -> Vector:
    """Compute the server's release of one round with these updates: the decoded sum, after all stages and posts.

    Masks and shares are left out, because they cancel exactly in the sum.
    """
    return audited_round_release(pipe, updates, key, 0, pipe.start_memory())[0]


def audited_round_release(
    pipe: Pipeline, updates: Iterable[Vector], key: Key, round: int, memory: Memory, public: Key | None = None
) -> tuple[Vector, Memory]:
    """Compute ``release`` for any round of a run, with the server's memory of stages and posts before and after it.
    ``public``: the round's public key. It is derived from ``key`` where it is None."""
    public, total = derive(key, "public") if public is None else public, pipe.start_sum()
    for i, x in enumerate(updates):
        turn = Turn(round, public, derive(key, "device", i), device=str(i))
        payload, _ = pipe.encode(x, _no_head(pipe), FULL_WEIGHT, pipe.init(), turn)
        total = pipe.add(total, payload, turn)
    aggregate, memory = pipe.release(total, Turn(round, public), derive(key, "release"), memory)
    return aggregate.mean * np.float32(aggregate.weight), memory


def neighbouring_update(x: Vector, adjacency: Adjacency) -> Vector | None:
    """Make the update in place of ``x`` in the neighbouring data set, the furthest that ``adjacency`` allows.

    None where the device is absent.
    """
    match adjacency:
        case "zero_out":
            return np.zeros_like(x)
        case "add_remove":
            return None
    return -x


def claimed_mu(pipe: Pipeline) -> float:
    """Compute the claim of ``pipe`` itself: sensitivity / noise_std. Raises ValueError without a bound or noise."""
    claim = pipe.total
    if not (0.0 < claim.noise_std < inf and claim.sensitivity < inf):
        raise ValueError("this pipeline claims nothing")
    return claim.sensitivity / claim.noise_std


def mechanism_audit(
    name: str,
    pipe: Pipeline,
    update: Vector,
    delta: float,
    key: Key,
    mu: float = 0.0,
    adjacency: Adjacency | None = None,
) -> AuditFinding:
    """Audit two real releases of ``pipe``, with one device's ``update`` and with its ``neighbouring_update``'s.

    Every coordinate is a run. The claim is the pipeline's own, mu = sensitivity / noise_std, or ``mu``. It is divided
    by sqrt(m) for one of the m coordinates that are sent, because an update of equal magnitudes at the bound moves a
    coordinate by that share. Only contributions whose noise is counted on are in the sum, as others may lack noise.
    Args:
        update: float32[d], |update_i| all alike and not 0. It is longer than the clip, so that a missing clip shows.
            For mu near 1: z = 1 / sqrt(m).
        mu, adjacency: the claim, where it is not the pipeline's own. A device whose neighbour sends another update is
            protected by its own noise, and is alone in the sum.
    Raises ValueError for another update, and without a bound or noise.
    Guarantees: ``lower`` holds with 95 % where the noise of different coordinates is independent. After a rotation it
        is uncorrelated and nearly normal, which is as good once S is 10 or so.
    """
    if update.size == 0 or not (update != 0).all() or np.ptp(np.abs(update)) > 1e-6 * float(np.abs(update).max()):
        raise ValueError("every coordinate of the update is a run, so all must have one magnitude")
    mu, space = mu or claimed_mu(pipe), pipe.total.space
    adjacency = adjacency or pipe.spaces[0].adjacency
    other, alone = neighbouring_update(update, adjacency), adjacency == "replace_one"
    others = [] if alone else [np.zeros_like(update)] * ((audited_count(space) or space.quorum.n_min) - 1)
    sides, scores = np.sign(update).astype(np.float64), []
    public, start = derive(key, "public"), pipe.start_memory()  # Neighbours share public values.
    for world, own in (("with", update), ("without", other)):
        sent = others if own is None else [own, *others]
        seen, _ = audited_round_release(pipe, sent, derive(key, world), 0, start, public)
        scores.append(sides * seen)
    travels = audited_contribution(pipe, update, Turn(0, public, derive(key, "travels"), device="0")) != 0.0
    return mechanism_finding(name, mu / sqrt(pipe.encoded.dim), delta, scores[1][travels], scores[0][travels])


def audited_count(space: Space) -> int:
    """Count the contributions to the smallest sum whose noise can be counted on, 0 where none add any.

    The number is computed anew from the quorum and its corrupt devices. So a stage that counts more of them adds too
    little noise and is detected.
    """
    return max(0, space.quorum.n_min - space.quorum.corrupt) if space.noise.honest else 0


def fresh_noise_finding(found: AuditFinding, delta: float, one: NDArray[Any], two: NDArray[Any]) -> AuditFinding:
    """Mark ``found`` as broken where two releases of nothing with different secret keys are equal.

    Their noise then follows from something that others may know, and whoever has both can remove it.
    """
    if np.array_equal(one, two):
        return replace(found, lower=REPEATED, epsilon_lower=gdp_epsilon(REPEATED, delta))
    return found


def audited_contribution(pipe: Pipeline, x: Vector, turn: Turn) -> Vector:
    """Compute the contribution of ``x`` to the decoded sum, float32[d], with the noise of its device.

    Where a stage has a half on the server, it is the contribution as the server merges it, float32[m].
    """
    return pipe.decode(pipe.encode(x, _no_head(pipe), FULL_WEIGHT, pipe.init(), turn)[0], turn, pipe.level).body


def releases_audit(
    name: str,
    pipe: Pipeline,
    update: Vector,
    delta: float,
    key: Key,
    runs: int,
    mu: float = 0.0,
    adjacency: Adjacency | None = None,
) -> AuditFinding:
    """Audit many real releases of ``pipe``, body and head, with ``update`` and with its ``neighbouring_update``'s.

    Each release is a run. It is for pipelines with head scalars, which are one number of a release and no run of their
    own. The score is the inner product of a release with the difference of the two contributions. The server's noise is
    on the sum, so no other device has to be in it.
    Args:
        runs: releases of each world. mu, adjacency: the claim, where it is not the pipeline's own.
    Raises ValueError as ``claimed_mu``.
    Guarantees: ``lower`` holds with 95 %.
    """
    # Later work on the noised mean hides nothing more.
    stages = tuple(_without_server_half(stage) for stage in pipe.stages)
    pipe, mu = replace(pipe, stages=stages), mu or claimed_mu(pipe)
    other = neighbouring_update(update, adjacency or pipe.spaces[0].adjacency)
    public, start = derive(key, "public"), pipe.start_memory()
    turn = Turn(0, public, derive(key, "apart"), device="0")
    apart = _joint_contribution(pipe, update, turn) - (0.0 if other is None else _joint_contribution(pipe, other, turn))
    scores = []
    for world, own in (("without", other), ("with", update)):
        world_scores = np.zeros(runs)
        for i in range(runs):
            world_scores[i] = apart @ _noised_release(pipe, own, derive(key, world, i), start, public)
        scores.append(world_scores)
    return mechanism_finding(name, mu, delta, scores[0], scores[1])


def _without_server_half(stage: Stage) -> Stage:
    """Return a stage without a server half that only releases have."""
    return stage if stage.server is None or stage.server.encoded else replace(stage, server=None)


def _noised_release(pipe: Pipeline, x: Vector | None, key: Key, start: Memory, public: Key) -> NDArray[np.float64]:
    """Compute body and head of a noised sum with one contribution, or with none."""
    turn, total = Turn(0, public, derive(key, "device"), device="0"), pipe.start_sum()
    if x is not None:
        payload, _ = pipe.encode(x, _no_head(pipe), FULL_WEIGHT, pipe.init(), turn)
        total = pipe.add(total, payload, turn)
    aggregate, _ = pipe.release(total, Turn(0, public), derive(key, "release"), start)
    return np.concatenate([aggregate.mean, list(aggregate.head.values())]) * aggregate.weight


def _no_head(pipe: Pipeline) -> dict[str, float]:
    return dict.fromkeys(pipe.spaces[0].head, 0.0)


def length_audit(
    name: str,
    pipe: Pipeline,
    mu: float,
    updates: Sequence[Vector],
    delta: float,
    key: Key,
    noise_std: float = 0.0,
    adjacency: Adjacency | None = None,
) -> AuditFinding:
    """Measure the largest distance of ``updates`` from their ``neighbouring_update`` at the place of the noise, body
    and head as one vector. Compare it with the distance that the claim of ``mu`` counts with: ``mu noise_std``.

    The place is before the noise of devices that add noise, otherwise after the server has decoded the contribution.
    Two worlds that differ by a distance of l under noise of sigma are as distinguishable as those of mu = l / sigma. So
    a missing clip shows here, whether or not later code refuses long updates. An encoding of zeros that is not zero
    shows too.
    Args:
        mu: claimed. updates: float32[d] each, worst cases. noise_std: of the noise by the fold. Where it is 0, mu is
            claimed for the fold's own bound, ``Space.sensitivity``. adjacency: the fold's where None.
    Guarantees: exact for these updates. ``confidence`` is 1. A distance within float32 rounding of the bound counts as
        the bound.
    Raises ValueError where the pipeline has no bound.
    """
    longest, space = 0.0, pipe.encoded
    for i, x in enumerate(updates):
        turn = Turn(0, derive(key, "public"), derive(key, "device", i), device=str(i))
        apart, space = _before_noise(pipe, x, turn)
        if (other := neighbouring_update(x, adjacency or pipe.spaces[0].adjacency)) is not None:
            apart = apart - _before_noise(pipe, other, turn)[0]
        longest = max(longest, norm_l2(apart))
    if not isfinite(space.sensitivity):
        raise ValueError("this pipeline bounds nothing")
    longest = longest if longest > space.sensitivity * SLACK else min(longest, space.sensitivity)
    lower = longest / noise_std if noise_std else mu * (longest / space.sensitivity)
    lower = lower if lower > mu * SLACK else min(lower, mu)
    return AuditFinding(name, mu, lower, gdp_epsilon(mu, delta), gdp_epsilon(lower, delta), len(updates), 1.0)


def _joint_contribution(pipe: Pipeline, x: Vector, turn: Turn) -> NDArray[np.float64]:
    """Compute body and head of a contribution as the server merges it."""
    payload = pipe.decode(pipe.encode(x, _no_head(pipe), FULL_WEIGHT, pipe.init(), turn)[0], turn, pipe.level)
    return np.concatenate([payload.body, payload.head])


def _before_noise(pipe: Pipeline, x: Vector, turn: Turn) -> tuple[NDArray[np.float64], Space]:
    """Compute a contribution, body and head, at the place where noise is added to it or to its sum with others.

    Returns also the space with its bounds.
    """
    memory, payload = pipe.init(), Payload(x, np.zeros(len(pipe.spaces[0].head)), count=FULL_WEIGHT)
    for i, stage in enumerate(pipe.stages):
        if pipe.spaces[i + 1].noise.std > 0.0:
            return np.concatenate([payload.body, payload.head]), pipe.spaces[i]
        payload, _ = stage.encode(payload, memory.child("stage", i), pipe.spaces[i], placed(turn, pipe.stages, i))
    return _joint_contribution(pipe, x, turn), pipe.encoded
