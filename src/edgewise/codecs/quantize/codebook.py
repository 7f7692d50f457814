"""Code books of few values that are no integer multiples of a step: signs, NormalFloat, two magnitudes. All are biased.

They belong inside ``feedback``, or where a small systematic error is acceptable. Encoded integers are the odd numbers
-L, ..., L with L = 2^bits - 1 (``Grid.stride`` 2). Number i of the code book travels as 2 i - L.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.quantize import scales
from edgewise.core import require
from edgewise.core.compiled import compiled
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Grid, Kind, Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Vector

Encode = Callable[[Vector], tuple[NDArray[np.int8], scales.Scales]]
Decode = Callable[[NDArray[np.int8], scales.Scales], Vector]
MOST = np.finfo(np.float32).max

# Quantiles of the normal distribution, with an eighth of the mass per value on each side. Zero is one of them, and the
# largest is 1.
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
_BETWEEN = (NF4[1:] + NF4[:-1]) / 2


@compiled
def codebook_values(levels: NDArray[Any], code: NDArray[np.float64], step: NDArray[np.float32], block: int) -> Any:
    """Compute code[(level + L) / 2] * step_b, cut to float32's range. Returns float32[n]."""
    out = np.empty(levels.size, np.float32)
    table = np.empty(code.size, np.float32)
    top = np.int64(code.size - 1)
    for b in range(step.size):
        for v in range(code.size):
            table[v] = np.float32(min(max(code[v] * np.float64(step[b]), -MOST), MOST))
        for i in range(b * block, min(levels.size, (b + 1) * block)):
            out[i] = table[(np.int64(levels[i]) + top) >> 1]
    return out


@compiled
def _encode_signs(x: NDArray[np.float32], block: int, out: NDArray[np.int8], mean: NDArray[np.float64]) -> None:
    """Write the sign of each coordinate and the mean magnitude of each block."""
    for b in range(mean.size):
        part, o = x[b * block : (b + 1) * block], out[b * block : (b + 1) * block]
        total = 0.0
        for i in range(part.size):
            total += abs(np.float64(part[i]))
            o[i] = np.int8(1) if part[i] >= np.float32(0.0) else np.int8(-1)
        mean[b] = total / part.size


@compiled
def _count_limits(
    x: NDArray[np.float32], inverse: NDArray[np.float64], limits: NDArray[np.float64], block: int, out: NDArray[np.int8]
) -> None:
    """Count the limits at or below x_i * inverse_b: twice that number, minus the number of limits."""
    z = np.empty(block, np.float64)
    for b in range(inverse.size):
        part, o = x[b * block : (b + 1) * block], out[b * block : (b + 1) * block]
        for i in range(part.size):
            z[i] = np.float64(part[i]) * inverse[b]
            o[i] = np.int8(-limits.size)
        for limit in limits:
            for i in range(part.size):
                o[i] += np.int8(2) if z[i] >= limit else np.int8(0)


