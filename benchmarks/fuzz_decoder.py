"""The decoders under damaged streams: bit flips, cuts, insertions, splices of two streams, random bytes, false lengths.

    python benchmarks/fuzz_decoder.py [--streams 100000] [--seed 0] [--atheris SECONDS]

Over every chain of the law tests (``tests/laws``), two larger sparse ones, and whole frames. Each stream must be
refused with its code or be exactly what it decodes to, in less than ``BAR_S``, allocating less than
``fuzz.limit_bytes`` (linear in the announced dimension); anything else ends the program with the stream that did it.
What compiled kernels allocate is not traced, so the growth of the process is printed too. ``--atheris`` is a
coverage-guided run instead (needs the ``atheris`` package), on one sparse chain and on frames.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from inspect import isfunction

import bench
import numpy as np

sys.path.insert(0, str(bench.HERE.parent / "tests"))
sys.path.insert(0, str(bench.HERE.parent / "tests" / "support"))

from fuzz import KINDS, Damage, frame_is_strict, limit_bytes, payload_is_strict, peak_bytes

from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.select.top_k import top_k
from edgewise.codecs.wire import pack
from edgewise.core import frame
from edgewise.core.memory import Memory
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Space
from edgewise.merges.plain import plain_sum
from laws.test_decoder_fuzz import TURN, frames, streams_of
from laws.test_stages import CHAINS, START

BAR_S = 1.0  # of one stream; a hang would be seconds or for ever
TRACED = 10  # every so many-th stream's allocations are traced, which slows it down
BIG = 100_003
Target = tuple[str, list[bytes], Callable[[bytes], bool], Space | None]


def larger() -> list[tuple[str, Pipeline, list[bytes]]]:
    """Sparse payloads of a larger universe: long Golomb codes, and a bitmap."""
    start = START.but(dim=BIG, head=(), head_l2=0.0)
    out = []
    for stages in ([top_k(0.002), quantize(4)], [top_k(0.4), quantize(2)]):
        pipe = pipeline(start, stages, plain_sum())
        streams = []
        for seed in range(3):
            x = np.random.default_rng(seed).standard_t(3, BIG).astype(np.float32)
            streams.append(pack.pack(pipe.encode(x, {}, 1.0, Memory(), TURN)[0], pipe.encoded))
        out.append((f"{BIG}: {' > '.join(s.name for s in stages)}", pipe, streams))
    return out


def targets() -> list[Target]:
    """Name, valid streams, the check, and the payload's space (None for frames)."""

    def check(pipe: Pipeline) -> Callable[[bytes], bool]:
        return lambda raw: payload_is_strict(raw, pipe, TURN)

    chains = [(c.name, *streams_of(c)) for c in CHAINS] + larger()
    out: list[Target] = [(name, streams, check(pipe), pipe.encoded) for name, pipe, streams in chains]
    return [*out, *[("frames", frames(), frame_is_strict, None)] * 3]


def guided(seconds: int) -> None:
    """libFuzzer, guided by the branches of ``pack`` and ``frame``; ends the process with its own report."""
    try:
        import atheris
    except ImportError:
        raise SystemExit("--atheris: the package atheris is not installed (pip install atheris).") from None

    chain = next(c for c in CHAINS if "top_k(0.05) > quantize(4" in c.name)
    pipe, _ = streams_of(chain)

    def one(raw: bytes) -> None:
        frame_is_strict(raw)
        payload_is_strict(raw, pipe, TURN)

    for module in (pack, frame):
        for function in vars(module).values():
            if isfunction(function) and function.__module__ == module.__name__:
                atheris.instrument_func(function)
    arguments = [sys.argv[0], f"-max_total_time={seconds}", "-max_len=600", "-print_final_stats=1", "-timeout=5"]
    atheris.Setup(arguments, one)
    atheris.Fuzz()


def main() -> None:
    """Damage, decode, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", type=int, default=0, metavar="SECONDS")
    a = parser.parse_args()
    if a.atheris:
        guided(a.atheris)
    noise, todo = np.random.default_rng(a.seed), targets()
    for _, streams, check, _ in todo:  # compile
        if not all(check(raw) for raw in streams):
            raise AssertionError("an untouched stream is refused")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tried: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    slowest, fullest, began = (0.0, ""), (0.0, ""), time.perf_counter()
    for i in range(a.streams):
        name, streams, check, space = todo[i % len(todo)]
        one, two = noise.integers(0, len(streams), 2)
        raw, kinds = streams[one], []
        for _ in range(int(noise.integers(1, 4))):
            at, n, seed = (int(v) for v in noise.integers(0, 1 << 30, 3))
            kinds.append(KINDS[noise.integers(0, len(KINDS))])
            raw = Damage(kinds[-1], at, n, seed)(raw, streams[two])
        started = time.perf_counter()
        try:
            good = check(raw)
        except BaseException:
            print(f"{name}: {' '.join(kinds)}: {raw.hex()}", flush=True)
            raise
        spent = time.perf_counter() - started
        slowest = max(slowest, (spent, name))
        tried.update(kinds[-1:])
        accepted.update(kinds[-1:] if good else [])
        if space is not None and (i // len(todo)) % TRACED == 0:
            tracemalloc.start()
            fullest = max(fullest, (peak_bytes(raw, space) / limit_bytes(space), name))
            tracemalloc.stop()
    took = time.perf_counter() - began
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident)
    print(f"{bench.machine()}; {a.streams} streams over {len(todo) - 2} layouts in {took:.0f} s")
    print(f"{'last damage':12} {'streams':>8} {'accepted':>9}")
    for kind in KINDS:
        print(f"{kind:12} {tried[kind]:8} {accepted[kind]:9}")
    print("exceptions other than a coded refusal, or streams not re-encoded to themselves: 0")
    print(f"slowest stream {1e3 * slowest[0]:.1f} ms ({slowest[1]}), bar {BAR_S} s: {bench.verdict(slowest[0], BAR_S)}")
    print(f"largest allocation / bound {fullest[0]:.3f} ({fullest[1]}): {bench.verdict(fullest[0], 1.0)}")
    print(f"resident set grew by {grown / 2**20:.1f} MiB")
    bench.say(
        streams=a.streams,
        accepted=sum(accepted.values()),
        slowest_ms=round(1e3 * slowest[0], 2),
        allocation_share=round(fullest[0], 4),
        grown_mib=round(grown / 2**20, 2),
        seconds=round(took, 1),
    )


if __name__ == "__main__":
    main()
