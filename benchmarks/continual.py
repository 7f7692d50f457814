"""Forgetting on text that drifts: plays that arrive one after another, fine-tuned with and without a replay buffer.

    python benchmarks/continual.py [--seeds 3] [--orders 3] [--rounds 3] [--buffer 32]

Three devices train the bundled model. The text arrives in windows. Each window is one of five plays, and each device
holds the lines of one character of it. A round trains on the lines of the current window alone and averages the
updates. With replay, half of every batch comes from a reservoir of at most ``--buffer`` blocks of earlier windows, on
the device. Both have the same batch and steps. edgewise has no setting for this, so the program builds it from the
trainer.

With R[t][i] = minus the loss (nats per token) on the held-out lines of play i after window t, and R[-1] before any:

    average      mean_i R[T][i]
    backward     mean_{i<T} (R[T][i] - R[i][i])
    forgetting   mean_{i<T} (max_{i<=l<T} R[l][i] - R[T][i])
    forward      mean_{i>0} (R[i-1][i] - R[-1][i])

Each device watches the loss of its first steps in a round with Page-Hinkley (delta 0.02, threshold 0.2). ``delay`` is
the number of rounds from a new play to the first alarm before the next one. An alarm is false if its device already
raised one in this window, or if the window is the first.

Bar: replay forgets at most half as much as plain fine-tuning.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bench
import numpy as np
import torch

from edgewise.core.frame import LocalRule
from edgewise.core.keys import derive, root
from edgewise.core.training import FitRequest
from edgewise.learn.text.blocks import predictions
from edgewise.learn.text.trainer import TextTrainer, make
from edgewise.plan.recipe import recipe as recipes

PLAYS = {
    "Richard III": ("KING RICHARD III", "BUCKINGHAM", "QUEEN ELIZABETH"),
    "Measure for Measure": ("ISABELLA", "ANGELO", "LUCIO"),
    "Romeo and Juliet": ("FRIAR LAURENCE", "CAPULET", "Nurse"),
    "The Winter's Tale": ("PAULINA", "AUTOLYCUS", "CAMILLO"),
    "Coriolanus": ("VOLUMNIA", "AUFIDIUS", "COMINIUS"),
}
DEVICES, BATCH, STEPS, LR = 3, 8, 4, 2e-3
RECIPE: dict[str, Any] = {
    "privacy": "none",
    "data": {"source": "plays", "sequence_len": 64, "max_tokens": 2000},
    "round": {"rounds": 1, "sampling": "all"},
    "training": {"lr": LR, "local_steps": STEPS, "batch": BATCH},
    "eval": {"max_tokens": 320},
}


class Reservoir:
    """A uniform sample of at most ``most`` of the rows that it was given (Vitter's algorithm R)."""

    def __init__(self, most: int, rng: np.random.Generator) -> None:
        self.rows: list[np.ndarray] = []
        self._most, self._rng, self._given = most, rng, 0

    def add(self, rows: np.ndarray) -> None:
        """Add rows. Each row given so far stays with probability ``most`` / given."""
        for row in rows:
            self._given += 1
            if len(self.rows) < self._most:
                self.rows.append(row)
            elif (at := int(self._rng.integers(self._given))) < self._most:
                self.rows[at] = row


@dataclass
class PageHinkley:
    """The Page-Hinkley test for a rise of the mean. It starts anew after an alarm.

    m_t = m_{t-1} + x_t - mean_t - delta,   alarm if m_t - min m > threshold
    """

    delta: float = 0.02
    threshold: float = 0.2
    _seen: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])  # count, mean, m, min m

    def alarm(self, x: float) -> bool:
        """Take one value, and return True if it raises the alarm."""
        count, mean, m, least = self._seen
        count += 1
        mean += (x - mean) / count
        m += x - mean - self.delta
        least = min(least, m)
        raised = m - least > self.threshold
        self._seen = [0.0, 0.0, 0.0, 0.0] if raised else [count, mean, m, least]
        return raised


def transfer(scores: Sequence[Sequence[float]], before: Sequence[float]) -> dict[str, float]:
    """Compute the four figures of this page's head from R[t][i], with tasks in the order of the windows."""
    last, n = scores[-1], len(scores)
    earlier = range(n - 1)
    return {
        "average": statistics.mean(last),
        "backward": statistics.mean(last[i] - scores[i][i] for i in earlier),
        "forgetting": statistics.mean(max(scores[t][i] for t in range(i, n - 1)) - last[i] for i in earlier),
        "forward": statistics.mean(scores[i - 1][i] - before[i] for i in range(1, n)),
    }


