"""The side-by-side job in edgewise: the peers' model and data as an extension trainer, played by the real engine.

    python benchmarks/peer_task.py --peers DIR [--engine pool] --arch gpt --params 1000000 --clients 10 --rounds 6

DIR is the folder with ``common/fedbench_common.py``; the arguments are those of its scripts, and the RESULT line has
the same form. Plain average: no weigh stage (equal weights), float32 updates, plain SGD, batches in the same order.
Every contribution is framed, journalled, decoded and folded; every round is committed before the next one begins.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

T0 = time.time()
import numpy as np  # noqa: E402

from edgewise.apps.simulate import simulation  # noqa: E402
from edgewise.core import events  # noqa: E402
from edgewise.drivers.storage.run_store import RunStore  # noqa: E402
from edgewise.plan.catalogue import Extension  # noqa: E402
from edgewise.plan.recipe import recipe  # noqa: E402

VARIABLE = "EDGEWISE_PEER_TASK"  # how worker processes learn the arguments


def make_trainer(_: Any) -> Any:
    """The peers' network and shards; imports torch, so only where devices run."""
    a = Namespace(**json.loads(os.environ[VARIABLE]))
    sys.path.insert(0, str(Path(a.peers) / "common"))
    import fedbench_common as fb

    from edgewise.learn.shards import TensorShard
    from edgewise.learn.torch_task import TorchTrainer

    network = fb.build_model(a.params, a.arch, a.seed)
    shards = {}
    for cid in range(a.clients):
        x, y = fb.data_for(a, cid)
        # The engine measures the first and the last model on one device: two rows will do.
        shards[f"d{cid:05d}"] = TensorShard((x, y), (x[:2], y[:2]), shuffle=False)
    training = recipe.from_plain(tables(a)).training
    return TorchTrainer(network, lambda m, b: (m.loss_of(*b), float(len(b[0]))), shards, training)


EDGEWISE = Extension(trainer=make_trainer)


def tables(a: Namespace) -> dict[str, Any]:
    """The recipe of the job."""
    return {
        "name": "peer-task",
        "seed": a.seed,
        "privacy": "none",
        "round": {"rounds": a.rounds, "deadline_s": 1e6},
        "training": {
            "optimizer": "sgd",
            "lr": a.lr,
            "schedule": "constant",
            "local_steps": a.local_steps,
            "batch": a.batch_size,
            "clip_grad": 0.0,
        },
        "strategy": {"kind": "fedavg"},
        "stage": [],
        "eval": {"every": 0, "devices": 1},
        "compare": {"local_only": False, "centralised": False},
        "simulation": {"engine": a.engine, "workers": a.workers},
    }


def arguments() -> ArgumentParser:
    """As the peers' scripts have them."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", required=True, help="folder of the side-by-side scripts")
    parser.add_argument("--engine", choices=["inproc", "pool"], default="inproc")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--local-steps", type=int, default=5)
    parser.add_argument("--params", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arch", choices=["mlp", "gpt"], default="mlp")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default="", help="keep the run directory here")
    return parser


def main() -> None:
    """Play the job and print its RESULT line."""
    a = arguments().parse_args()
    os.environ[VARIABLE] = json.dumps(vars(a))
    sys.modules.setdefault("peer_task", sys.modules["__main__"])
    told: list[events.AnyEvent] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(a.out or folder)
        simulation.run(
            recipe.from_plain(tables(a)),
            out=out,
            recipe_dir=Path(),
            extensions=["peer_task"],
            sinks=[told.append],
            report=False,
        )
        with RunStore(out) as store:
            final = store.blob(store.models()[a.rounds])
    finished = [e for e in told if isinstance(e, events.RoundFinished)]
    first = next(e.at_s for e in told if isinstance(e, events.RoundStarted))
    # From the end of one round to the end of the next: commit, sweep and publish of the new model are inside.
    edges = [first, *(e.at_s for e in finished)]
    rounds = [b - c for b, c in zip(edges[1:], edges[:-1], strict=True)]
    line = {
        "framework": f"edgewise-{a.engine}",
        "clients": a.clients,
        "rounds": a.rounds,
        "local_steps": a.local_steps,
        "params": int(final.size),
        "arch": a.arch,
        "workers": a.workers if a.engine == "pool" else 1,
        "setup_s": round(first - T0, 4),
        "round_s": [round(r, 4) for r in rounds],
        "steady_round_s": round(statistics.median(rounds[1:] or rounds), 4),
        "train_s": round(statistics.median(e.train_s for e in finished), 4),
        "encode_s": round(statistics.median(e.encode_s for e in finished), 4),
        "aggregate_s": round(statistics.median(e.aggregate_s for e in finished), 4),
        "total_s": round(time.time() - T0, 4),
        "l2": round(float(np.linalg.norm(final.astype(np.float64))), 6),
    }
    print("RESULT " + json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
