"""The compiled loops against plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.codecs import kernels

MASK = (1 << 64) - 1


def splitmix(seed: int, i: int) -> float:
    z = (seed + (i + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_uniform_is_splitmix64(seed: int) -> None:
    assert [kernels.uniform(np.uint64(seed), i) for i in range(50)] == [splitmix(seed, i) for i in range(50)]


def test_uniform_is_uniform() -> None:
    u = np.array([kernels.uniform(np.uint64(5), i) for i in range(20_000)])
    counts = np.histogram(u, 50, (0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 100
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03


@pytest.mark.parametrize(("n", "k"), [(1, 1), (10, 0), (10, 10), (1000, 1), (1000, 37), (1000, 999)])
def test_choose(n: int, k: int) -> None:
    at = kernels.choose(n, k, np.uint64(3))
    assert at.size == k
    assert (np.diff(at) > 0).all()
    assert k == 0 or 0 <= at[0] <= at[-1] < n


def test_choose_is_uniform() -> None:
    hits = np.zeros(20)
    pairs = np.zeros((20, 20))
    for s in range(4000):
        at = kernels.choose(20, 5, np.uint64(s))
        hits[at] += 1
        pairs[np.ix_(at, at)] += 1
    assert (np.abs(hits - 1000) < 5 * np.sqrt(4000 * 0.25 * 0.75)).all()
    p = 5 * 4 / (20 * 19)
    off = pairs[~np.eye(20, dtype=bool)]
    assert (np.abs(off - 4000 * p) < 5 * np.sqrt(4000 * p * (1 - p))).all()


@given(st.integers(1, 32), st.data())
def test_bits_round_trip(width: int, data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40)), np.uint32)
    raw = kernels.pack_bits(values, width)
    as_int = sum(int(v) << (i * width) for i, v in enumerate(values))
    assert raw == as_int.to_bytes((values.size * width + 7) // 8, "little")
    back = kernels.unpack_bits(memoryview(raw), width, values.size)
    assert back is not None
    assert back.tolist() == values.tolist()


def test_unpack_bits_refuses() -> None:
    raw = kernels.pack_bits(np.array([1, 2, 3], np.uint32), 3)
    assert kernels.unpack_bits(memoryview(raw), 3, 3) is not None
    for bad in (raw[:-1], raw + b"\0", bytes([raw[0], raw[1] | 0x80]), bytes([raw[0], raw[1] | 0x02])):
        assert kernels.unpack_bits(memoryview(bad), 3, 3) is None


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
    raw = kernels.golomb_encode(np.array(positions, np.int64), m)
    assert raw == golomb_by_hand(positions, m)
    out = np.empty(len(positions), np.int64)
    data = np.frombuffer(raw + b"\xff\xff", np.uint8)
    assert kernels.golomb_decode(data, m, 5001, out) == len(raw)
    assert out.tolist() == positions


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(1, 2**20), st.integers(0, 40), st.integers(0, 3000))
def test_golomb_decode_is_bounded(raw: bytes, m: int, n: int, universe: int) -> None:
    out = np.full(n, -7, np.int64)
    used = kernels.golomb_decode(np.frombuffer(raw, np.uint8), m, universe, out)
    assert -1 <= used <= len(raw)
    if used >= 0:
        assert (np.diff(out) > 0).all()
        assert n == 0 or 0 <= out[0] <= out[-1] < universe
        assert kernels.golomb_encode(out, m) == raw[:used]


def test_round_levels_matches_python() -> None:
    g = np.random.default_rng(1)
    x = g.standard_normal(130).astype(np.float32)
    inverse = np.array([3.0, 0.0, 50.0])
    got = np.empty(130, np.int8)
    kernels.round_levels(x, inverse, 50, 7, np.uint64(9), got)
    want = [int(np.clip(np.floor(float(v) * inverse[i // 50] + splitmix(9, i)), -7, 7)) for i, v in enumerate(x)]
    assert got.tolist() == want
    assert not got[50:100].any()
