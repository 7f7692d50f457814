"""The codec's hot paths on one core, beside a plain memory copy and beside torch.

    python benchmarks/hot_paths.py [--dim 10000000] [--repeats 9]
    python benchmarks/hot_paths.py --memory [--dim 100000000]

a. ``sparse``: top_k 0.5 % in error feedback, 4 bits in blocks of 64, packed. ``torch`` does the same on one thread:
   a = x + e, torch.topk(|a|), 4-bit blocks with random rounding, bytes, new residual. Bar: 3 times faster.
b. ``up``: 8 bits in blocks of 64, packed; bar 1 GB/s of float32. ``down``: unpacked, decoded and added to the exact
   sum; bar 2 GB/s.
c. ``fold``: n sparse contributions added to one sum. Bar: the time for each coordinate that travelled does not grow
   with n (within 1.5), and the sum's memory not with n.

Ours and the reference alternate; times are processor seconds of this one-threaded process, the smallest of the repeats,
since whatever else runs only adds to them. The copy is np.copyto of the float32 vector. ``--memory`` gives the largest
resident set of a process that encodes (a) at d = 10^8, above what it had with the update and the residual of the round
before in place.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import bench
import measure
import numpy as np

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.select.top_k import top_k
from edgewise.codecs.wire import pack
from edgewise.core import keys
from edgewise.core.memory import Memory, flat, tree
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Stage
from edgewise.merges.plain import plain_sum

FRACTION, BLOCK = 0.005, 64
SPARSE_BAR, UP_BAR, DOWN_BAR, FOLD_BAR = 3.0, 1.0, 2.0, 1.5


def chain(dim: int, *stages: Stage, most: int = 128) -> Pipeline:
    """A visible sum of what the stages make of a vector."""
    return pipeline(Space(dim, Quorum(1, most)), stages, plain_sum())


def turn(i: int) -> keys.Turn:
    """Round i."""
    return keys.Turn(i, keys.derive(keys.root(1), i), keys.derive(keys.root(2), i))


def update(dim: int, seed: int = 0) -> np.ndarray:
    """Normal, deviation 0.01, float32."""
    x = np.random.default_rng(seed).standard_normal(dim, np.float32)
    x *= np.float32(0.01)
    return x


def smallest(repeats: int, **runs: Callable[[], object]) -> dict[str, float]:
    """Seconds, the smallest of each, in turns; one more run of each comes first."""
    best = dict.fromkeys(runs, float("inf"))
    for i in range(repeats + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if i:
                best[name] = min(best[name], time.process_time() - began)
    return best


def by_torch(x: np.ndarray, e: np.ndarray) -> Callable[[], bytes]:
    """The reference of (a)."""
    import torch

    torch.set_num_threads(1)
    tx, te = torch.from_numpy(x), torch.from_numpy(e)
    k = round(FRACTION * x.size)

    def run() -> bytes:
        a = tx + te
        at = torch.topk(a.abs(), k, sorted=False).indices.sort().values
        values = a[at]
        blocks = torch.nn.functional.pad(values, (0, -k % BLOCK)).view(-1, BLOCK)
        scales = blocks.abs().amax(1, keepdim=True).clamp_min(2.0**-126)
        levels = torch.floor(blocks * (7.0 / scales) + torch.rand_like(blocks)).clamp_(-7, 7)
        sent = (levels * (scales / 7.0)).view(-1)[:k]
        index = (levels + 7).to(torch.uint8).view(-1, 2)
        body = index[:, 0] | (index[:, 1] << 4)
        a[at] -= sent  # the new residual, in place of a
        return b"".join(t.numpy().tobytes() for t in (at.int(), scales.bfloat16().view(torch.int16), body))

    return run


def speeds(dim: int, repeats: int) -> dict[str, float]:
    """Seconds of every path of (a) and (b)."""
    x, to = update(dim), np.empty(dim, np.float32)
    sparse = chain(dim, feedback([top_k(FRACTION), quantize(4)]))
    _, memory = sparse.encode(update(dim, 1), {}, 1.0, sparse.init(), turn(0))
    dense = chain(dim, quantize(8))
    payload, _ = dense.encode(x, {}, 1.0, Memory(), turn(0))
    raw, space = pack.pack(payload, dense.encoded), dense.merged
    sums = [dense.start_sum()]

    def up(pipe: Pipeline, memory: Any) -> bytes:
        payload, _ = pipe.encode(x, {}, 1.0, memory, turn(1))
        return pack.pack(payload, pipe.encoded)

    def down() -> None:
        if sums[0].n >= space.quorum.n_max:
            sums[0] = dense.start_sum()
        sums[0] = dense.add(sums[0], pack.unpack(raw, dense.encoded), turn(0))

    return smallest(
        repeats,
        copy=lambda: np.copyto(to, x),
        sparse=lambda: up(sparse, memory),
        torch=by_torch(x, update(dim, 2)),
        up=lambda: up(dense, Memory()),
        down=down,
    )


def folds(dim: int, repeats: int) -> dict[str, dict[str, float]]:
    """(c): nanoseconds for each coordinate added, by density and n; and bytes of the sum."""
    out: dict[str, dict[str, float]] = {}
    for density in (0.001, 0.01, 0.05):
        pipe = chain(dim, top_k(density), quantize(4))
        some = [pack.pack(pipe.encode(update(dim, i), {}, 1.0, Memory(), turn(i))[0], pipe.encoded) for i in range(4)]
        row = {}
        for n in (1, 10, 100):

            def fold(n: int = n, pipe: Pipeline = pipe, some: list[bytes] = some) -> Any:
                total = pipe.start_sum()
                total.acc.body.fill(0)  # the sum's own pages are not what is measured
                began = time.process_time()
                for i in range(n):
                    total = pipe.add(total, pack.unpack(some[i % 4], pipe.encoded), turn(0))
                return time.process_time() - began, total.acc.body.nbytes

            times = [fold() for _ in range(max(2, repeats // (1 + n // 10)))]
            row[f"n{n}"] = 1e9 * min(t for t, _ in times) / (n * pipe.encoded.dim)
            row[f"bytes{n}"] = times[0][1]
        out[f"{density:g}"] = row
    return out


def at_least(value: float, bar: float) -> str:
    """The verdict where more is better."""
    return "met" if value >= bar else f"MISSED by {100 * (1 - value / bar):.1f} %"


def peak(dim: int) -> None:
    """Print what encoding takes at its highest, above the update and the residual that were there before."""
    pipe = chain(dim, feedback([top_k(FRACTION), quantize(4)]))
    small = chain(10**6, feedback([top_k(FRACTION), quantize(4)]))
    small.encode(update(10**6), {}, 1.0, small.init(), turn(0))  # compiles
    x, memory = update(dim), tree({k: v.copy() for k, v in flat(pipe.init()).items()})
    memory.child("stage", 0)["residual"].fill(0)
    before = measure.high_water_mb()
    began = time.process_time()
    payload, after = pipe.encode(x, {}, 1.0, memory, turn(0))
    raw = pack.pack(payload, pipe.encoded)
    seconds, above = time.process_time() - began, measure.high_water_mb() - before
    kept = after.child("stage", 0)["residual"].nbytes / 2**20
    print(f"{bench.machine()}; d = {dim}: the update {x.nbytes / 2**20:.0f} MiB, its residual {kept:.0f} MiB")
    print(
        f"encode and pack: {seconds:.2f} s, {len(raw)} bytes; at most {above:.0f} MiB more, {kept:.0f} the new residual"
    )
    share = (above - kept) / (x.nbytes / 2**20)
    print(f"beside the new residual {share:.3f} of the update; bar 0.25: {bench.verdict(share, 0.25)}")
    bench.say(dim=dim, above_mb=round(above, 1), residual_mb=round(kept, 1), share=round(share, 4), seconds=seconds)


def main() -> None:
    """Print the table, or the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--memory", action="store_true")
    a = parser.parse_args()
    if any(os.environ.get(k) != v for k, v in bench.QUIET.items()):  # thread counts are read when libraries load
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **bench.QUIET})
    if a.memory:
        peak(a.dim or 10**8)
        return
    dim = a.dim or 10**7
    seconds, size = speeds(dim, a.repeats), 4e-9 * dim
    print(f"{bench.machine()}; d = {dim}, smallest of {a.repeats}, load {os.getloadavg()[0]:.1f}")
    print(f"{'path':12} {'ms':>9} {'GB/s':>8} {'copies':>8}")
    for name, s in seconds.items():
        print(f"{name:12} {1e3 * s:9.2f} {size / s:8.3f} {s / seconds['copy']:8.2f}")
    rows = folds(dim, a.repeats)
    print("fold, ns for each coordinate that travelled")
    for density, row in rows.items():
        print(f"density {density:6} " + ", ".join(f"n = {n}: {row[f'n{n}']:.2f}" for n in (1, 10, 100)))
    faster = seconds["torch"] / seconds["sparse"]
    growth = max(row["n100"] / row["n1"] for row in rows.values())
    same = all(row["bytes1"] == row["bytes100"] == 8 * dim for row in rows.values())
    up, down = size / seconds["up"], size / seconds["down"]
    print(f"sparse against torch: {faster:.2f} times faster; bar {SPARSE_BAR:g}: {at_least(faster, SPARSE_BAR)}")
    print(f"8 bits up: {up:.2f} GB/s; bar {UP_BAR:g}: {at_least(up, UP_BAR)}")
    print(f"8 bits down: {down:.2f} GB/s; bar {DOWN_BAR:g}: {at_least(down, DOWN_BAR)}")
    print(
        f"fold, n = 100 against 1: {growth:.2f}; bar {FOLD_BAR:g}: {bench.verdict(growth, FOLD_BAR)}; 8 d bytes: {same}"
    )
    bench.say(dim=dim, ms={k: round(1e3 * v, 3) for k, v in seconds.items()}, faster=round(faster, 3), fold_ns=rows)


if __name__ == "__main__":
    main()
