"""Speed, size and error of the codec chains on one core.

    python benchmarks/codecs.py [--dim 5000000] [--repeats 5]

GB/s are of the float32 update (4 d bytes): ``up`` is encode and pack on the device, ``down`` unpack, decode and add on
the server. NMSE is ||decoded - x||^2 / ||x||^2 of one contribution with normally distributed x, beside its theory:

    quantize          E[step^2 f (1 - f)], f the position between two grid points; step = largest of the block's
                      64 normals / L, or clamp / L on the shared grid (and what the clamp takes)
    random_k          d / k - 1 (unbiased), 1 - k / d (biased)
    eden              D / (1 - D), D the error of the Lloyd-Max quantizer of normals
    sign, pair        (1 - 2 / pi)(1 - 1 / 64); D of two magnitudes (2 bits), over long blocks
    nf4               over normals of another seed, as quantize
    top_k             1 - 2 (t phi(t) + Q(t)), 2 Q(t) = k / d
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import inf, pi
from typing import Any

import bench
import numpy as np

from edgewise.apps.cli.bench_codecs import WEIGH, bench_chain, bench_chain_once
from edgewise.codecs.quantize.codebook import NF4
from edgewise.codecs.quantize.eden import CENTROIDS
from edgewise.codecs.wire import pack
from edgewise.core.metric import LOSSES
from edgewise.core.training import Update
from edgewise.core.vector import Spec

CLAMP = 4.0  # in standard deviations, for the shared grid


def rounding(x: np.ndarray, step: np.ndarray | float) -> float:
    """Mean of step^2 f (1 - f), f the position between two grid points: the variance of stochastic rounding."""
    f = np.abs(x) / step % 1.0
    return float(np.mean(np.square(step) * f * (1.0 - f)))


def block_theory(bits: int, block: int = 64) -> float:
    """Over normals of another seed; a block's scale is its largest magnitude (its rounding up to bfloat16 left out)."""
    x = np.random.default_rng(99).normal(size=(30_000, block))
    return rounding(x, np.abs(x).max(1, keepdims=True) * (1 + 1e-12) / (2 ** (bits - 1) - 1))


def one_theory(block: int = 64) -> float:
    """One bit: every coordinate becomes +-s, s the block's largest magnitude, so s^2 - x^2."""
    x = np.random.default_rng(99).normal(size=(30_000, block))
    return float(np.mean(np.square(x).max(1)) - 1.0)


def shared_theory(bits: int) -> float:
    """As ``block_theory`` on one grid, and what clamping takes."""
    x = np.random.default_rng(99).normal(size=2_000_000)
    cut = np.clip(x, -CLAMP, CLAMP)
    return rounding(cut, CLAMP / (2 ** (bits - 1) - 1)) + float(np.mean(np.square(x - cut)))


def nf4_theory(block: int = 64) -> float:
    """As ``block_theory``, to the nearest value of the code book."""
    x = np.random.default_rng(99).normal(size=(4_000, block))
    top = np.abs(x).max(1, keepdims=True)
    near = NF4[np.abs((x / top)[..., None] - NF4).argmin(-1)] * top
    return float(np.mean(np.square(near - x)))


def lloyd_theory(bits: int) -> float:
    """D = 1 - E[Q(x)^2] of the code book's own cells."""
    normal, c = statistics.NormalDist(), CENTROIDS[bits]
    edges = [0.0, *((c[1:] + c[:-1]) / 2), inf]
    mass = [2 * (normal.cdf(b) - normal.cdf(a)) for a, b in pairwise(edges)]
    return float(1 - np.dot(mass, np.square(c)))


def eden_theory(bits: int) -> float:
    """The scale that removes the bias stretches by 1 / (1 - D)."""
    d = lloyd_theory(bits)
    return d / (1 - d)


def top_theory(fraction: float) -> float:
    """What the largest ``fraction`` of normals leave behind."""
    normal = statistics.NormalDist()
    t = normal.inv_cdf(1 - fraction / 2)
    return 1 - 2 * (t * normal.pdf(t) + fraction / 2)