@compiled
def _encode_pairs(x: NDArray[np.float32], block: int, out: NDArray[np.int8], means: NDArray[np.float64]) -> None:
    """Find two means of magnitudes per block: split at the mean, then Lloyd's iteration, at most 8 steps."""
    for b in range(means.size // 2):
        part, o = x[b * block : (b + 1) * block], out[b * block : (b + 1) * block]
        total = 0.0
        for i in range(part.size):
            total += abs(np.float64(part[i]))
        split = total / part.size
        for step in range(8):
            above, n = 0.0, 0
            for i in range(part.size):
                a = abs(np.float64(part[i]))
                above += a if a > split else 0.0
                n += 1 if a > split else 0
            low = max(0.0, total - above) / max(1, part.size - n)
            high = above / n if n > 0 else low
            means[2 * b], means[2 * b + 1] = low, high
            if n == 0 or step == 7 or split == (low + high) / 2:
                break
            split = (low + high) / 2
        for i in range(part.size):
            level = np.int8(3) if abs(np.float64(part[i])) > split else np.int8(1)
            o[i] = level if part[i] >= np.float32(0.0) else -level


@compiled
def _decode_pairs(levels: NDArray[np.int8], step: NDArray[np.float32], block: int) -> Any:
    """Decode levels of two magnitudes per block."""
    out = np.empty(levels.size, np.float32)
    for b in range(step.size // 2):
        low, high = step[2 * b], step[2 * b + 1]
        for i in range(b * block, min(levels.size, (b + 1) * block)):
            size = high if abs(levels[i]) == 3 else low
            out[i] = size if levels[i] > 0 else -size
    return out


def codebook_growth(code: NDArray[np.float64], block: int) -> float:
    """Bound ||Q(x)|| / ||x|| over one block that is scaled by its largest magnitude and rounded to the nearest value.

    In units of the scale the largest coordinate is at least 1 / SLACK and becomes 1. The adversary puts the other block
    - 1 coordinates exactly where a magnitude starts to become q, at t(q). As in ``quantize.quantized_growth`` one q for
    all of them is worst: max_q sqrt((1 + (B-1) q^2) / (SLACK^-2 + (B-1) t(q)^2)).
    """
    between = (code[1:] + code[:-1]) / 2
    positive, negative = code >= 0, code <= 0
    q = np.concatenate([code[positive], -code[negative]])
    t = np.concatenate([np.append(-np.inf, between)[positive], -np.append(between, np.inf)[negative]])
    rest = block - 1
    return sqrt(float(((1.0 + rest * q**2) / (scales.SLACK**-2 + rest * np.maximum(t, 0.0) ** 2)).max())) * (1 + 1e-9)


def _codebook_stage(name: str, grown: Callable[[Space], Space], encoded: Encode, decoded: Decode) -> Stage:
    """Make a quantizer without memory from its effects on the space, on a body, and on levels and scales."""

    def infer(space: Space) -> Space:
        require.real(space, name)
        return grown(space)

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        levels, step = encoded(payload.body)
        return payload.but(body=levels, scales=step), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        assert payload.scales is not None
        return payload.but(body=decoded(payload.body, payload.scales), scales=None)

    return Stage(name, infer, encode, decode, scales.quantizer_words)


def codebook_space(space: Space, bits: int, block: int, error: float, many: int = 1) -> Space:
    """Infer the space after a code book of 2^bits values whose ``many`` scales per block travel. Bounds and bias stay.

    ``error``: see ``Space.quantized``.
    """
    return space.but(
        grid=Grid(Kind.INTEGER, float(bits), 0.0, level_max=2**bits - 1, stride=2, block=block, scales=many),
        quantized=error,
        summable=False,
    )


def sign_codebook(block: int) -> Stage:
    """Send one bit per coordinate: ``sign(x) s``, s = the block's mean magnitude rounded down to bfloat16.

    Algebra: s sqrt(n) <= ||x|| and s <= max |x|, so l2 and linf stay. Biased. Not summable.
    Guarantees: on normal coordinates ||Q(x) - x||^2 = (1 - 2/pi) ||x||^2 for long blocks, (1 - 1/n) of it for blocks of
    n.
    Edge cases: zero counts as positive. A block of zeros stays zero.
    Source: Bernstein et al. 2018, arXiv:1802.04434. The scale: Karimireddy et al. 2019, arXiv:1901.09847, section 3.
    """

    def encoded(x: Vector) -> tuple[NDArray[np.int8], scales.Scales]:
        levels, mean = np.empty(x.size, np.int8), np.empty(-(-x.size // block))
        _encode_signs(x, block, levels, mean)
        return levels, scales.scales_rounded_down(mean)

    code = np.array([-1.0, 1.0])
    return _codebook_stage(
        "quantize(1, sign)",
        lambda space: codebook_space(space, 1, block, (1 - 2 / pi) * (1 - 1 / block)).but(unbiased=False),
        encoded,
        lambda levels, step: codebook_values(levels, code, step, block),
    )


def nf4_codebook(block: int) -> Stage:
    """Send four bits: the nearest of 16 quantiles of the normal distribution, times the block's largest magnitude.

    Algebra: l2 times ``codebook_growth``, linf times 1 + 2^-7 (the scale is rounded up to bfloat16). Biased. Not
    summable.
    Guarantees: zero stays zero. Deterministic.
    Source: Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, section 3 and appendix E (the values).
    """
    growth = codebook_growth(NF4, block)

    def encoded(x: Vector) -> tuple[NDArray[np.int8], scales.Scales]:
        levels = np.empty(x.size, np.int8)
        step = scales.block_scales(x, block)
        inverse = np.divide(1.0, step, out=np.zeros(step.size), where=step > 0, dtype=np.float64)
        _count_limits(x, inverse, _BETWEEN, block, levels)
        return levels, step

    def grown(space: Space) -> Space:
        return codebook_space(space, 4, block, 0.0085).but(
            unbiased=False, l2=space.l2 * growth, linf=space.linf * scales.SLACK
        )

    return _codebook_stage(
        "quantize(4, nf4)", grown, encoded, lambda levels, step: codebook_values(levels, NF4, step, block)
    )


def pair_codebook(block: int) -> Stage:
    """Send two bits: the sign, and one of two magnitudes, which are the means of the block's smaller and larger half.

    The magnitudes are split where the two means are closest to their halves (Lloyd's iteration from the mean, at most 8
    steps). Both means are rounded down to bfloat16.

    Algebra: means do not lengthen, so l2 and linf stay. Biased. Not summable. After ``top_k`` a block counts *kept*
    coordinates.
    Edge cases: equal magnitudes use one of the two. Zero counts as positive.
    Source: Sarfi et al. 2025 (SparseLoCo), arXiv:2508.15706 (2-bit values of kept coordinates).
    """

    def encoded(x: Vector) -> tuple[NDArray[np.int8], scales.Scales]:
        levels, means = np.empty(x.size, np.int8), np.empty(2 * -(-x.size // block))
        _encode_pairs(x, block, levels, means)
        return levels, scales.scales_rounded_down(means)

    return _codebook_stage(
        "quantize(2, pair)",
        lambda space: codebook_space(space, 2, block, 0.1175, many=2).but(unbiased=False),
        encoded,
        lambda levels, step: _decode_pairs(levels, step, block),
    )
