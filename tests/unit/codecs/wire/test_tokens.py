"""Activations and gradients as bytes: sizes, errors of rounding, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.errors import DecodeError

X = (
    np.random.default_rng(0).normal(size=(9, 32)).astype(np.float32)
    * np.logspace(-20, 20, 9, dtype=np.float32)[:, None]
)
BYTES = {"float32": 4 * 32, "bf16": 2 * 32, "int8": 32 + 2, "int4": 16 + 2}
STEP = {"float32": 0.0, "bf16": 2.0**-8, "int8": 1.01 / 254, "int4": 1.01 / 14}  # largest error, nearest rounding


@pytest.mark.parametrize("rounding", BYTES)
def test_a_token_takes_the_bytes_that_are_computed_and_comes_back_within_half_a_step(rounding):
    codec = TokenCodec(rounding, 32)
    raw = codec.encode(X)
    assert len(raw) == codec.size_bytes(9) == 9 * BYTES[rounding]
    error = np.abs(codec.decode(raw, 9) - X)
    assert (error <= STEP[rounding] * np.abs(X).max(1, keepdims=True)).all()
    assert (codec.decode(codec.encode(np.zeros_like(X)), 9) == 0).all()


@pytest.mark.parametrize("rounding", ["bf16", "int8", "int4"])
def test_stochastic_rounding_has_no_bias(rounding):
    codec, x = TokenCodec(rounding, 4), np.tile(np.float32([1.0, 0.301, -0.499, 0.003]), (20_000, 1))
    mean = codec.decode(codec.encode(x, seed=5), len(x)).mean(0)
    assert np.abs(mean - x[0]).max() < {"bf16": 2e-4, "int8": 1e-3, "int4": 5e-3}[rounding]
    assert codec.encode(x, seed=5) == codec.encode(x, seed=5) != codec.encode(x, seed=6)


def test_the_largest_floats_stay_finite_and_others_are_refused():
    largest = np.full((1, 4), np.finfo(np.float32).max, np.float32)
    for rounding in BYTES:
        assert np.isfinite(TokenCodec(rounding, 4).decode(TokenCodec(rounding, 4).encode(largest), 1)).all()
        with pytest.raises(ValueError, match="not finite"):
            TokenCodec(rounding, 4).encode(largest * np.float32(np.nan))
    with pytest.raises(ValueError, match="expected"):
        TokenCodec("int8", 4).encode(X)


@pytest.mark.parametrize("rounding", BYTES)
def test_foreign_bytes_are_refused(rounding):
    codec = TokenCodec(rounding, 32)
    raw = codec.encode(X)
    for wrong in (raw[:-1], raw + b"\0"):
        with pytest.raises(DecodeError):
            codec.decode(wrong, 9)
    if rounding != "int4":
        with pytest.raises(DecodeError):
            codec.decode(b"\xff" * len(raw), 9)