def detection(alarms: Sequence[tuple[int, int]], windows: int, rounds: int) -> tuple[list[int], int, int]:
    """Return the delays of detected changes, the number of missed ones and of false alarms, over all devices.

    Args:
        alarms: (device, round) of each alarm, in order. Rounds count from 0 over all windows.
    """
    first: dict[tuple[int, int], int] = {}
    false = 0
    for device, at in alarms:
        window = at // rounds
        if window and (device, window) not in first:
            first[device, window] = at % rounds
        else:
            false += 1
    return list(first.values()), DEVICES * (windows - 1) - len(first), false


def batches(new: np.ndarray, old: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[list[Any]]:
    """Yield the batch of each step. Half of it is old where there is any."""
    for _ in range(STEPS):
        replayed = min(BATCH // 2, len(old))
        rows = [new[i] for i in rng.choice(len(new), BATCH - replayed, replace=False)]
        rows += [old[i] for i in rng.choice(len(old), replayed, replace=False)] if replayed else []
        rows_BS = np.stack(rows).astype(np.int64)
        yield [(torch.from_numpy(rows_BS), predictions(rows_BS))]


def score(trainer: TextTrainer, play: str, params: Any) -> float:
    """Minus the mean loss on a play's held-out lines."""
    measured = [trainer.evaluate(speaker, params) for speaker in PLAYS[play]]
    return -sum(m.nll for m in measured) / sum(m.tokens for m in measured)


def run(trainer: TextTrainer, order: Sequence[str], seed: int, rounds: int, buffer: int) -> dict[str, Any]:
    """Train on the plays in this order. ``buffer`` = 0 is plain fine-tuning."""
    rng, key, params = np.random.default_rng(seed), root(seed), trainer.initial()
    memories = [Reservoir(buffer, rng) for _ in range(DEVICES)]
    watches, alarms = [PageHinkley() for _ in range(DEVICES)], []
    before, scores = [score(trainer, play, params) for play in order], []
    for window, play in enumerate(order):
        for r in range(window * rounds, (window + 1) * rounds):
            total, weight = np.zeros_like(params), 0.0
            for device, speaker in enumerate(PLAYS[play]):
                rule, own = LocalRule(steps=STEPS, lr=LR), derive(key, f"{r} {device}")
                request = FitRequest(speaker, r, params, rule, own, own)
                new = np.array(trainer.text(speaker).blocks.train_NS)
                update = trainer.fitted(request, batches(new, memories[device].rows, rng), float(len(new)))
                total, weight = total + update.count * update.x, weight + update.count
                if watches[device].alarm(update.head["loss_first"]):
                    alarms.append((device, r))
            params = params + (total / weight).astype(params.dtype)
        for device, speaker in enumerate(PLAYS[play]):
            memories[device].add(np.array(trainer.text(speaker).blocks.train_NS))
        scores.append([score(trainer, other, params) for other in order])
    delays, missed, false = detection(alarms, len(order), rounds)
    return {**transfer(scores, before), "delays": delays, "missed": missed, "false": false}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of a window")
    parser.add_argument("--buffer", type=int, default=32, help="blocks that a device keeps")
    a = parser.parse_args()
    names = list(PLAYS)
    orders = [names, names[::-1], *([str(x) for x in np.random.default_rng(n).permutation(names)] for n in range(9))]
    found: dict[str, list[dict[str, Any]]] = {"fine-tuning": [], "replay": []}
    print(f"{bench.machine()}; {a.orders} orders, {a.seeds} seeds, {a.rounds} rounds a window")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make(recipes.from_plain(RECIPE), Path(), Path(scratch))
        for seed in range(a.seeds):
            for order in orders[: a.orders]:
                for name, runs in found.items():
                    runs.append(run(trainer, order, seed, a.rounds, a.buffer if name == "replay" else 0))
                    bench.note(f"{name}, seed {seed}: {runs[-1]}")
    keys = ("average", "backward", "forgetting", "forward")
    print(f"| | {' | '.join(keys)} | delay, rounds | missed | false alarms |\n|---|---|---|---|---|---|---|---|")
    for name, runs in found.items():
        cells = [f"{statistics.mean(r[k] for r in runs):+.4f}" for k in keys]
        delays = [d for r in runs for d in r["delays"]]
        changes = len(delays) + sum(r["missed"] for r in runs)
        delay = f"{statistics.mean(delays):.2f}" if delays else "none"
        cells += [delay, f"{changes - len(delays)} of {changes}", str(sum(r["false"] for r in runs))]
        print(f"| {name} | {' | '.join(cells)} |")
    plain, replay = (statistics.mean(r["forgetting"] for r in runs) for runs in found.values())
    print(f"forgetting {replay:+.4f} with replay, {plain:+.4f} without; bar: at most half: ", end="")
    print("no forgetting to halve" if plain <= 0 else bench.verdict(replay / plain, 0.5))
    bench.say(**found)


if __name__ == "__main__":
    main()
