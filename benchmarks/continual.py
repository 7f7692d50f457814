"""Forgetting on text that drifts: plays that arrive one after another, fine-tuned plainly, with replay, with a penalty.

    python benchmarks/continual.py [--seeds 3] [--orders 3] [--rounds 3] [--buffer 32] [--penalty 1e4] [--ways replay]

Three devices train the bundled model on a stream (``data.stream``). Each window is one of five plays, and each device
holds the lines of one character of it. A round trains on the lines of the current window alone and averages the
updates. With replay (``data.replay``), half of every batch comes from at most ``--buffer`` blocks of earlier windows,
which a device draws anew in each round. With a penalty (``drift.penalty``, online EWC), a device holds the weights that
its earlier windows needed. All have the same batch and steps. Text, windows and batches are those of the
text trainer.

With R[t][i] = minus the loss (nats per token) on the held-out lines of play i after window t, and R[-1] before any:

    average      mean_i R[T][i]
    backward     mean_{i<T} (R[T][i] - R[i][i])
    forgetting   mean_{i<T} (max_{i<=l<T} R[l][i] - R[T][i])
    forward      mean_{i>0} (R[i-1][i] - R[-1][i])

Each device watches the loss of its first steps in a round with Page-Hinkley (delta 0.02, threshold 0.2). ``delay`` is
the number of rounds from a new play to the first alarm before the next one. An alarm is false if its device already
raised one in this window, or if the window is the first.

Bar: each forgets at most half as much as plain fine-tuning.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bench
import numpy as np

from edgewise.core.frame import LocalRule
from edgewise.core.keys import derive, root
from edgewise.core.training import FitRequest
from edgewise.learn.evaluate import evaluate
from edgewise.learn.text import packed
from edgewise.learn.text.sources import shipped_plays
from edgewise.learn.text.stream import StreamShard
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
WAYS = ("fine-tuning", "replay", "penalty", "both")
RECIPE: dict[str, Any] = {
    "privacy": "none",
    "data": {
        "source": "jsonl", "owner": "device", "time": "window", "sequence_len": 64, "max_tokens": 2000,
        "stream": True, "window": 1.0, "window_start": "0",
    },
    "round": {"sampling": "all"},
    "training": {"lr": LR, "local_steps": STEPS, "batch": BATCH},
    "eval": {"max_tokens": 320},
}  # fmt: skip


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


def stream(order: Sequence[str], to: Path) -> None:
    """Write the lines of the plays as rows of a table, with the place of each play in the order as their time."""
    rows = [json.loads(line) for line in packed.lines(shipped_plays())]
    with to.open("w", encoding="utf-8") as f:
        for window, play in enumerate(order):
            for device, speaker in enumerate(PLAYS[play]):
                for row in rows:
                    if row["speaker"] == speaker:
                        f.write(json.dumps({"device": f"d{device}", "window": window, "text": row["text"]}) + "\n")


def streamed(order: Sequence[str], rounds: int, buffer: int, penalty: float, folder: Path) -> TextTrainer:
    """Make the text trainer of a stream. ``buffer`` = 0 replays nothing, and ``penalty`` = 0 holds no weight."""
    path = folder / f"{'-'.join(str(list(PLAYS).index(play)) for play in order)}.jsonl"
    stream(order, path)
    plain = copy.deepcopy(RECIPE)
    plain["data"] |= {"path": str(path), "window_rounds": rounds, "replay": buffer}
    plain["drift"] = {"penalty": penalty}
    plain["round"]["rounds"] = rounds * len(order)
    return make(recipes.from_plain(plain), folder, folder)


def score(trainer: TextTrainer, window: int, params: Any) -> float:
    """Minus the mean loss on a window's held-out lines."""
    trainer.flat.write(params)
    shards = [trainer.text(device) for device in trainer.devices()]
    held = [shard.window(window).held_out() for shard in shards if isinstance(shard, StreamShard)]
    measured = [evaluate(trainer.model, trainer.loss, batches) for batches in held]
    return -sum(m.nll for m in measured) / sum(m.tokens for m in measured)


def run(trainer: TextTrainer, windows: int, seed: int, rounds: int) -> dict[str, Any]:
    """Train on the windows of a stream, one after another."""
    key, params = root(seed), trainer.initial()
    watches, alarms = {device: PageHinkley() for device in trainer.devices()}, []
    kept: dict[str, Any] = {device: {} for device in trainer.devices()}
    before, scores = [score(trainer, window, params) for window in range(windows)], []
    for window in range(windows):
        for r in range(window * rounds, (window + 1) * rounds):
            total, weight = np.zeros_like(params), 0.0
            for number, device in enumerate(trainer.devices()):
                own = derive(key, f"{r} {device}")
                rule = LocalRule(steps=STEPS, lr=LR)
                update = trainer.fit(FitRequest(device, r, params, rule, own, own, personal=kept[device]))
                kept[device] = update.personal
                total, weight = total + update.count * update.x, weight + update.count
                if watches[device].alarm(update.head["loss_first"]):
                    alarms.append((number, r))
            params = params + (total / weight).astype(params.dtype)
        scores.append([score(trainer, other, params) for other in range(windows)])
    delays, missed, false = detection(alarms, windows, rounds)
    return {**transfer(scores, before), "delays": delays, "missed": missed, "false": false}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of a window")
    parser.add_argument(
        "--buffer", type=int, default=32, help="blocks of earlier windows that a device draws in a round"
    )
    parser.add_argument("--penalty", type=float, default=1e4, help="drift.penalty")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="of going on with new text")
    a = parser.parse_args()
    names = list(PLAYS)
    orders = [names, names[::-1], *([str(x) for x in np.random.default_rng(n).permutation(names)] for n in range(9))]
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in a.ways}
    print(f"{bench.machine()}; {a.orders} orders, {a.seeds} seeds, {a.rounds} rounds a window")
    with tempfile.TemporaryDirectory() as scratch:
        for order in orders[: a.orders]:
            for name, runs in found.items():
                buffer = a.buffer if name in ("replay", "both") else 0
                penalty = a.penalty if name in ("penalty", "both") else 0.0
                trainer = streamed(order, a.rounds, buffer, penalty, Path(scratch))
                for seed in range(a.seeds):
                    runs.append(run(trainer, len(order), seed, a.rounds))
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
    forgetting = {name: statistics.mean(r["forgetting"] for r in runs) for name, runs in found.items()}
    plain = forgetting.pop("fine-tuning", 0.0)
    for name, value in forgetting.items():
        print(f"forgetting {value:+.4f} with {name}, {plain:+.4f} without; bar: at most half: ", end="")
        print("no forgetting to halve" if plain <= 0 else bench.verdict(value / plain, 0.5))
    bench.say(**found)


if __name__ == "__main__":
    main()
