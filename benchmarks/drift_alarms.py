"""Alarms of devices whose text drifts (``drift.alarm``): how soon they notice another kind of text, and false alarms.

    python benchmarks/drift_alarms.py [--seeds 1] [--rounds 2]

Three devices train the bundled model on four windows of a stream. Streams: ``code`` has lines of one play in two
windows, then source code of Python's library in two; ``play`` goes on with another play; ``same`` has one play only.
The settings are the defaults of [drift], with replay of 32 blocks. ``delay`` is the number of rounds from the change to
a device's first alarm. An alarm before the change, and any alarm without a change, is false.
"""

from __future__ import annotations

import argparse
import copy
import json
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import bench
import continual
import numpy as np

from edgewise.core.frame import LocalRule
from edgewise.core.keys import derive, root
from edgewise.core.training import FitRequest
from edgewise.learn.text import packed
from edgewise.learn.text.sources import shipped_plays
from edgewise.learn.text.trainer import make
from edgewise.plan.recipe import recipe as recipes

FIRST, OTHER, CODE = "Romeo and Juliet", "Coriolanus", ("json", "email", "logging")
STREAMS = {"code": (FIRST, "code"), "play": (FIRST, OTHER), "same": (FIRST,)}
WINDOWS = 4


def texts(kind: str, device: int) -> list[str]:
    """The texts of a device: lines of a character, or pieces of source files."""
    if kind == "code":
        files = sorted(Path(sysconfig.get_path("stdlib"), CODE[device]).glob("*.py"))
        return "\n\n".join(f.read_text(encoding="utf-8") for f in files).split("\n\n")
    rows = [json.loads(line) for line in packed.lines(shipped_plays())]
    return [row["text"] for row in rows if row["speaker"] == continual.PLAYS[kind][device]]


def rows(kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """Each device's texts as rows, cut into equally many windows of each kind."""
    found, each = [], WINDOWS // len(kinds)
    for n, kind in enumerate(kinds):
        for device in range(continual.DEVICES):
            own = texts(kind, device)
            found += [
                {"device": f"d{device}", "window": n * each + i * each // len(own), "text": text}
                for i, text in enumerate(own)
            ]
    return found


def alarms(kinds: tuple[str, ...], seed: int, rounds: int, folder: Path) -> list[list[int]]:
    """Train on a stream, and return the rounds in which each device's alarm begins."""
    path = folder / "stream.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(kinds)), encoding="utf-8")
    plain = copy.deepcopy(continual.RECIPE)
    plain["data"] |= {"path": str(path), "window_rounds": rounds, "replay": 32, "max_tokens": 1500}
    plain["round"]["rounds"] = rounds * WINDOWS
    plain["drift"] = {"alarm": True, "alarm_rounds": 1}
    trainer = make(recipes.from_plain(plain), folder, folder)
    params, key = trainer.initial(), root(seed)
    kept: dict[str, Any] = {device: {} for device in trainer.devices()}
    found: list[list[int]] = [[] for _ in kept]
    for r in range(rounds * WINDOWS):
        total, weight = np.zeros_like(params), 0.0
        for number, device in enumerate(trainer.devices()):
            own, rule = derive(key, f"{r} {device}"), LocalRule(steps=continual.STEPS, lr=continual.LR)
            update = trainer.fit(FitRequest(device, r, params, rule, own, own, personal=kept[device]))
            total, weight, kept[device] = total + update.count * update.x, weight + update.count, update.personal
            if update.head["in_alarm"]:
                found[number].append(r)
        params = params + (total / weight).astype(params.dtype)
        bench.note(f"round {r}: {[kept[d]['watch'].round(3).tolist() for d in kept]}")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="rounds of a window")
    parser.add_argument("--streams", nargs="+", choices=list(STREAMS), default=list(STREAMS))
    a = parser.parse_args()
    print(f"{bench.machine()}; {a.seeds} seeds, {a.rounds} rounds a window")
    print("| stream | devices that noticed | delay, rounds | false alarms |\n|---|---|---|---|")
    for name in a.streams:
        kinds = STREAMS[name]
        change = a.rounds * WINDOWS // 2 if len(kinds) > 1 else a.rounds * WINDOWS
        delays, false, devices = list[int](), 0, 0
        for seed in range(a.seeds):
            with tempfile.TemporaryDirectory() as scratch:
                for found in alarms(kinds, seed, a.rounds, Path(scratch)):
                    false += sum(r < change for r in found)
                    delays += [r - change for r in found if r >= change][:1]
                    devices += 1
        noticed = f"{len(delays)} of {devices}" if len(kinds) > 1 else "nothing to notice"
        delay = f"{sum(delays) / len(delays):.2f}" if delays else "none"
        print(f"| {name} | {noticed} | {delay} | {false} |", flush=True)


if __name__ == "__main__":
    main()
