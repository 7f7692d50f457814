"""Factors of matrices: exact if the rank suffices, the best factors, and the warm start."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.project.low_rank import low_rank
from edgewise.core.errors import TrainingError
from edgewise.core.keys import Turn, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Spec, Vector

SPEC = Spec.of(
    [("w", (40, 30), "float32"), ("b", (30,), "float32"), ("c", (8, 3, 4), "float32"), ("s", (2, 9), "float32")]
)
SPACE = Space(SPEC.dim, Quorum(1, 4), l2=3.0, linf=2.0)
TURN = Turn(0, root(1), root(2))
G = np.random.default_rng(0)


def _made(rank: int, seed: int = 0) -> Vector:
    """An update whose matrices have this rank."""
    g = np.random.default_rng(seed)
    parts = []
    for s in SPEC.segments:
        m, n = (s.shape[0], s.size // s.shape[0]) if len(s.shape) > 1 else (1, s.size)
        parts.append((g.standard_normal((m, rank)) @ g.standard_normal((rank, n))).ravel())
    return np.concatenate(parts).astype(np.float32)


def _send(stage: Stage, x: Vector, memory: Memory) -> tuple[Vector, Memory]:
    payload, memory = stage.encode(Payload(x, np.zeros(0)), memory, SPACE, TURN)
    return stage.decode(payload, SPACE, TURN).body, memory


def test_what_travels() -> None:
    """w takes (40 + 30) r. b and s (2 x 9, rank 2 would take more) are sent unchanged. c counts as 8 x 12."""
    out = low_rank(SPEC, 2).infer(SPACE)
    assert out.dim == 2 * 70 + 30 + 2 * 20 + 18
    assert (out.summable, out.unbiased, out.memory, out.moving, out.l2) == (False, False, True, True, np.inf)
    assert not low_rank(SPEC, 2, "svd").infer(SPACE).memory


@pytest.mark.parametrize("method", ["power", "svd"])
def test_exact_where_the_rank_suffices(method: str) -> None:
    x, stage = _made(2), low_rank(SPEC, 2, method)
    y, _ = _send(stage, x, stage.init(SPACE))
    np.testing.assert_allclose(y, x, atol=2e-5)


def test_svd_is_the_best() -> None:
    x = G.standard_normal(SPEC.dim).astype(np.float32)
    y, _ = _send(low_rank(SPEC, 3, "svd"), x, Memory())
    s = np.linalg.svd(x[:1200].reshape(40, 30).astype(np.float64), compute_uv=False)
    assert float(np.square(y[:1200] - x[:1200]).sum()) == pytest.approx(float(np.square(s[3:]).sum()), rel=1e-5)
    assert (y[1200:1230] == x[1200:1230]).all()


def test_the_warm_start_finds_the_best_subspace() -> None:
    """With the same matrix in every round, subspace iteration converges to the svd."""
    u, _ = np.linalg.qr(G.standard_normal((40, 30)))
    v, _ = np.linalg.qr(G.standard_normal((30, 30)))
    x = _made(1)
    x[:1200] = ((u * 0.7 ** np.arange(30)) @ v.T).ravel()
    stage = low_rank(SPEC, 3)
    memory, errors = stage.init(SPACE), []
    for _ in range(12):
        y, memory = _send(stage, x, memory)
        errors.append(float(np.square(y[:1200] - x[:1200]).sum()))
    best = float(np.square(0.7 ** np.arange(3, 30)).sum())
    assert errors[0] > 1.2 * best
    assert errors[-1] == pytest.approx(best, rel=1e-3)


def test_power_never_lengthens() -> None:
    stage = low_rank(SPEC, 2)
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal(SPEC.dim).astype(np.float32)
        y, _ = _send(stage, x, stage.init(SPACE))
        assert np.linalg.norm(y) <= np.linalg.norm(x) * (1 + 1e-6)


def test_zero_keeps_the_start() -> None:
    stage = low_rank(SPEC, 2)
    memory = stage.init(SPACE)
    y, after = _send(stage, np.zeros(SPEC.dim, np.float32), memory)
    assert not y.any()
    assert after["start"].tobytes() == memory["start"].tobytes()


def test_overflow() -> None:
    x = np.full(SPEC.dim, 3e38, np.float32)
    for method in ("power", "svd"):
        stage = low_rank(SPEC, 2, method)
        if method == "power":
            with pytest.raises(TrainingError) as caught:
                _send(stage, x, stage.init(SPACE))
            assert caught.value.code == "E-RANGE"
        else:
            assert np.isfinite(_send(stage, x, Memory())[0]).all()


def test_feedback_hands_the_start_through() -> None:
    stage = feedback([low_rank(SPEC, 2)])
    memory = stage.init(SPACE)
    assert memory.child("stage", 0)
    _, after = stage.encode(Payload(_made(4), np.zeros(0)), memory, SPACE, TURN)
    assert (after.child("stage", 0)["start"] != memory.child("stage", 0)["start"]).any()


def test_feedback_delivers_in_the_end() -> None:
    """A constant update of rank 6 through rank 2: the mean of the decoded messages approaches it."""
    x, stage = _made(6), feedback([low_rank(SPEC, 2)])
    memory, total = stage.init(SPACE), np.zeros(SPEC.dim)
    for i in range(40):
        payload, memory = stage.encode(Payload(x, np.zeros(0)), memory, SPACE, Turn(i, root(1), root(2)))
        total += stage.decode(payload, SPACE, TURN).body
    assert np.linalg.norm(total / 40 - x) < 0.1 * np.linalg.norm(x)
