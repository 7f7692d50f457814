"""What positions cost: Golomb-coded random positions against their entropy.

    python benchmarks/index_bytes.py [--dim 10000000]

k positions among d, drawn uniformly, as ``pack`` writes them beside a payload; entropy = log2 C(d, k) / 8 bytes.
Bar: within ``BAR`` of it at every density. ``announced`` is what ``pack.size_bytes`` forecasts.
"""

from __future__ import annotations

import argparse
from math import lgamma, log

import bench
import numpy as np

from edgewise.codecs.wire import pack
from edgewise.core.payload import Payload
from edgewise.core.space import Grid, Kind, Quorum, Space, Support
from edgewise.kernels.bits import packed_bytes
from edgewise.kernels.hashing import choose_by_hash

DENSITIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05)
BAR = 0.01


def entropy_bytes(d: int, k: int) -> float:
    """log2 of the number of k-subsets of d, in bytes."""
    return (lgamma(d + 1) - lgamma(k + 1) - lgamma(d - k + 1)) / log(2) / 8


def measure(d: int, density: float) -> dict[str, float]:
    """Bytes of the positions alone: a packed payload less its body of one bit per coordinate."""
    k = round(density * d)
    space = Space(k, Quorum(1, 1), grid=Grid(Kind.INTEGER, 1.0, level_max=1, stride=2), support=Support(d))
    at = choose_by_hash(d, k, np.uint64(k))
    raw = pack.pack(Payload(np.ones(k, np.int8), np.zeros(0), at), space)
    back = pack.unpack(raw, space).support
    if back is None or not np.array_equal(back, at):
        raise AssertionError("the positions do not come back")
    body = packed_bytes(k, 1)
    return {"bytes": len(raw) - body, "announced": pack.size_bytes(space) - body, "entropy": entropy_bytes(d, k)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=10_000_000)
    d, out = parser.parse_args().dim, {}
    print(f"{bench.machine()}; d = {d}")
    print(f"{'density':>8} {'bytes':>9} {'announced':>11} {'entropy':>11} {'bits each':>10} {'above':>8}")
    for density in DENSITIES:
        m = measure(d, density)
        above = m["bytes"] / m["entropy"] - 1
        out[f"{density:g}"] = round(above, 5)
        print(
            f"{100 * density:6.2f} % {m['bytes']:9.0f} {m['announced']:11.1f} {m['entropy']:11.1f} "
            f"{8 * m['bytes'] / round(density * d):10.4f} {100 * above:6.3f} %  {bench.verdict(above, BAR)}"
        )
    bench.say(dim=d, above=out, worst=max(out.values()))


if __name__ == "__main__":
    main()
