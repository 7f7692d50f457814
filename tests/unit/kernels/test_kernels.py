"""The compiled loops against plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgewise.codecs.quantize.scales import block_scales
from edgewise.codecs.wire import golomb
from edgewise.kernels.bits import pack_bits, unpack_bits
from edgewise.kernels.hashing import choose_by_hash, hashed_uniform
from edgewise.kernels.magnitudes import largest_magnitude
from edgewise.kernels.rounding import round_blocks, round_levels, unround

MASK = (1 << 64) - 1


def word(seed: int, i: int) -> int:
    z = (seed + (i + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def half(seed: int, i: int) -> float:
    """The signed half words of the stream, moved to the middle of their intervals in [0, 1)."""
    h = word(seed, i // 2) >> (32 * (i % 2)) & 0xFFFFFFFF
    return ((h ^ 0x80000000) + 0.5) * 2.0**-32


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_uniform_is_splitmix64(seed: int) -> None:
    assert [hashed_uniform(np.uint64(seed), i) for i in range(50)] == [
        (word(seed, i) >> 11) * 2.0**-53 for i in range(50)
    ]


def test_uniform_is_uniform() -> None:
    u = np.array([hashed_uniform(np.uint64(5), i) for i in range(20_000)])
    counts = np.histogram(u, 50, (0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 100
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03


@pytest.mark.parametrize(("n", "k"), [(1, 1), (10, 0), (10, 10), (1000, 1), (1000, 37), (1000, 999)])
def test_choose(n: int, k: int) -> None:
    at = choose_by_hash(n, k, np.uint64(3))
    assert at.size == k
    assert (np.diff(at) > 0).all()
    assert k == 0 or 0 <= at[0] <= at[-1] < n


def test_choose_is_uniform() -> None:
    hits = np.zeros(20)
    pairs = np.zeros((20, 20))
    for s in range(4000):
        at = choose_by_hash(20, 5, np.uint64(s))
        hits[at] += 1
        pairs[np.ix_(at, at)] += 1
    assert (np.abs(hits - 1000) < 5 * np.sqrt(4000 * 0.25 * 0.75)).all()
    p = 5 * 4 / (20 * 19)
    off = pairs[~np.eye(20, dtype=bool)]
    assert (np.abs(off - 4000 * p) < 5 * np.sqrt(4000 * p * (1 - p))).all()


@pytest.mark.slow
@given(st.integers(1, 32), st.data())
def test_bits_round_trip(width: int, data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40)), np.uint32)
    raw = pack_bits(values, width)
    as_int = sum(int(v) << (i * width) for i, v in enumerate(values))
    assert raw == as_int.to_bytes((values.size * width + 7) // 8, "little")
    back = unpack_bits(memoryview(raw), width, values.size)
    assert back is not None
    assert back.tolist() == values.tolist()


def test_unpack_bits_refuses() -> None:
    raw = bytes(pack_bits(np.array([1, 2, 3], np.uint32), 3))
    assert unpack_bits(memoryview(raw), 3, 3) is not None
    for bad in (raw[:-1], raw + b"\0", bytes([raw[0], raw[1] | 0x80]), bytes([raw[0], raw[1] | 0x02])):
        assert unpack_bits(memoryview(bad), 3, 3) is None


def golomb_by_hand(positions: list[int], m: int) -> bytes:
    bits, last = [], -1
    width = (m - 1).bit_length()
    short = (1 << width) - m  # remainders that have one bit less
    for p in positions:
        gap, last = p - last - 1, p
        rest = gap % m
        bits += [1] * (gap // m) + [0]
        if m == 1:
            continue
        code, n = (rest, width - 1) if rest < short else ((rest + short) >> 1, width - 1)
        bits += [(code >> j) & 1 for j in range(n)]
        bits += [(rest + short) & 1] if rest >= short else []
    return sum(b << i for i, b in enumerate(bits)).to_bytes((len(bits) + 7) // 8, "little")


@settings(deadline=None)
@given(st.sets(st.integers(0, 5000), max_size=60), st.integers(1, 6000))
def test_golomb_round_trip(chosen: set[int], m: int) -> None:
    positions = sorted(chosen)
    raw = golomb.golomb_encode(np.array(positions, np.int64), m)
    assert raw == golomb_by_hand(positions, m)
    out = np.empty(len(positions), np.int64)
    data = np.frombuffer(raw + b"\xff\xff", np.uint8)
    assert golomb.golomb_decode(data, m, 5001, out) == len(raw)
    assert out.tolist() == positions


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(1, 2**20), st.integers(0, 40), st.integers(0, 3000))
def test_golomb_decode_is_bounded(raw: bytes, m: int, n: int, universe: int) -> None:
    out = np.full(n, -7, np.int64)
    used = golomb.golomb_decode(np.frombuffer(raw, np.uint8), m, universe, out)
    assert -1 <= used <= len(raw)
    if used >= 0:
        assert (np.diff(out) > 0).all()
        assert n == 0 or 0 <= out[0] <= out[-1] < universe
        assert golomb.golomb_encode(out, m) == raw[:used]


@pytest.mark.parametrize("block", [50, 2048, 3000, 10_000])
def test_round_levels_matches_python(block: int) -> None:
    g = np.random.default_rng(1)
    x = g.standard_normal(6500).astype(np.float32)
    inverse = np.array([3.0, 0.0, 50.0] * 200)[: -(-x.size // block)]
    got = np.empty(x.size, np.int8)
    round_levels(x, inverse, block, 7, np.uint64(9), got)
    u = [half(9, i) for i in range(x.size)]
    want = np.clip(np.floor(x.astype(np.float64) * np.repeat(inverse, block)[: x.size] + u), -7, 7)
    assert got.tolist() == want.tolist()
    assert block > 50 or not got[50:100].any()


@pytest.mark.parametrize("block", [2, 64, 100, 2048, 5000])
@pytest.mark.parametrize("scale", [1.0, 1e-41, 1e38])
def test_round_blocks_is_scales_then_levels(block: int, scale: float) -> None:
    x = np.random.default_rng(2).standard_normal(9001)
    x = np.clip(x * scale, -3.4e38, 3.4e38).astype(np.float32)
    x[:block] = 0.0
    got, want = np.empty(x.size, np.int8), np.empty(x.size, np.int8)
    scales = round_blocks(x, block, 7, np.uint64(5), got)
    assert scales.tolist() == block_scales(x, block).tolist()
    inverse = np.divide(7.0, scales, out=np.zeros(scales.size), where=scales > 0, dtype=np.float64)
    round_levels(x, inverse, block, 7, np.uint64(5), want)
    assert got.tolist() == want.tolist()
    assert not got[:block].any()


def test_halves_are_uniform_and_apart() -> None:
    """Rounding 1/2, 1/8 and 1/1000 up happens that often, and neighbours do not follow each other."""
    n = 400_000
    for p in (0.5, 0.125, 0.001):
        up = np.empty(n, np.int8)
        round_levels(np.full(n, p, np.float32), np.ones(1), n, 7, np.uint64(3), up)
        assert abs(up.mean() - p) < 5 * np.sqrt(p * (1 - p) / n)
        assert abs(np.corrcoef(up[:-1], up[1:])[0, 1]) < 5 / np.sqrt(n)


def test_unround_matches_numpy() -> None:
    g = np.random.default_rng(0)
    levels, step = g.integers(-127, 128, 1003).astype(np.int8), g.uniform(0, 3, 11)
    want = (levels * np.repeat(step, 100)[:1003]).astype(np.float32)
    assert unround(levels, step, 100).tobytes() == want.tobytes()


@pytest.mark.quick(sample=12)
@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1001])
def test_bytes_round_trip(width: int, n: int) -> None:
    values = np.random.default_rng(n).integers(0, 2**width, n).astype(np.uint8)
    raw = pack_bits(values, width)
    bits = np.unpackbits(values[:, None], axis=1, count=width, bitorder="little")
    assert raw == np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    back = unpack_bits(memoryview(raw), width, n)
    assert back is not None
    assert (back.dtype, back.tolist()) == (np.uint8, values.tolist())
    assert back.flags.writeable


@given(hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(width=32)))
def test_peak(x: NDArray[np.float32]) -> None:
    top = np.array(largest_magnitude(x.view(np.int32)), np.int32).view(np.float32)
    assert bool(np.isfinite(top)) == bool(np.isfinite(x).all())
    assert not np.isfinite(top) or top == np.abs(x).max()
