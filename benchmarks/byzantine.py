"""Devices that lie, under merges that resist them and one that does not.

    python benchmarks/byzantine.py [--rounds 12] [--steps 10] [--seeds 1] [--attacks a,b] [--merges x,y] [--texts own]

The job of ``byte_model.py``: 17 devices, 3 of which (18 %) lie. With ``own`` text each device has one package of the
standard library; with ``mixed`` text each has as many bytes, in pieces of 1,000 from all packages. The perplexity per
byte is that of the 14 honest devices' held-out text. Liars know the updates of all honest devices of the round:

    none        nobody lies
    flip        minus three times the own update
    noise       normal noise, three times as long as the own update
    ipm         minus half the mean of the honest updates (Xie et al. 2019, arXiv:1903.03936)
    alie        the mean minus 1.5 standard deviations, coordinate by coordinate (Baruch et al. 2019, arXiv:1902.06156)
    mimic       all liars send the update of the first honest device (Karimireddy et al. 2022, arXiv:2006.09365)
    free        an update of zeros

Bars: NNM and trimmed mean within 3 % of the perplexity of the sum without attackers with mixed text; with own text
better than the sum wherever an attack worsens the sum by more than 20 %. The cost without attackers is in the table.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench
import byte_model
import numpy as np

from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.core.keys import derive, generator, root
from edgewise.core.training import FitRequest, Update
from edgewise.plan.catalogue import Extension
from edgewise.plan.recipe import recipe as recipes
from edgewise.plan.recipe.recipe import Recipe

LIARS = byte_model.PACKAGES[:3]
MERGES: dict[str, dict[str, Any]] = {
    "sum": {"kind": "sum"},
    "trimmed mean": {"kind": "robust_mean", "byzantine": 3, "rule": "trimmed_mean", "before": "none"},
    "NNM, trimmed mean": {"kind": "robust_mean", "byzantine": 3, "rule": "trimmed_mean", "before": "nnm"},
    "NNM, geometric median": {"kind": "robust_mean", "byzantine": 3, "rule": "geometric_median", "before": "nnm"},
    "ARC, geometric median": {"kind": "robust_mean", "byzantine": 3, "rule": "geometric_median", "before": "arc"},
    "multi-Krum": {"kind": "robust_mean", "byzantine": 3, "rule": "multi_krum", "before": "none"},
}
ATTACKS = ("none", "flip", "noise", "ipm", "alie", "mimic", "free")
PIECE = 1000  # bytes


class LyingTrainer(byte_model.ByteTrainer):
    """``ByteTrainer`` in which some devices lie. Name: ``byzantine.ATTACK.TEXTS``."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        _, self._attack, texts = recipe.name.split(".")
        self._honest: tuple[int, np.ndarray] | None = None
        if texts == "mixed":
            pieces = [t[i : i + PIECE] for t in self._text.values() for i in range(0, len(t) - PIECE, PIECE)]
            generator(derive(root(self._seed), "mixed")).shuffle(pieces)
            share = len(pieces) // len(self._text)
            self._text = {d: np.concatenate(pieces[i * share :][:share]) for i, d in enumerate(self._text)}

    def fit(self, request: FitRequest) -> Update:
        told = super().fit(request)
        if request.device not in LIARS or self._attack == "none":
            return told
        match self._attack:
            case "flip":
                x = -3.0 * told.x
            case "noise":
                x = generator(request.key).standard_normal(told.x.size)
                x *= 3.0 * np.linalg.norm(told.x) / np.linalg.norm(x)
            case "free":
                x = np.zeros_like(told.x)
            case _:
                honest = self._honest_updates(request)
                x = {
                    "ipm": lambda: -0.5 * honest.mean(0),
                    "alie": lambda: honest.mean(0) - 1.5 * honest.std(0),
                    "mimic": lambda: honest[0],
                }[self._attack]()
        return replace(told, x=x.astype(np.float32))

    def _honest_updates(self, request: FitRequest) -> np.ndarray:
        """All honest updates of the round. Batches are drawn by another key than those of the devices themselves."""
        if self._honest is None or self._honest[0] != request.round:
            others = [d for d in byte_model.PACKAGES if d not in LIARS]
            rows = [super(LyingTrainer, self).fit(replace(request, device=d)).x for d in others]
            self._honest = request.round, np.stack(rows)
        return self._honest[1]


EDGEWISE = Extension(trainer=LyingTrainer)


def play(merge: dict[str, Any], attack: str, texts: str, seed: int, rounds: int, steps: int) -> float:
    """Perplexity per byte of the honest devices' held-out text after the last round."""
    plain = {
        "privacy": "none", "name": f"byzantine.{attack}.{texts}", "seed": seed,
        "round": {"rounds": rounds, "sampling": "all", "minimum": 1.0},
        "training": {"local_steps": steps, "lr": 0.1}, "merge": merge, "stage": [], "eval": {"every": rounds},
        "compare": {"local_only": False, "centralised": False}, "simulation": {"engine": "inproc"},
    }  # fmt: skip
    told: list[events.AnyEvent] = []
    with tempfile.TemporaryDirectory() as scratch:
        simulation.run(
            recipes.from_plain(plain), out=Path(scratch) / "run", recipe_dir=Path(), extensions=["byzantine"],
            sinks=[told.append], report=False,
        )  # fmt: skip
    last = [e for e in told if isinstance(e, events.Evaluated)][-1]
    honest = [d for d in last.nll if d not in LIARS]
    return math.exp(sum(last.nll[d] for d in honest) / sum(last.tokens[d] for d in honest))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--merges", default=",".join(MERGES).replace(", ", "+"))
    parser.add_argument("--texts", default="own,mixed")
    a = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    attacks, found = a.attacks.split(","), {}
    merges = [name.replace("+", ", ") for name in a.merges.split(",")]
    print(
        f"{bench.machine()}; {a.rounds} rounds of {a.steps} steps, {a.seeds} seeds, {len(LIARS)} of "
        f"{len(byte_model.PACKAGES)} lie"
    )
    for texts in a.texts.split(","):
        print(f"\n{texts} text\n\n| merge | {' | '.join(attacks)} |")
        print("|---|" + "---|" * len(attacks))
        for name in merges:
            row = [
                statistics.mean(play(MERGES[name], attack, texts, seed, a.rounds, a.steps) for seed in range(a.seeds))
                for attack in attacks
            ]
            found[f"{name}, {texts}"] = dict(zip(attacks, row, strict=True))
            print(f"| {name} | {' | '.join(f'{x:.2f}' for x in row)} |", flush=True)
    bench.say(**found)


if __name__ == "__main__":
    main()
