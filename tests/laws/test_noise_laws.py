"""Laws of chains that end in distributed noise: vectors under noise are bounded, sums decode to sums, rings suffice.

``quiet`` removes the noise, so that the vector under it can be seen. All else is the real chain.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.project.rotate import rotate, rotated, rotation_block_edges
from edgewise.codecs.project.sketch import sketch
from edgewise.codecs.quantize.wrap import wrap
from edgewise.codecs.select.random_k import random_k
from edgewise.codecs.select.segments import segments
from edgewise.codecs.select.shared_top_k import shared_top_k
from edgewise.codecs.wire import pack
from edgewise.core.keys import Turn, derive, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Vector
from edgewise.merges.plain import plain_sum
from edgewise.merges.ring import ring_sum
from edgewise.privacy import distributed
from edgewise.privacy.clip import clip
from edgewise.privacy.distributed import discrete_gaussian_noise, noise_evenness
from laws.test_stages import DIM, SPEC, VECTORS

N = 8
START = Space(DIM, Quorum(6, N, 2), population=N)
BEFORE: dict[str, list[Stage]] = {
    "clip": [],
    "random_k": [random_k(0.3)],
    "segments": [segments(SPEC, ["layers.*"])],
    "shared_top_k": [shared_top_k(SPEC, 0.2, explore=0.5)],
    "feedback": [feedback([random_k(0.5, unbiased=False)])],
    "sketch": [sketch(5.0, floor=0.5)],
}
CHAINS = [
    pytest.param(before, block, z, bits, id=f"{name} > rotate({block}), z = {z}, bits = {bits}")
    for name, before in BEFORE.items()
    for block, z, bits in ((64, 1.0, None), (1024, 0.3, None), (256, 4.0, 18))
]
every = pytest.mark.parametrize(("before", "block", "z", "bits"), CHAINS)
C = 0.7


def build(before: list[Stage], block: int, z: float, bits: int | None, space: Space = START) -> Pipeline:
    ending = [clip(C), rotate(block), discrete_gaussian_noise(z, bits), wrap()]
    return pipeline(space, [*before, *ending], ring_sum())


def turn(round: int = 0, device: int = 0) -> Turn:
    return Turn(round, derive(root(1), "public", round), derive(root(2), "private", round, device))


def encode(pipe: Pipeline, x: Vector, at: Turn) -> Payload:
    return pipe.encode(x, {}, 1.0, pipe.init(), at)[0]


def lifted(pipe: Pipeline, body: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Lift residues to centred integers."""
    modulus = pipe.encoded.grid.modulus
    x = body.astype(np.int64)
    return np.where(x >= modulus // 2, x - modulus, x)


def added(pipe: Pipeline, payloads: list[Payload]) -> NDArray[np.uint32]:
    bodies = np.stack([p.body for p in payloads])
    return (bodies.sum(axis=0, dtype=np.uint64) % np.uint64(pipe.encoded.grid.modulus)).astype(np.uint32)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "discrete_gaussian", lambda s, n, key: np.zeros(n, np.int64))


@pytest.mark.quick(sample=9)
@every
@pytest.mark.usefixtures("quiet")
def test_what_is_noised_is_within_the_bound(before: list[Stage], block: int, z: float, bits: int | None) -> None:
    """The bound holds exactly, in integers. It is the sensitivity."""
    pipe = build(before, block, z, bits)
    space, longest = pipe.encoded, 0.0
    for x in VECTORS.values():
        for round in range(3):
            q = lifted(pipe, encode(pipe, x, turn(round)).body)
            length = sqrt(int((q * q).sum()))
            assert length <= space.l2 / space.grid.scale * (1 + 1e-12)
            longest = max(longest, length)
    assert longest > 0.9 * space.l2 / space.grid.scale  # no slack that hides a mistake
    assert pipe.total.sensitivity == space.l2


@pytest.mark.quick(sample=6)
@every
@pytest.mark.usefixtures("quiet")
def test_without_noise_an_update_comes_back(before: list[Stage], block: int, z: float, bits: int | None) -> None:
    """The update comes back up to the rounding, less than one unit in every rotated coordinate."""
    pipe = build(before, block, z, bits)
    clipped = pipeline(START, pipe.stages[: len(before) + 1], plain_sum())
    for x in VECTORS.values():
        back = pipe.decode(encode(pipe, x, turn()), turn(), len(before) + 1).body
        off = np.linalg.norm(back - encode(clipped, x, turn()).body.astype(np.float64))
        assert off <= pipe.encoded.grid.scale * sqrt(pipe.encoded.dim) + 1e-5 * C


