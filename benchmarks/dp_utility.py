"""Perplexity against epsilon: the plays, dealt out to 1,024 devices, under differential privacy of whole devices.

    python benchmarks/dp_utility.py --data DIR --out dp.jsonl [--arms 'A; B'] [--epsilons 1,2,4,8,inf] [--seeds 3]
    python benchmarks/dp_utility.py --plot dp.jsonl --png dp.png

Every finished (arm, epsilon, seed) is one line of the file; what is there is not played again. Arms: where the noise is
added (devices or server) and what is trained (B of FFA-LoRA, both factors of LoRA, the layers' own weights, or the
whole model).
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

import bench
from frontier import append, read, sha

os.environ.update({k: v for k, v in bench.QUIET.items() if k not in os.environ})
DEVICES, ROUNDS, COHORT, DELTA = 1024, 16, 128, 1e-5
LORA = {"kind": "lora", "rank": 8}
ARMS: dict[str, dict[str, Any]] = {
    "distributed, FFA-LoRA": {
        "privacy": "distributed_dp",
        "trainable": LORA | {"rule": "ffa"},
        "clip": 1.0,
        "server_lr": 1e-2,
    },
    "central, FFA-LoRA": {
        "privacy": "central_dp",
        "trainable": LORA | {"rule": "ffa"},
        "clip": 1.0,
        "server_lr": 1e-2,
    },
    "distributed, LoRA": {
        "privacy": "distributed_dp",
        "trainable": LORA | {"rule": "fedit"},
        "clip": 1.0,
        "server_lr": 1e-2,
    },
    "distributed, layers": {
        "privacy": "distributed_dp",
        "trainable": {"kind": "layers", "layers": ["model.layers.*"]},
        "clip": 1.0,
        "server_lr": 3e-3,
    },
    "distributed, full": {
        "privacy": "distributed_dp",
        "trainable": {"kind": "full"},
        "clip": 1.0,
        "server_lr": 3e-3,
    },
}


def recipe(arm: str, epsilon: float, clip: float = 0.0, lr: float = 0.0, server_lr: float = 0.0) -> dict[str, Any]:
    """An arm at a budget; without one (inf) nothing is clipped, noised or hidden."""
    a = ARMS[arm]
    plain: dict[str, Any] = {
        "schema": 1,
        "name": "dp-utility",
        "privacy": a["privacy"],
        "trainable": a["trainable"],
        "data": {
            "source": "jsonl", "path": "plays.jsonl", "text": "text", "owner": "owner", "sequence_len": 64,
            "holdout": 0.15,
        },
        "round": {"rounds": ROUNDS, "sampling": "cyclic", "cohort": COHORT, "minimum": 0.9},
        "training": {
            "optimizer": "sgd", "lr": lr or 1.0, "local_steps": 1, "batch": 4, "clip_grad": 0.0, "schedule": "constant",
        },
        "strategy": {"kind": "fedadam", "lr": server_lr or a["server_lr"], "tau": 1e-4},
        "eval": {"every": 0, "devices": 128, "max_tokens": 512},
        "compare": {"local_only": False, "centralised": False},
        "dp": {"epsilon": epsilon, "delta": DELTA, "clip_l2": clip or a["clip"]},
    }  # fmt: skip
    if math.isinf(epsilon):
        plain |= {"privacy": "none", "metrics": "none", "stage": []}
        del plain["dp"]
    elif a["privacy"] == "distributed_dp":
        plain["trust"] = {"malicious_fraction": 0.0}
        plain["merge"] = {"kind": "shared_sum"}  # the same numbers as with masks, in a tenth of the time
    return plain


def deal(data: Path, folder: Path) -> None:
    """The plays in order, cut into equal pieces: a device holds what a few speakers say in one scene."""
    text = (data / "shakespeare" / "input.txt").read_text(encoding="utf-8")
    size = len(text) // DEVICES
    with (folder / "plays.jsonl").open("w", encoding="utf-8") as f:
        for i in range(DEVICES):
            f.write(json.dumps({"owner": f"d{i:04d}", "text": text[i * size : (i + 1) * size]}) + "\n")


def play(plain: dict[str, Any], recipe_dir: str) -> dict[str, Any]:
    """One run: perplexity before and after, epsilon spent, noise multiplier."""
    from edgewise.apps.simulate import simulation
    from edgewise.core import events
    from edgewise.core.errors import EdgewiseError
    from edgewise.drivers.storage.run_store import RunStore
    from edgewise.plan.recipe import recipe as recipes

    began = os.times().user
    with tempfile.TemporaryDirectory(prefix="dp-") as folder:
        out = Path(folder) / "run"
        try:
            simulation.run(recipes.from_plain(plain), out=out, recipe_dir=Path(recipe_dir), report=False)
        except EdgewiseError as e:
            return {"error": f"{e.code}: {e.what}"}
        with RunStore(out) as store:
            evaluated = [e for e in store.events("evaluated") if isinstance(e, events.Evaluated)]
            finished = [e for e in store.events("round_finished") if isinstance(e, events.RoundFinished)]
            claims = store.run()["facts"]["plan"]["claims"]  # type: ignore[index]
    ppl = [math.exp(sum(e.nll.values()) / sum(e.tokens.values())) for e in evaluated]
    return {
        "before": ppl[0],
        "after": ppl[-1],
        "epsilon_spent": finished[-1].epsilon,
        "bytes_up": sum(e.bytes_up for e in finished) / max(1, sum(e.accepted for e in finished)),
        "met": sum(e.met for e in finished),
        "claims": claims[:4],
        "cpu_s": round(os.times().user - began, 1),
    }


def plot(path: Path, png: Path) -> None:
    """Perplexity (mean over seeds, with range) against epsilon, one line per arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runs = [r for r in read(path) if "error" not in r]
    fig, ax = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for i, arm in enumerate(a for a in ARMS if any(r["arm"] == a for r in runs)):
        finite = sorted({r["epsilon"] for r in runs if r["arm"] == arm and r["epsilon"] != "inf"})
        rows = [[r["after"] for r in runs if r["arm"] == arm and r["epsilon"] == e] for e in finite]
        means = [sum(row) / len(row) for row in rows]
        spread = [
            [m - min(row) for m, row in zip(means, rows, strict=True)],
            [max(row) - m for m, row in zip(means, rows, strict=True)],
        ]
        ax.errorbar(finite, means, spread, marker="o", capsize=3, color=f"C{i}", label=arm)
        if free := [r["after"] for r in runs if r["arm"] == arm and r["epsilon"] == "inf"]:
            ax.axhline(sum(free) / len(free), color=f"C{i}", ls=":", lw=1)
    if runs:
        ax.axhline(runs[0]["before"], color="0.4", ls="--", lw=1, label="before training")
    ax.set(xscale="log", xlabel=f"epsilon (delta {DELTA:g}, device level)", ylabel="held-out perplexity")
    ax.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    ax.minorticks_off()
    ax.set_title(f"{DEVICES} devices of the plays, {ROUNDS} rounds of {COHORT}; dotted: no privacy", fontsize=10)
    ax.legend(fontsize=8)
    ax.grid(alpha=0.25)
    fig.savefig(png, dpi=130)
    print("| arm | epsilon | perplexity (min..max) | seeds |\n|---|---|---|---|")
    for arm in ARMS:
        for e in sorted({r["epsilon"] for r in runs if r["arm"] == arm}, key=float):
            after = [r["after"] for r in runs if r["arm"] == arm and r["epsilon"] == e]
            print(
                f"| {arm} | {e} | {sum(after) / len(after):.1f} ({min(after):.1f}..{max(after):.1f}) | {len(after)} |"
            )


