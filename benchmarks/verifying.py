"""What keeping released totals costs a round, and how long a verification takes.

    python benchmarks/verifying.py [--dim 1000000] [--rounds 20]

Commits of a run with FedAdam (two slots) into a run directory, with and without totals, in turn: seconds and bytes of a
round. Then the kept totals are replayed. There is no bar: the figures say what ``store.totals_mb`` buys.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bench
import numpy as np

from edgewise.apps.models.verification import verify_run
from edgewise.core.stage import Aggregate
from edgewise.core.vector import Spec
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine.checkpoint import Checkpoint
from edgewise.engine.coordinator import first
from edgewise.engine.released import stepped
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.facts import canonical
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import from_plain


class Run:
    """A run whose rounds are drawn instead of trained."""

    def __init__(self, plan: Plan, store: RunStore) -> None:
        self.plan, self.store = plan, store
        facts = {"plan_facts": canonical(plan.facts).decode(), "spec": plan.spec.to_list()}
        store.create(plan.run, "bench", plan.recipe.resolved(), facts, None)
        self.checkpoint = first(plan, np.zeros(plan.spec.dim, np.float32))
        store.commit(self.checkpoint, ())

    def round(self, draw: np.random.Generator, kept: bool, sparse: bool) -> float:
        """Play a round; seconds of its commit."""
        mean = draw.standard_normal(self.plan.spec.dim, np.float32)
        if sparse:
            mean[draw.random(mean.size, np.float32) > 0.05] = 0.0
        total, before = Aggregate(mean, {"loss_last": 1.0}, 10, 10.0), self.checkpoint
        state = stepped(self.plan, before.state, before.next_round, total)
        self.checkpoint = Checkpoint(before.next_round + 1, state)
        began = time.perf_counter()
        self.store.commit(self.checkpoint, (), total=total if kept else None)
        return time.perf_counter() - began


@contextmanager
def runs(plan: Plan, names: tuple[str, ...]) -> Iterator[dict[str, tuple[Run, Path]]]:
    """A run for each name, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        stores = {name: RunStore(Path(folder) / name) for name in names}
        yield {name: (Run(plan, store), store.out) for name, store in stores.items()}
        for store in stores.values():
            store.close()


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--dim", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=20)
    asked = options.parse_args()
    recipe = {"privacy": "none", "strategy": {"kind": "fedadam"}, "round": {"rounds": asked.rounds}}
    plan = compile(from_plain(recipe), Spec.of([("w", (asked.dim,), "float32")]), 10, BUILT_IN)
    draw, found = np.random.default_rng(0), dict[str, float]()
    with runs(plan, ("none", "dense", "sparse")) as made:
        seconds: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(asked.rounds):
            for name, (run, _) in made.items():
                seconds[name].append(run.round(draw, name != "none", name == "sparse"))
        sizes = {name: sum(p.stat().st_size for p in (out / "blobs").iterdir()) for name, (_, out) in made.items()}
        began = time.perf_counter()
        replayed = verify_run(made["dense"][1]).replayed
        found["replay_s_per_round"] = (time.perf_counter() - began) / replayed
    for name, taken in seconds.items():
        found[f"commit_s_{name}"] = statistics.median(taken)
        found[f"bytes_per_round_{name}"] = (sizes[name] - sizes["none"]) / asked.rounds
        low, high = min(taken), max(taken)
        print(f"{name:8} commit {statistics.median(taken):.4f} s ({low:.4f} to {high:.4f}), "
              f"{found[f'bytes_per_round_{name}']:,.0f} bytes a round more")  # fmt: skip
    print(f"replay   {found['replay_s_per_round']:.4f} s a round, {replayed} rounds")
    bench.say(**found)


if __name__ == "__main__":
    main()