@pytest.mark.quick(sample=12)
@every
@pytest.mark.parametrize("noisy", [False, True], ids=["quiet", "noisy"])
def test_both_orders_agree(
    before: list[Stage], block: int, z: float, bits: int | None, noisy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Residues add up exactly to the sum of the integers. Decoding it once equals decoding each and adding."""
    if not noisy:
        monkeypatch.setattr(distributed, "discrete_gaussian", lambda s, n, key: np.zeros(n, np.int64))
    pipe = build(before, block, z, bits)
    payloads = [encode(pipe, x, turn(2, i)) for i, x in enumerate(list(VECTORS.values())[:N])]
    total = added(pipe, payloads)
    np.testing.assert_array_equal(lifted(pipe, total), np.sum([lifted(pipe, p.body) for p in payloads], axis=0))
    each = np.sum([pipe.decode(p, turn(2), pipe.level).body.astype(np.float64) for p in payloads], axis=0)
    once = pipe.decode(payloads[0].but(body=total), turn(2), pipe.level).body
    np.testing.assert_allclose(once, each, rtol=1e-5, atol=1e-6 * float(np.abs(each).max()))


@pytest.mark.quick(sample=6)
@every
def test_the_merge_releases_the_decoded_sum(before: list[Stage], block: int, z: float, bits: int | None) -> None:
    pipe = build(before, block, z, bits)
    if pipe.level:
        return  # a sketch's server does more than to divide
    payloads = [encode(pipe, x, turn(2, i)) for i, x in enumerate(list(VECTORS.values())[:N])]
    total = pipe.start_sum()
    for p in payloads:
        total = pipe.add(total, p, turn(2))
    mean, _ = pipe.release(total, turn(2), root(3), Memory())
    once = pipe.decode(payloads[0].but(body=added(pipe, payloads)), turn(2)).body
    np.testing.assert_allclose(mean.mean, once / N, rtol=1e-6)
    assert (mean.n, mean.weight) == (N, N)  # all count the same, and the divisor is their number


@pytest.mark.slow
@every
def test_a_ring_holds_the_worst_sum(before: list[Stage], block: int, z: float, bits: int | None) -> None:
    """All contributions are equal and as long as allowed, with all the noise."""
    pipe = build(before, block, z, bits)
    for name in ("one-hot", "constant", "alternating", "heavy", "one giant"):
        x = VECTORS[name] / np.linalg.norm(VECTORS[name].astype(np.float64)).astype(np.float32) * np.float32(100)
        for round in range(4):
            payloads = [encode(pipe, x, turn(round, i)) for i in range(N)]
            true = np.sum([lifted(pipe, p.body) for p in payloads], axis=0)
            np.testing.assert_array_equal(lifted(pipe, added(pipe, payloads)), true)


@pytest.mark.quick(sample=6)
@every
def test_encoding_is_pure_and_packs(before: list[Stage], block: int, z: float, bits: int | None) -> None:
    pipe = build(before, block, z, bits)
    x = VECTORS["gaussian"]
    copy = x.copy()
    one, two, other = encode(pipe, x, turn(1, 1)), encode(pipe, x, turn(1, 1)), encode(pipe, x, turn(1, 2))
    assert x.tobytes() == copy.tobytes()
    assert one.body.tobytes() == two.body.tobytes() != other.body.tobytes()
    raw = pack.pack(one, pipe.encoded)
    assert len(raw) == pack.size_bytes(pipe.encoded)
    np.testing.assert_array_equal(pack.unpack(raw, pipe.encoded).body, one.body)


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize(("dim", "block"), [(256, 64), (16, 64), (100, 64), (64 + 63, 64), (192 + 64, 128), (300, 128)])
def test_rotated_coordinates_are_as_even_as_is_said(dim: int, block: int) -> None:
    """A coordinate deviates by at most r / sqrt(B); in a Hartley block it can by more than r / sqrt(its length)."""
    space = rotate(block).infer(Space(dim, Quorum(1, 1)))
    b, ends = noise_evenness(space), rotation_block_edges(dim, block)
    start, length = int(ends[-2]), int(ends[-1] - ends[-2])
    j = np.arange(length)
    hartley = length != block
    # Coordinate 1 of the last block is sum_j s_j x_j cas(2 pi j / length): the mass goes where cas^2 is large.
    good = (np.cos(2 * np.pi * j / length) + np.sin(2 * np.pi * j / length)) ** 2 > 1.7 if hartley else j >= 0
    x = np.zeros(dim, np.float32)
    x[start:] = good / np.sqrt(good.sum())
    seen = np.array([rotated(x, block, derive(root(4), i), True)[0][start + 1] for i in range(4000)])
    std = float(np.sqrt((seen.astype(np.float64) ** 2).mean()))
    assert std <= 1.05 / sqrt(b)
    assert std > 1.05 / sqrt(length) if hartley else std == pytest.approx(1 / sqrt(length), rel=0.05)