def main() -> None:
    """Play or plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default="", help="semicolon-separated names; all where left out")
    parser.add_argument("--epsilons", default="1,2,4,8,inf")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clip", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=0.0)
    parser.add_argument("--server-lr", type=float, default=0.0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs beside each other")
    parser.add_argument("--data", type=Path, help="folder that holds shakespeare/input.txt")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--png", type=Path)
    a = parser.parse_args()
    if a.plot:
        plot(a.plot, a.png)
        return
    arms = [n.strip() for n in a.arms.split(";") if n.strip()] or list(ARMS)
    with tempfile.TemporaryDirectory(prefix="dp-plays-") as scratch:
        deal(a.data, Path(scratch))
        done = {(r["settings"], r["seed"]) for r in read(a.out) if "error" not in r}
        with ProcessPoolExecutor(a.jobs, multiprocessing.get_context("spawn")) as pool:
            keys = {}
            for seed, epsilon, arm in product(range(a.seeds), a.epsilons.split(","), arms):
                if epsilon == "inf" and ARMS[arm]["privacy"] == "central_dp":
                    continue  # without noise it does not matter who would add it
                plain = recipe(arm, float(epsilon), a.clip, a.lr, a.server_lr)
                shown = epsilon if epsilon == "inf" else float(epsilon)
                key = {"arm": arm, "epsilon": shown, "seed": seed, "settings": sha(plain)}
                if (key["settings"], seed) not in done:
                    keys[pool.submit(play, {**plain, "seed": seed}, scratch)] = key
            for future in as_completed(keys):
                record = {**keys[future], **future.result()}
                append(a.out, record)
                short = record.get("error") or f"{record['before']:.1f} -> {record['after']:.1f}"
                print(record["arm"], record["epsilon"], record["seed"], short, record.get("cpu_s"), flush=True)


if __name__ == "__main__":
    main()