CHAINS: dict[str, tuple[list[dict[str, Any]], Callable[[], float]]] = {
    "float32": ([WEIGH], lambda: 0.0),
    "quantize 8": ([WEIGH, {"kind": "quantize", "bits": 8}], lambda: block_theory(8)),
    "quantize 4": ([WEIGH, {"kind": "quantize", "bits": 4}], lambda: block_theory(4)),
    "quantize 2": ([WEIGH, {"kind": "quantize", "bits": 2}], lambda: block_theory(2)),
    "quantize 1": ([WEIGH, {"kind": "quantize", "bits": 1}], one_theory),
    "sign": ([WEIGH, {"kind": "quantize", "bits": 1, "grid": "sign"}], lambda: (1 - 2 / pi) * (1 - 1 / 64)),
    "pair, blocks of 4096": (
        [WEIGH, {"kind": "quantize", "bits": 2, "grid": "pair", "block": 4096}],
        lambda: lloyd_theory(2),
    ),
    "nf4": ([WEIGH, {"kind": "quantize", "bits": 4, "grid": "nf4"}], nf4_theory),
    "rotate": ([WEIGH, {"kind": "rotate"}], lambda: 0.0),
    **{
        f"rotate, eden {bits}": (
            [WEIGH, {"kind": "rotate"}, {"kind": "quantize", "bits": bits, "grid": "eden"}],
            partial(eden_theory, bits),
        )
        for bits in (1, 2, 3, 4)
    },
    "rotate, clamp, quantize 4 shared": (
        [
            WEIGH,
            {"kind": "rotate"},
            {"kind": "clamp", "linf": CLAMP},
            {"kind": "quantize", "bits": 4, "grid": "shared"},
        ],
        lambda: shared_theory(4),
    ),
    "clamp, quantize 8 shared, wrap 16": (
        [
            WEIGH,
            {"kind": "clamp", "linf": CLAMP},
            {"kind": "quantize", "bits": 8, "grid": "shared"},
            {"kind": "wrap", "bits": 16},
        ],
        lambda: shared_theory(8),
    ),
    "random_k 10 %": ([WEIGH, {"kind": "random_k", "fraction": 0.1}], lambda: 9.0),
    "random_k 10 % biased, quantize 8": (
        [WEIGH, {"kind": "random_k", "fraction": 0.1, "unbiased": False}, {"kind": "quantize", "bits": 8}],
        lambda: 0.9 + 0.1 * block_theory(8),
    ),
    "feedback: top_k 1 %": (
        [WEIGH, {"kind": "feedback"}, {"kind": "top_k", "fraction": 0.01}],
        lambda: top_theory(0.01),
    ),
    "feedback: top_k 1 %, quantize 8": (
        [WEIGH, {"kind": "feedback"}, {"kind": "top_k", "fraction": 0.01}, {"kind": "quantize", "bits": 8}],
        lambda: top_theory(0.01),
    ),
    "feedback: top_k 1 % of 4096, pair": (
        [
            WEIGH,
            {"kind": "feedback"},
            {"kind": "top_k", "fraction": 0.01, "chunk": 4096},
            {"kind": "quantize", "bits": 2, "grid": "pair"},
        ],
        lambda: top_theory(0.01),
    ),
}


def row(name: str, d: int, repeats: int) -> dict[str, float]:
    """One chain: seconds up and down (medians), bytes, NMSE and its theory."""
    tables, theory = CHAINS[name]
    pipe = bench_chain(tables, Spec.of([("w", (d,), "float32")]))
    x = np.random.default_rng(1).normal(size=d).astype(np.float32)
    m = bench_chain_once(pipe, Update(x, dict.fromkeys(LOSSES, 1.0), 1.0), repeats)
    return {
        "up_s": m.encode_s,
        "down_s": m.decode_s,
        "bytes": len(m.payload),
        "announced": pack.size_bytes(pipe.encoded),
        "nmse": m.nmse,
        "theory": theory(),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=5_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    size, out = 4 * a.dim, {}
    print(f"{bench.machine()}; d = {a.dim}")
    print(f"{'chain':34} {'up GB/s':>8} {'down GB/s':>9} {'bytes':>10} {'smaller':>8} {'NMSE':>10} {'theory':>10}")
    for name in CHAINS:
        m = row(name, a.dim, a.repeats)
        out[name] = {k: round(v, 6) for k, v in m.items()}
        print(
            f"{name:34} {size / m['up_s'] / 1e9:8.3f} {size / m['down_s'] / 1e9:9.3f} {m['bytes']:10.0f} "
            f"{size / m['bytes']:8.2f} {m['nmse']:10.3e} {m['theory']:10.3e}"
        )
    bench.say(dim=a.dim, chains=out)


if __name__ == "__main__":
    main()
