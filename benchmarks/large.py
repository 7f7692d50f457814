"""One contribution of a large model through the codec alone: bytes, memory, seconds.

    python benchmarks/large.py [--models 300M,1B] [--limit-mb 5]

Layouts are Llama-shaped (embeddings, attention and MLP matrices, norms); the update is heavy-tailed random numbers
(Student t, 3 degrees of freedom, a scale of its own for each segment). For each model the highest rung of the package's
ladder that fits the limit is taken, in error feedback with a residual in int8 if it remembers, and one contribution is
encoded, packed, unpacked and added into an empty sum on the server. Each model runs in a process of its own. Bar: at
most 5 MB per device and round.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from typing import Any

import bench
import numpy as np

from edgewise.apps.cli.bench_codecs import bench_chain, rung_tables
from edgewise.codecs.wire import pack
from edgewise.core import keys
from edgewise.core.metric import LOSSES
from edgewise.core.pipeline import Pipeline
from edgewise.core.vector import Spec
from edgewise.plan.codec_choice.rungs import RUNGS, PlannedRung

# vocabulary, hidden size, inner size of the MLP, layers
SHAPES = {"1M": (512, 128, 384, 4), "300M": (32_000, 1024, 2816, 21), "1B": (32_000, 2048, 5632, 18)}


def layout(name: str) -> Spec:
    """A Llama-shaped model with tied embeddings."""
    vocabulary, hidden, inner, layers = SHAPES[name]
    shapes: list[tuple[str, tuple[int, ...], str]] = [("model.embed_tokens.weight", (vocabulary, hidden), "float32")]
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes += [(f"{at}self_attn.{p}_proj.weight", (hidden, hidden), "float32") for p in "qkvo"]
        shapes += [(f"{at}mlp.{p}_proj.weight", (inner, hidden), "float32") for p in ("gate", "up")]
        shapes.append((f"{at}mlp.down_proj.weight", (hidden, inner), "float32"))
        shapes += [(f"{at}{p}_layernorm.weight", (hidden,), "float32") for p in ("input", "post_attention")]
    return Spec.of(shapes)


def update(spec: Spec) -> np.ndarray:
    """float32[d], drawn piece by piece so that no second copy is held."""
    g = np.random.default_rng(1)
    x = np.empty(spec.dim, np.float32)
    for s in spec.segments:
        scale = float(np.exp(g.normal(0.0, 0.5))) * 1e-3
        for at in range(s.start, s.stop, 1 << 22):
            stop = min(s.stop, at + (1 << 22))
            # t with 3 degrees of freedom from normals: n / sqrt(chi2_3 / 3)
            n = g.standard_normal((stop - at, 4), np.float32)
            x[at:stop] = scale * n[:, 0] / np.sqrt(np.square(n[:, 1:]).sum(1) / 3)
    return x


def pipe_of(rung: PlannedRung, spec: Spec) -> Pipeline:
    """A rung as ``edgewise bench codecs`` has it, what it remembers in int8, into the visible sum."""
    tables = rung_tables(rung, spec)
    return bench_chain([{**t, "residual": "int8"} if t["kind"] == "feedback" else t for t in tables], spec)


def peak_gib() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def one(name: str, limit_mb: float) -> dict[str, Any]:
    """The largest rung that fits, on one random update."""
    small = layout("1M")  # compiles the kernels, so that they are in no figure
    spec = layout(name)
    rung = next(r for r in RUNGS if pack.size_bytes(pipe_of(r, spec).encoded) <= limit_mb * 1e6)
    run(pipe_of(rung, small), update(small))
    pipe, x = pipe_of(rung, spec), update(spec)
    before = peak_gib()
    return {"model": name, "parameters": spec.dim, "rung": rung.name, "before_gib": before, **run(pipe, x)}


def run(pipe: Pipeline, x: np.ndarray) -> dict[str, Any]:
    """Encode and pack on the device; unpack and add on the server."""
    turn = keys.Turn(0, keys.derive(keys.root(1), "public"), keys.derive(keys.root(1), "private"))
    memory = pipe.init()
    began = time.perf_counter()
    payload, after = pipe.encode(x, dict.fromkeys(LOSSES, 1.0), 65536.0, memory, turn)
    raw = pack.pack(payload, pipe.encoded)
    encode_s, device_gib = time.perf_counter() - began, peak_gib()
    kept = sum(v.nbytes for v in after.values())
    del memory, after, payload
    began = time.perf_counter()
    pipe.add(pipe.start_sum(), pack.unpack(raw, pipe.encoded), turn)
    return {
        "bytes": len(raw),
        "announced": pack.size_bytes(pipe.encoded),
        "encode_s": encode_s,
        "add_s": time.perf_counter() - began,
        "residual_bytes": kept,
        "device_gib": device_gib,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="300M,1B")
    parser.add_argument("--limit-mb", type=float, default=5.0)
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        bench.say(**one(a.one, a.limit_mb))
        return
    print(f"{bench.machine()}; at most {a.limit_mb:g} MB")
    print("| model | parameters | rung | bytes | than float32 | encode s | add s | residual | peak above the update |")
    print("|---|---|---|---|---|---|---|---|---|")
    out = []
    for name in a.models.split(","):
        r = bench.start([sys.executable, __file__, "--one", name, "--limit-mb", str(a.limit_mb)])
        above = r["device_gib"] - r["before_gib"]
        print(
            f"| {name} | {r['parameters']:,} | {r['rung']} "
            f"| {r['bytes']:,} ({bench.verdict(r['bytes'], a.limit_mb * 1e6)}) "
            f"| {4 * r['parameters'] / r['bytes']:.0f} x | {r['encode_s']:.2f} | {r['add_s']:.2f} "
            f"| {r['residual_bytes'] / 2**30:.2f} GiB | {above:.2f} GiB |"
        )
        out.append(r)
    bench.say(models=out)


if __name__ == "__main__":
    main()
