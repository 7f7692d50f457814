"""Flat vectors and their layout."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from edgewise.core import vector
from edgewise.core.errors import DecodeError
from edgewise.core.vector import Segment, Spec

SPEC = Spec.of([("a", (2, 3), "float32"), ("scalar", (), "bfloat16"), ("b", (4,), "float32")])


def test_layout() -> None:
    assert SPEC.dim == 11
    assert [(s.start, s.stop, s.size) for s in SPEC.segments] == [(0, 6, 6), (6, 7, 1), (7, 11, 4)]
    assert Spec(()).dim == 0


def test_digest_is_stable_and_sees_everything() -> None:
    text = b'[["a",[2,3],"float32"],["scalar",[],"bfloat16"],["b",[4],"float32"]]'
    assert SPEC.digest() == hashlib.sha256(text).hexdigest()
    others = [
        Spec.of([("a", (3, 2), "float32"), ("scalar", (), "bfloat16"), ("b", (4,), "float32")]),
        Spec.of([("a", (2, 3), "float32"), ("scalar", (), "float32"), ("b", (4,), "float32")]),
        Spec.of([("a", (2, 3), "float32"), ("scalar", (), "bfloat16"), ("c", (4,), "float32")]),
    ]
    assert len({s.digest() for s in [SPEC, *others]}) == 4


def test_spec_refuses_gaps_and_duplicates() -> None:
    with pytest.raises(ValueError, match="starts at 1"):
        Spec((Segment("a", (2,), "float32", 1),))
    with pytest.raises(ValueError, match="unique"):
        Spec.of([("a", (1,), "float32"), ("a", (1,), "float32")])


@given(hnp.arrays(np.float32, SPEC.dim))
def test_round_trips(x: np.ndarray) -> None:
    tensors = vector.unpack(x, SPEC)
    assert {k: v.shape for k, v in tensors.items()} == {"a": (2, 3), "scalar": (), "b": (4,)}
    assert vector.pack(tensors, SPEC).tobytes() == x.tobytes()
    assert vector.from_bytes(vector.to_bytes(x), SPEC.dim).tobytes() == x.tobytes()


def test_unpack_gives_views() -> None:
    x = np.zeros(SPEC.dim, np.float32)
    vector.unpack(x, SPEC)["b"][0] = 5.0
    assert x[7] == 5.0


def test_pack_casts_and_orders() -> None:
    tensors = {"b": np.arange(4), "a": np.ones((2, 3), np.float64), "scalar": np.float16(2)}
    x = vector.pack(tensors, SPEC)
    assert x.dtype == np.float32
    assert x.tolist() == [1] * 6 + [2, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "says"),
    [({"c": np.zeros(1)}, "differ in"), ({"b": None}, "differ in"), ({"a": np.zeros((3, 2))}, "has shape")],
)
def test_pack_refuses(change: dict[str, np.ndarray | None], says: str) -> None:
    tensors = {**vector.unpack(np.zeros(SPEC.dim, np.float32), SPEC), **change}
    with pytest.raises(ValueError, match=says):
        vector.pack({k: v for k, v in tensors.items() if v is not None}, SPEC)


def test_wrong_lengths() -> None:
    with pytest.raises(ValueError, match="has shape"):
        vector.unpack(np.zeros(3, np.float32), SPEC)
    for raw in (b"", b"\0" * 43, b"\0" * 45):
        with pytest.raises(DecodeError) as caught:
            vector.from_bytes(raw, SPEC.dim)
        assert caught.value.code == "E-BLOB"


def test_bytes_are_little_endian_and_content_addressed() -> None:
    raw = vector.to_bytes(np.array([1.0, -2.0], np.float32))
    assert raw.hex() == "0000803f000000c0"
    assert vector.digest(raw) == hashlib.sha256(raw).hexdigest()
    assert not vector.from_bytes(raw, 2).flags.writeable


def test_finite() -> None:
    x = np.full(20_000, 3e38, np.float32)  # The squares overflow float32. The numbers do not.
    assert vector.finite(x)
    assert vector.finite(x[:0])
    for bad in (np.nan, np.inf, -np.inf):
        for at in (0, 9000, 19_999):
            y = x.copy()
            y[at] = bad
            assert not vector.finite(y)
            assert not vector.finite(np.where(np.isfinite(y), 0, y).astype(np.float32))


def test_the_norm_is_added_up_in_float64() -> None:
    x = np.random.default_rng(0).normal(size=(1 << 20) + 1000).astype(np.float32)
    for part in (x, x[:50], x[:1]):
        exact = math.sqrt(math.fsum(v * v for v in part.tolist()))
        assert vector.norm_l2(part) == pytest.approx(exact, rel=1e-14)
    assert vector.norm_l2(np.full(4, 3e38, np.float32)) == pytest.approx(6e38)  # no overflow of float32
    assert vector.norm_l2(x[:0]) == 0.0
    assert np.isnan(vector.norm_l2(np.array([1.0, np.nan], np.float32)))
