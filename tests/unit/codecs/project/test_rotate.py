"""Shared rotation: orthonormal, invertible, the same on all devices, and with even magnitudes afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.codecs.project.rotate import _MOST, hartley, rotate, rotated, rotation_block_edges
from edgewise.core.errors import TrainingError
from edgewise.core.keys import Turn, derive, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Quorum, Space
from edgewise.core.vector import Vector

KEY = root(4)
TURN = Turn(5, root(1), root(2))


def _gauss(dim: int, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_normal(dim).astype(np.float32)


@pytest.mark.parametrize(
    ("dim", "want"),
    [
        (0, [0]),
        (1, [0, 1]),
        (63, [0, 63]),
        (128, [0, 128]),
        (191, [0, 191]),
        (192, [0, 128, 192]),
        (300, [0, 128, 300]),
    ],
)
def test_edges(dim: int, want: list[int]) -> None:
    got = rotation_block_edges(dim, 128).tolist()
    assert got == want


@pytest.mark.parametrize("block", [64, 128, 256, 512])
def test_whole_blocks_are_the_hadamard_matrix_times_signs(block: int) -> None:
    h = np.ones((1, 1))
    while len(h) < block:
        h = np.block([[h, h], [h, -h]])
    matrix = np.stack([rotated(e, block, KEY, True)[0] for e in np.eye(2 * block, dtype=np.float32)], axis=1)
    first, second = matrix[:block, :block] * np.sqrt(block), matrix[block:, block:] * np.sqrt(block)
    assert not matrix[:block, block:].any()
    for part in (first, second):
        signs = part[0]
        np.testing.assert_allclose(np.abs(signs), 1.0, rtol=2e-6)
        np.testing.assert_allclose(part, h * signs, rtol=2e-6)
        assert 0.3 * block < (signs > 0).sum() < 0.7 * block
    assert (np.sign(first[0]) != np.sign(second[0])).any(), "each block has its own signs"


@pytest.mark.parametrize("n", [1, 2, 3, 64, 101, 1000])
def test_hartley_is_its_matrix_and_its_own_inverse(n: int) -> None:
    angle = 2 * np.pi * np.outer(np.arange(n), np.arange(n)) / n
    x = np.random.default_rng(n).standard_normal(n)
    np.testing.assert_allclose(hartley(x), (np.cos(angle) + np.sin(angle)) @ x / np.sqrt(n), atol=1e-10)
    np.testing.assert_allclose(hartley(hartley(x)), x, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 5, 63, 64, 256, 257, 319, 320, 1000, 70_000])
def test_inverse_and_norm(dim: int) -> None:
    x = _gauss(dim, dim)
    for block in (64, 256, 2**15):
        y, _ = rotated(x, block, KEY, True)
        back, _ = rotated(y, block, KEY, False)
        np.testing.assert_allclose(back, x, atol=2e-5)
        norm = [float(np.linalg.norm(v.astype(np.float64))) for v in (x, y, back)]
        assert norm[0] * (1 - 2e-6) <= norm[1] <= norm[0]
        assert norm[1] * (1 - 2e-6) <= norm[2] <= norm[1]


def test_it_evens_out() -> None:
    x = np.zeros(2**15 + 1000, np.float32)
    x[5] = x[2**15 + 7] = 100.0
    y, _ = rotated(x, 2**15, KEY, True)
    np.testing.assert_allclose(np.abs(y[: 2**15]), 100 / np.sqrt(2**15), rtol=1e-5)
    assert np.abs(y[2**15 :]).max() <= 100 * np.sqrt(2 / 1000)


def test_signs_are_golden() -> None:
    """Devices of different versions must rotate in the same way."""
    y, _ = rotated(np.ones(64, np.float32), 64, KEY, True)
    np.testing.assert_allclose(y[:6] * 8, [2.0, 2.0, 2.0, -6.0, 2.0, -6.0], atol=1e-4)


def test_differs_by_round_and_depends_on_nothing_private() -> None:
    stage, x = rotate(64), _gauss(200)

    def body(turn: Turn) -> bytes:
        return stage.encode(Payload(x, np.zeros(0)), Memory(), Space(200, Quorum(1, 1)), turn)[0].body.tobytes()

    assert body(TURN) == body(Turn(5, root(1), root(9)))
    assert len({body(TURN), body(Turn(6, root(1))), body(Turn(5, root(3)))}) == 3


def test_the_ends_of_float32() -> None:
    space = Space(320, Quorum(1, 1))
    for value in (1e-45, 1e36, _MOST / 32):
        x = np.full(320, value, np.float32)
        y, good = rotated(x, 256, KEY, True)
        assert good
        np.testing.assert_allclose(rotated(y, 256, KEY, False)[0], x, rtol=1e-5, atol=1e-43)
    signs = np.sign(rotated(np.eye(1, 320, dtype=np.float32)[0], 256, derive(TURN.public, "rotate", 5), False)[0])
    with pytest.raises(TrainingError) as caught:
        rotate(256).encode(Payload(signs * np.float32(_MOST), np.zeros(0)), Memory(), space, TURN)
    assert caught.value.code == "E-RANGE"
    decoded = rotate(256).decode(Payload(np.full(320, _MOST, np.float32), np.zeros(0)), space, TURN)
    assert np.isfinite(decoded.body).all()


def test_space() -> None:
    out = rotate(64).infer(Space(128, Quorum(1, 1), l2=3.0, linf=0.25))
    assert (out.l2, out.linf, out.spread, out.peak, out.rotation.block, out.rotation.dim) == (
        3.0,
        2.0,
        8.0,
        3.0,
        64,
        128,
    )
    assert out.moving
    assert out.summable
    assert out.unbiased
    assert out.but(linf=0.1).peak == pytest.approx(0.8), "a clamp after it bounds decoded coordinates less tightly"
