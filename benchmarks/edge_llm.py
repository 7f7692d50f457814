"""One contribution of a 300 M student through the pipeline of the recipe ``edge-llm``: bytes, epsilon, memory, seconds.

    python benchmarks/edge_llm.py [--full]

The layout is a Llama with 302,557,184 parameters (``large.layout``). Its FFA-LoRA factors of rank 8 on all linear
layers are filled with normal random numbers. With ``--full`` the whole model is too, of which ``shared_top_k`` takes
0.5 % (about 5 GB of memory). The contribution is encoded by the compiled plan, with clip, rotation, noise and ring,
and packed as on the wire. A frame with its sealed shares has some 400 bytes more. Bar: at most 5 MB per device and
round, with epsilon stated.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from typing import Any

import bench
import large
import numpy as np

from edgewise.apps.cli.shipped import FOLDER
from edgewise.codecs.wire import pack
from edgewise.core import keys
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan
from edgewise.plan.recipe.loading import load

LIMIT_MB, RANK, DEVICES = 5.0, 8, 480
FULL = {
    "personal": {}, "distill": {}, "model.quantize": "none", "trainable": {"kind": "full"},
    "stage": [{"kind": "shared_top_k", "fraction": 0.005}],
}  # fmt: skip


def factors(whole: Spec) -> Spec:
    """Lay out the trained factors B, outputs x rank, of all linear layers."""
    linear = [s for s in whole.segments if "_proj" in s.name]
    return Spec.of([(f"{s.name}.lora_B", (s.shape[0], RANK), "float32") for s in linear])


def one(full: bool) -> dict[str, Any]:
    """Encode one contribution."""
    spec = large.layout("300M")
    spec = spec if full else factors(spec)
    plan = compile_plan(load(FOLDER / "edge-llm.toml", FULL if full else {}, BUILT_IN), spec, DEVICES, BUILT_IN)
    pipe = plan.at(0)
    small = np.zeros(spec.dim, np.float32)
    small[:: max(1, spec.dim // 1000)] = 1e-3
    turn = keys.Turn(0, keys.derive(keys.root(1), "public"), keys.derive(keys.root(1), "private"))
    if not full:  # The first one compiles the kernels, so that they are in no figure.
        pipe.encode(small, {}, 1.0, pipe.init(), turn)
    del small
    rng, x = np.random.default_rng(1), np.empty(spec.dim, np.float32)
    for at in range(0, spec.dim, 1 << 22):
        x[at : at + (1 << 22)] = 1e-3 * rng.standard_normal(min(1 << 22, spec.dim - at), np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    payload, _ = pipe.encode(x, {}, 1.0, pipe.init(), turn)
    raw = pack.pack(payload, pipe.encoded)
    encode_s = time.perf_counter() - began
    assert plan.spend is not None
    return {
        "trained": spec.dim,
        "coordinates": pipe.encoded.dim,
        "payload": len(raw),
        "announced": plan.upload_bytes(0),
        "encode_s": encode_s,
        "above_update_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "epsilon": plan.spend.card.against_server,
        "delta": plan.spend.card.delta,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also 0.5 %% of the whole model")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        bench.say(**one(a.one == "full"))
        return
    print(bench.machine())
    print("| 300 M student | trained | coordinates | bytes | announced | epsilon | encode s | above the update |")
    print("|---|---|---|---|---|---|---|---|")
    for name in ["factors", *(["full"] if a.full else [])]:
        r = bench.start([sys.executable, __file__, "--one", name])
        print(
            f"| {name} | {r['trained']:,} | {r['coordinates']:,} | {r['payload']:,} "
            f"({bench.verdict(r['payload'], LIMIT_MB * 1e6)}) | {r['announced']:,} "
            f"| {r['epsilon']:.3g} at {r['delta']:g} | {r['encode_s']:.2f} | {r['above_update_mib']:.0f} MiB |"
        )


if __name__ == "__main__":
    main()
