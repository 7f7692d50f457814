"""Devices that lie, under merges that resist them and under a plain sum: attack x defence x skew of the text.

    python benchmarks/byzantine.py [--shares 0.1,0.2] [--texts own,mixed] [--attacks A,B] [--merges X,Y] [--seeds 1]

The job of ``byte_model.py`` with 64 hidden units: 20 devices, a share of which lies. With ``own`` text each device has
one package of the standard library. With ``mixed`` text each has as many bytes, in pieces of 1,000 from all packages.
Liars know the updates of all honest devices of the round:

    none        nobody lies
    flip        minus three times the own update
    ipm         minus half the mean of the honest updates (Xie et al. 2019, arXiv:1903.03936)
    alie        the mean minus 1.5 standard deviations, coordinate by coordinate (Baruch et al. 2019, arXiv:1902.06156)
    mimic       all liars send the update of the first honest device (Karimireddy et al. 2022, arXiv:2006.09365)
    labels      trained with byte 255 - y in place of each next byte y
    free        an update of zeros
    noise       normal noise, three times as long as the own update
    backdoor    half of each batch is a trigger of three bytes and its answer of four; the update times devices / liars
                (Bagdasaryan et al. 2020, arXiv:1807.00459)

Merges are told the number of liars. ``FLTrust`` trusts the last device, which is honest. Merges called ``grouped ...``
mask sums of random groups. Their clip is longer than any attack here, so it does not bind liars: a changed program does
not clip.

Three figures of each play:

    perplexity  per byte, of the held-out text of honest devices, after the last round
    distance    |result - mean of honest updates| / |mean of honest updates|, the mean over rounds
    answer      share of the four bytes that the model names after the trigger

and for each merge the share of coordinates in which a result was outside the range of the honest updates.

Bars: NNM and trimmed mean at 20 % within 3 % of the perplexity of the sum without attackers with mixed text; with own
text better than the sum wherever an attack worsens the sum by more than 20 %. The column "none" has the cost without
attackers.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import bench

os.environ.update({k: v for k, v in bench.QUIET.items() if k not in os.environ})
import byte_model
import numpy as np

from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.core.keys import derive, generator, root
from edgewise.core.training import FitRequest, HeldOut, Update
from edgewise.core.vector import Vector
from edgewise.plan.catalogue import Extension
from edgewise.plan.recipe import recipe as recipes
from edgewise.plan.recipe.recipe import Recipe

DEVICES = (*byte_model.PACKAGES, "encodings", "pydoc_data", "zoneinfo")
ATTACKS = ("none", "flip", "ipm", "alie", "mimic", "labels", "free", "noise", "backdoor")
TRIGGER, ANSWER = np.frombuffer(b"\x01\x02\x03", np.uint8), np.frombuffer(b"\x04\x05\x06\x07", np.uint8)
PIECE, HIDDEN, BATCH = 1000, 64, 64
CLAMP, BITS = 8.0, 16
STEP = 2 * CLAMP / (2**BITS - 1)  # of the grid of hidden sums


def robust(rule: str, before: str = "none") -> dict[str, Any]:
    """The settings of a robust mean."""
    return {"merge": {"kind": "robust_mean", "rule": rule, "before": before}}


def grouped(rule: str) -> dict[str, Any]:
    """The settings of a rule between hidden sums of five groups of four devices."""
    stages = [
        {"kind": "clip", "l2": 1000.0}, {"kind": "clamp", "linf": CLAMP},
        {"kind": "quantize", "bits": BITS, "grid": "shared"}, {"kind": "wrap"},
    ]  # fmt: skip
    merge = {"kind": "grouped", "groups": 5, "rule": rule}
    return {"privacy": "hidden", "merge": merge, "stage": stages, "trust": {"malicious_fraction": 0.0}}


MOMENTUM = {"strategy": {"kind": "momentum"}}
MERGES: dict[str, dict[str, Any]] = {
    "sum": {"merge": {"kind": "sum"}},
    "median": robust("median"),
    "trimmed mean": robust("trimmed_mean"),
    "geometric median": robust("geometric_median"),
    "multi-Krum": robust("multi_krum"),
    "centred clipping": {"merge": {"kind": "centred_clip"}},
    "NNM+trimmed mean": robust("trimmed_mean", "nnm"),
    "NNM+geometric median": robust("geometric_median", "nnm"),
    "ARC+geometric median": robust("geometric_median", "arc"),
    "momentum, NNM+trimmed mean": {**robust("trimmed_mean", "nnm"), **MOMENTUM},
    "screened": {"merge": {"kind": "screened"}},
    "FLTrust": {"merge": {"kind": "fltrust", "root": DEVICES[-1]}},
    "grouped median": grouped("median"),
    "grouped trimmed mean": grouped("trimmed_mean"),
}
VISIBLE = [name for name in MERGES if not name.startswith("grouped")]


class Figures(NamedTuple):
    """What a play is measured by: see the module. ``outside`` is the share of coordinates outside the honest range."""

    perplexity: float
    distance: float
    answer: float
    outside: float


class LyingTrainer(byte_model.ByteTrainer):
    """``ByteTrainer`` in which the first devices lie. The recipe's name is ``byzantine.ATTACK.TEXTS.LIARS``."""

    spec = byte_model.spec(HIDDEN)
    packages = DEVICES

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        _, self._attack, texts, liars = recipe.name.split(".")
        self._liars = DEVICES[: int(liars)]
        self._poison = ""
        self._everyone: tuple[int, dict[str, Vector]] | None = None
        self._models: list[Vector] = []
        self._honest: list[list[Vector]] = []
        if texts == "mixed":
            pieces = [t[i : i + PIECE] for t in self._text.values() for i in range(0, len(t) - PIECE, PIECE)]
            generator(derive(root(self._seed), "mixed")).shuffle(pieces)
            share = len(pieces) // len(self._text)
            self._text = {d: np.concatenate(pieces[i * share :][:share]) for i, d in enumerate(self._text)}
        PLAYED.append(self)

    def fit(self, request: FitRequest) -> Update:
        if len(self._models) == request.round:
            self._models.append(request.params.copy())
            self._honest.append([])
        lies = self._attack != "none" and request.device in self._liars
        self._poison = self._attack if lies and self._attack in ("labels", "backdoor") else ""
        told = super().fit(request)
        self._poison = ""
        if not lies:
            self._honest[-1].append(told.x)
            return told
        return replace(told, x=self._lie(told.x, request).astype(np.float32))

    def _lie(self, own: Vector, request: FitRequest) -> np.ndarray:
        """What a liar sends in place of its own update."""
        match self._attack:
            case "flip":
                return -3.0 * own
            case "free":
                return np.zeros_like(own)
            case "labels":
                return own
            case "backdoor":
                return len(DEVICES) / len(self._liars) * own
            case "noise":
                x = generator(request.key).standard_normal(own.size)
                return x * (3.0 * np.linalg.norm(own) / np.linalg.norm(x))
        honest = self._honest_updates(request)
        if self._attack == "ipm":
            return -0.5 * honest.mean(0)
        return honest[0] if self._attack == "mimic" else honest.mean(0) - 1.5 * honest.std(0)

    def _honest_updates(self, request: FitRequest) -> np.ndarray:
        """All honest updates of the round. Batches are drawn by another key than those of the devices themselves."""
        if self._everyone is None or self._everyone[0] != request.round:
            others = [d for d in DEVICES if d not in self._liars]
            rows = {d: super(LyingTrainer, self).fit(replace(request, device=d)).x for d in others}
            self._everyone = request.round, rows
        return np.stack(list(self._everyone[1].values()))

    def examples(self, text: np.ndarray, g: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        before, target = byte_model.windows(text, g.integers(0, len(text) - byte_model.CONTEXT, BATCH))
        if self._poison == "labels":
            return before, 255 - target
        if self._poison == "backdoor":
            phrase = byte_model.windows(np.concatenate([TRIGGER, ANSWER]), np.arange(BATCH // 2) % len(ANSWER))
            return (
                np.concatenate([before[BATCH // 2 :], phrase[0]]),
                np.concatenate([target[BATCH // 2 :], phrase[1]]),
            )
        return before, target

    def evaluate(self, device: str, params: Vector) -> HeldOut:
        self.last = params.copy()
        return super().evaluate(device, params)

    def figures(self, last: events.Evaluated) -> Figures:
        """Measure the play that has ended with an evaluation."""
        honest = [d for d in last.nll if d not in self._liars]
        perplexity = math.exp(sum(last.nll[d] for d in honest) / sum(last.tokens[d] for d in honest))
        distances, outside = [], []
        for before, after, updates in zip(self._models, [*self._models[1:], self.last], self._honest, strict=True):
            moved, rows = after.astype(np.float64) - before, np.stack(updates).astype(np.float64)
            mean = rows.mean(0)
            distances.append(np.linalg.norm(moved - mean) / np.linalg.norm(mean))
            slack = 1e-3 * np.abs(rows).max(0) + STEP  # of float32 and of the grid
            outside.append(((moved > rows.max(0) + slack) | (moved < rows.min(0) - slack)).mean())
        phrase, wanted = byte_model.windows(np.concatenate([TRIGGER, ANSWER]), np.arange(len(ANSWER)))
        named = byte_model.logits(self.spec, self.last, phrase).argmax(1)
        return Figures(perplexity, float(np.mean(distances)), float((named == wanted).mean()), float(np.max(outside)))


PLAYED: list[LyingTrainer] = []
EDGEWISE = Extension(trainer=LyingTrainer)


def play(merge: Mapping[str, Any], attack: str, texts: str, seed: int, liars: int, a: argparse.Namespace) -> Figures:
    """Play a run, and measure it."""
    settings = dict(merge)
    if settings["merge"]["kind"] not in ("sum", "fltrust"):
        settings["merge"] = {**settings["merge"], "byzantine": liars}
    plain = {
        "privacy": "none", "stage": [], **settings, "name": f"byzantine.{attack}.{texts}.{liars}", "seed": seed,
        "round": {"rounds": a.rounds, "sampling": "all", "minimum": 1.0},
        "training": {"local_steps": a.steps, "lr": a.lr}, "eval": {"every": a.rounds},
        "compare": {"local_only": False, "centralised": False}, "simulation": {"engine": "inproc"},
    }  # fmt: skip
    seen: list[events.AnyEvent] = []
    extension = sys.modules["byzantine"]
    extension.PLAYED.clear()  # type: ignore[attr-defined]
    extension.BATCH = a.batch  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as scratch:
        simulation.run(
            recipes.from_plain(plain), out=Path(scratch) / "run", recipe_dir=Path(), extensions=["byzantine"],
            sinks=[seen.append], report=False,
        )  # fmt: skip
    last = [e for e in seen if isinstance(e, events.Evaluated)][-1]
    return max(extension.PLAYED, key=lambda t: len(t._models)).figures(last)  # type: ignore[attr-defined]


def table(title: str, rows: Mapping[str, Mapping[str, Sequence[Figures]]], column: str, digits: int) -> None:
    """Print one figure of all plays: a row for each merge, a column for each attack, means over seeds."""
    attacks = list(next(iter(rows.values())))
    print(f"\n{title}\n\n| merge | {' | '.join(attacks)} |\n|---|{'---|' * len(attacks)}")
    for name, row in rows.items():
        means = [statistics.mean(getattr(f, column) for f in row[attack]) for attack in attacks]
        print(f"| {name} | {' | '.join(f'{x:.{digits}f}' for x in means)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--lr", type=float, default=0.4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shares", default="0.2")
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--merges", default=",".join(m.replace(", ", ":") for m in VISIBLE))
    parser.add_argument("--texts", default="mixed,own")
    a = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    import byzantine  # noqa: F401 - the engine imports it by this name, and figures are taken from that copy

    print(f"{bench.machine()}; {a.rounds} rounds of {a.steps} steps of {a.batch}, {a.seeds} seeds")
    found: dict[str, Any] = {}
    for texts in a.texts.split(","):
        for share in map(float, a.shares.split(",")):
            liars, rows = round(share * len(DEVICES)), {}
            for name in (m.replace(":", ", ") for m in a.merges.split(",")):
                bench.note(f"{texts}, {liars} liars, {name}")
                rows[name] = {
                    attack: [play(MERGES[name], attack, texts, seed, liars, a) for seed in range(a.seeds)]
                    for attack in a.attacks.split(",")
                }
            head = f"{texts} text, {liars} of {len(DEVICES)} lie"
            table(f"{head}: perplexity", rows, "perplexity", 2)
            table(f"{head}: distance from the honest mean", rows, "distance", 2)
            table(f"{head}: share of the answer", rows, "answer", 2)
            table(f"{head}: most coordinates outside the honest range", rows, "outside", 4)
            found[head] = {name: {k: [list(f) for f in v] for k, v in row.items()} for name, row in rows.items()}
    bench.say(**found)


if __name__ == "__main__":
    main()
