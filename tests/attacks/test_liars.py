"""Devices that lie decide a mean, and move a robust mean by no more than honest devices differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewise.core.keys import Turn, derive, root
from edgewise.core.memory import Memory
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Merge
from edgewise.merges.centred_clip import centred_clip
from edgewise.merges.plain import plain_sum
from edgewise.merges.robust import RuleName
from edgewise.merges.robust_mean import robust_mean

N, F, DIM = 20, 4, 50
Rows = NDArray[np.float32]
ATTACKS: dict[str, Callable[[Rows], Rows]] = {
    "flip": lambda honest: -20 * honest[:F],
    "far": lambda honest: np.full((F, DIM), 1e4, np.float32),
    "inner product": lambda honest: np.tile(-8 * honest.mean(0), (F, 1)),
}


def honest_updates() -> Rows:
    """A common direction, and what each device's text adds to it."""
    rng = np.random.default_rng(5)
    return (rng.standard_normal(DIM) + 0.3 * rng.standard_normal((N - F, DIM))).astype(np.float32)


def mean_of(merge: Merge, rows: Rows) -> Rows:
    pipe = pipeline(Space(DIM, Quorum(N, N)), [], merge)
    total, turn = pipe.start_sum(), Turn(0, root(1), root(2))
    for i, x in enumerate(rows):
        theirs = Turn(0, root(1), derive(root(2), i))
        total = pipe.add(total, pipe.encode(x, {}, 1.0, pipe.init(), theirs)[0], turn)
    return pipe.release(total, turn, root(3), pipe.start_memory())[0].mean


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", ["trimmed_mean", "geometric_median", "multi_krum", "centred_clip"])
def test_liars_decide_a_mean_and_no_robust_one(rule: str, attack: str) -> None:
    merge = centred_clip(F, steps=5) if rule == "centred_clip" else robust_mean(F, cast(RuleName, rule))
    honest = honest_updates()
    rows, want = np.concatenate([ATTACKS[attack](honest), honest]), honest.mean(0)
    assert mean_of(plain_sum(), rows) @ want < 0 or attack == "far", "the model is led away from what all want"
    assert np.linalg.norm(mean_of(plain_sum(), rows) - want) > np.linalg.norm(want)
    spread = float(np.linalg.norm(honest - want, axis=1).max())
    assert np.linalg.norm(mean_of(merge, rows) - want) < 0.7 * spread


def drift(merge: Merge, beta: float) -> float:
    """Play rounds in which honest updates differ by chance alone, and return how far small lies lead the model away.

    Liars send the honest mean minus 1.5 standard deviations, which few rules tell from an honest update.
    """
    pipe, rng, memory = pipeline(Space(DIM, Quorum(N, N)), [], merge), np.random.default_rng(6), Memory()
    kept, off = np.zeros((N - F, DIM)), np.zeros(DIM)
    for number in range(60):
        kept = beta * kept + (1 - beta) * rng.standard_normal(kept.shape)
        honest = kept.astype(np.float32)
        lies = np.tile(honest.mean(0) - 1.5 * honest.std(0), (F, 1))
        total, turn = pipe.start_sum(), Turn(number, root(1), root(2))
        for i, x in enumerate(np.concatenate([lies, honest])):
            total = pipe.add(total, pipe.encode(x, {}, 1.0, pipe.init(), Turn(number, root(1), root(i)))[0], turn)
        found, memory = pipe.release(total, turn, derive(root(3), number), memory)
        off += found.mean - honest.mean(0)
    return float(np.linalg.norm(off))


@pytest.mark.slow
def test_momentum_leaves_small_lies_less_to_hide_behind() -> None:
    """Running means differ by sqrt((1 - beta) / (1 + beta)) = 0.23 of what updates do. Each rule is led as far less."""
    for merge in (centred_clip(F), robust_mean(F, before="none")):
        assert drift(merge, 0.9) < 0.35 * drift(merge, 0.0)
