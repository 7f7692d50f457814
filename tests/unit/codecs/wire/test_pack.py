"""Bytes of a payload: golden layouts, sizes, and refusals of the strict decoder."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from edgewise.codecs.wire import golomb, pack
from edgewise.core.errors import DecodeError
from edgewise.core.payload import Payload
from edgewise.core.space import Grid, Kind, Quorum, Space, Support

Q = Quorum(1, 4)
HEAD = np.array([1.5, 0.25])


def _space(dim: int, **more: object) -> Space:
    return Space(dim, Q, head=("loss", "weight"), head_l2=20.0).but(**more)


REAL = _space(3)
INTEGER = _space(5, grid=Grid(Kind.INTEGER, 4.0, 0.0, 7, block=4))
RING = _space(3, grid=Grid(Kind.RING, 11.0, level_max=127, modulus=1 << 11))
GOLOMB = _space(4, support=Support(100), grid=Grid(Kind.INTEGER, 8.0, level_max=127))
BITMAP = _space(5, support=Support(10))


def _refused(raw: bytes, space: Space) -> str:
    with pytest.raises(DecodeError) as caught:
        pack.unpack(raw, space)
    assert caught.value.code == "E-PAYLOAD"
    return caught.value.what


def test_golden_layouts() -> None:
    head = struct.pack("<2d", *HEAD)
    real = Payload(np.array([1, -2, 0.5], np.float32), HEAD)
    assert pack.pack(real, REAL) == head + struct.pack("<3f", 1, -2, 0.5)
    integer = Payload(np.array([-7, 0, 7, 1, -1], np.int32), HEAD, scales=np.array([1.0, 0.5], np.float32))
    # bfloat16 1.0 = 3f80, 0.5 = 3f00; levels + 7 = 0 7 14 8 6, low nibble first
    assert pack.pack(integer, INTEGER) == head + bytes.fromhex("803f003f 70 8e 06")
    ring = Payload(np.array([1, 2047, 1024], np.uint64), HEAD)
    assert pack.pack(ring, RING) == head + (1 | 2047 << 11 | 1024 << 22).to_bytes(5, "little")
    sparse = Payload(np.array([5, -5, 0, 1], np.int32), HEAD, np.array([0, 17, 18, 99]))
    assert pack.golomb_parameter(4, 100) == 17
    assert pack.pack(sparse, GOLOMB) == head + golomb.golomb_encode(np.array([0, 17, 18, 99]), 17) + bytes(
        [132, 122, 127, 128]
    )
    bitmap = Payload(np.arange(5, dtype=np.float32), HEAD, np.array([0, 1, 4, 8, 9]))
    assert pack.pack(bitmap, BITMAP) == head + bytes([0b00010011, 0b11]) + struct.pack("<5f", 0, 1, 2, 3, 4)
    for payload, space in ((real, REAL), (integer, INTEGER), (ring, RING), (sparse, GOLOMB), (bitmap, BITMAP)):
        back = pack.unpack(pack.pack(payload, space), space)
        assert back.body.tolist() == payload.body.tolist()
        assert back.count == 1.0, "the amount of data never travels"


@pytest.mark.parametrize("space", [REAL, INTEGER, RING, BITMAP], ids=lambda s: s.grid.kind.name)
def test_exact_sizes(space: Space) -> None:
    body = np.zeros(space.dim, {Kind.REAL: np.float32, Kind.INTEGER: np.int32, Kind.RING: np.uint64}[space.grid.kind])
    scales = np.ones(2, np.float32) if space.grid.block else None
    support = np.arange(space.dim) if space.sparse else None
    assert len(pack.pack(Payload(body, HEAD, support, scales), space)) == pack.size_bytes(space)


@pytest.mark.parametrize("density", [0.0005, 0.005, 0.01, 0.1, 0.3, 0.34, 0.36, 0.9])
def test_expected_size_of_random_supports(density: float) -> None:
    universe = 100_000
    dim = round(density * universe)
    space = _space(dim, support=Support(universe))
    g = np.random.default_rng(1)
    sizes = []
    for _ in range(5):
        support = np.sort(g.choice(universe, dim, replace=False))
        raw = pack.pack(Payload(np.zeros(dim, np.float32), HEAD, support), space)
        assert pack.unpack(raw, space).support.tolist() == support.tolist()  # type: ignore[union-attr]
        sizes.append(len(raw) - 16 - 4 * dim)
    expected = pack.size_bytes(space) - 16 - 4 * dim
    assert np.mean(sizes) == pytest.approx(expected, rel=0.02)
    entropy = -universe * (density * np.log2(density) + (1 - density) * np.log2(1 - density)) / 8
    assert expected <= 1.1 * entropy or density > 0.7


def test_published_index_cost() -> None:
    """Published figure: 9.11 bits per index at .5 % density."""
    space = _space(5000, support=Support(1_000_000))
    assert 8 * (pack.size_bytes(space) - 16 - 20_000) / 5000 == pytest.approx(9.11, abs=0.03)


@pytest.mark.parametrize("where", [[0, 1, 2, 3], [96, 97, 98, 99], [0, 1, 2, 99]])
def test_extreme_supports(where: list[int]) -> None:
    raw = pack.pack(Payload(np.zeros(4, np.int32), HEAD, np.array(where)), GOLOMB)
    assert pack.unpack(raw, GOLOMB).support.tolist() == where  # type: ignore[union-attr]


def test_refuses_lengths() -> None:
    for payload, space in (
        (Payload(np.zeros(3, np.float32), HEAD), REAL),
        (Payload(np.zeros(5, np.int32), HEAD, scales=np.ones(2, np.float32)), INTEGER),
        (Payload(np.zeros(4, np.int32), HEAD, np.array([0, 17, 18, 99])), GOLOMB),
        (Payload(np.zeros(5, np.float32), HEAD, np.arange(5)), BITMAP),
    ):
        raw = pack.pack(payload, space)
        for bad in (b"", raw[:-1], raw + b"\0", raw + raw, raw + b"\0" * 10**6):
            _refused(bad, space)


def test_refuses_values() -> None:
    good = pack.pack(Payload(np.zeros(3, np.float32), HEAD), REAL)
    for bad in (np.nan, np.inf, -np.inf):
        assert "coordinate" in _refused(good[:-4] + struct.pack("<f", bad), REAL)
        assert "head" in _refused(struct.pack("<d", bad) + good[8:], REAL)
    assert "bound" in _refused(struct.pack("<d", 20.5) + good[8:], REAL)
    for weight in (-0.1, 1.1):
        assert "weight" in _refused(good[:8] + struct.pack("<d", weight) + good[16:], REAL)
    good = pack.pack(Payload(np.zeros(5, np.int32), HEAD, scales=np.ones(2, np.float32)), INTEGER)
    for scale in (b"\x80\x7f", b"\xc0\x7f", b"\x80\xbf", b"\x00\x80", b"\xff\xff"):
        assert "scale" in _refused(good[:16] + scale + good[18:], INTEGER)
    assert "level" in _refused(good[:20] + b"\xff" + good[21:], INTEGER)
    assert "padding" in _refused(good[:-1] + bytes([good[-1] | 0x10]), INTEGER)
    good = pack.pack(Payload(np.zeros(5, np.float32), HEAD, np.arange(5)), BITMAP)
    for bitmap in (b"\x1f\x01", b"\x0f\x00", b"\x0f\x04", b"\xff\xff"):
        assert "bitmap" in _refused(good[:16] + bitmap + good[18:], BITMAP)
    good = pack.pack(Payload(np.zeros(4, np.int32), HEAD, np.array([0, 17, 18, 99])), GOLOMB)
    assert "Golomb" in _refused(good[:16] + b"\xff" * (len(good) - 16), GOLOMB)


@pytest.mark.parametrize(
    ("payload", "space"),
    [
        (Payload(np.zeros(4, np.float32), HEAD), REAL),
        (Payload(np.zeros(3, np.float32), HEAD[:1]), REAL),
        (Payload(np.zeros(5, np.int32), HEAD), INTEGER),
        (Payload(np.zeros(5, np.int32), HEAD, scales=np.full(2, 0.1, np.float32)), INTEGER),
        (Payload(np.full(5, 8, np.int32), HEAD, scales=np.ones(2, np.float32)), INTEGER),
        (Payload(np.full(5, -8, np.int32), HEAD, scales=np.ones(2, np.float32)), INTEGER),
        (Payload(np.full(3, 2048, np.uint64), HEAD), RING),
        (Payload(np.zeros(4, np.int32), HEAD), GOLOMB),
        (Payload(np.zeros(4, np.int32), HEAD, np.array([0, 17, 17, 99])), GOLOMB),
        (Payload(np.zeros(4, np.int32), HEAD, np.array([0, 17, 18, 100])), GOLOMB),
        (Payload(np.zeros(4, np.int32), HEAD, np.array([-1, 17, 18, 19])), GOLOMB),
    ],
)
def test_own_misuse(payload: Payload, space: Space) -> None:
    with pytest.raises(ValueError):
        pack.pack(payload, space)
