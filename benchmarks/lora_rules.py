"""Rules that average LoRA adapters: on text dealt out evenly and on text of single owners, at two ranks and mixed.

    python benchmarks/lora_rules.py [--rounds 6] [--seeds 3] [--rules fedit,ffa] [--lines found.jsonl --most 5]

24 devices hold lines of Shakespeare's plays: dealt out at random (iid), or of one character each (skewed). Six of them
train the bundled model in a round. All rules have one learning rate and alpha = 2 rank.

    perplexity   weighted mean over the held-out text of all devices after the last round, mean over seeds
    up, down     megabytes of the whole run
    error        ||mean(B A) - mean(B) mean(A)|| / ||mean(B A)||, mean over rounds: what averaging factors misses.
                 ``fedex`` and ``flora`` add it, so for them it is the error that they avoid

``mixed``: half of the devices have rank 4 and half rank 8. ``zero padding`` is the rule ffa with columns that lower
ranks did not train counted as zero; ``flora`` is stacking. The lines below the table compare the recipe's own choice
(rule = "auto") with the best rule that its pipeline allows. Bar: within 1 % of it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import bench
import numpy as np

from edgewise.apps.simulate import simulation
from edgewise.codecs.wire import pack
from edgewise.core import events
from edgewise.core.decoding import undo
from edgewise.core.factors import factor
from edgewise.core.stage import WEIGHT
from edgewise.core.vector import Spec, Vector, unpack
from edgewise.engine import after_round
from edgewise.engine.aggregation import PlainAggregation
from edgewise.plan import strategy as strategies
from edgewise.plan.recipe import recipe as recipes
from edgewise.strategies.ranks import of_ranks

RULES = ("fedit", "ffa", "reffa", "rolora", "fed_sb", "fedex", "flora")
MIXED = ("ffa", "reffa", "flora", "zero padding")
LINEAR = ("fedit", "ffa", "reffa", "rolora", "fed_sb")  # what a hidden sum allows
SKEWS: dict[str, dict[str, Any]] = {"iid": {"partition": "iid", "devices": 24}, "skewed": {"partition": "owner"}}


def recipe(rule: str, skew: str, rank: str, seed: int, rounds: int) -> dict[str, Any]:
    """The recipe of one run."""
    section: dict[str, Any] = {"kind": "lora", "rule": "ffa" if rule == "zero padding" else rule}
    highest = 8 if rank == "mixed" else int(rank)
    section |= {"rank": highest, "alpha": 2.0 * highest}
    if rank == "mixed":
        section["rank_shares"] = {"4": 0.5, "8": 0.5}
    if rule == "reffa":
        section["folds"] = max(1, rounds // 2)
    return {
        "privacy": "none",
        "name": "lora-rules",
        "seed": seed,
        "trainable": section,
        "data": {"source": "plays", "sequence_len": 32, "max_tokens": 1200, **SKEWS[skew]},
        "round": {"rounds": rounds, "sampling": "fixed", "cohort": 6, "overselect": 1.0},
        "training": {"lr": 5e-3, "local_steps": 4, "batch": 4},
        "eval": {"every": 0, "max_tokens": 256},
        "compare": {"local_only": False, "centralised": False},
        "simulation": {"engine": "inproc"},
    }


@contextmanager
def recorded(errors: list[float]) -> Iterator[None]:
    """Measure the aggregation error of each round inside, from the contributions as the server decodes them."""
    fold, applied, seen = PlainAggregation.fold, after_round.stepped, list[tuple[float, Vector]]()

    def folding(self: Any, device: str, message: Any) -> Any:
        pipe, turn = self._pipe, self._facts.share(message.round)[0]
        item = undo(pipe.stages, pipe.spaces, pack.unpack(message.payload, pipe.encoded), turn).dense(
            pipe.spaces[0].dim
        )
        weight = item.head[pipe.encoded.head.index(WEIGHT)]
        seen.append((weight, item.body / np.float32(weight)))
        return fold(self, device, message)

    def applying(plan: Any, before: Any, round: int, aggregate: Any) -> Any:
        errors.append(error(plan.spec, before.params, seen))
        seen.clear()
        return applied(plan, before, round, aggregate)

    with (
        mock.patch.object(PlainAggregation, "fold", folding),
        mock.patch.object(after_round, "stepped", applying),
    ):
        yield


def error(spec: Spec, start: Vector, updates: list[tuple[float, Vector]]) -> float:
    """||mean(B A) - mean(B) mean(A)|| / ||mean(B A)|| over all matrices; 0 where one factor is fixed."""
    names = [s.name for s in spec.segments if factor(s.name) == "B"]
    if not any(factor(s.name) == "A" for s in spec.segments):
        return 0.0
    whole, missed = 0.0, 0.0
    tensors = [(weight, unpack(start + x, spec)) for weight, x in updates]
    total = sum(weight for weight, _ in tensors)
    for name in names:
        pairs = [(w / total, t[name], t[name.replace("lora_B", "lora_A")]) for w, t in tensors]
        mean = sum(w * b.astype(np.float64) @ a for w, b, a in pairs)
        apart = sum(w * b for w, b, _ in pairs) @ sum(w * a for w, _, a in pairs)
        whole, missed = whole + float((mean**2).sum()), missed + float(((mean - apart) ** 2).sum())
    return math.sqrt(missed / whole) if whole else 0.0


def zero_padding(inner: Any, spec: Spec, ranks: tuple[int, ...], shares: Any) -> Any:
    """Devices of unequal rank without denominators of their own: columns that were not trained count as zero."""
    return of_ranks(inner, spec, ranks, dict.fromkeys(ranks, 1.0))


def play(rule: str, skew: str, rank: str, seed: int, rounds: int) -> dict[str, Any]:
    """One run: its perplexity, megabytes and aggregation error."""
    told: list[events.AnyEvent] = []
    errors: list[float] = []
    counted = zero_padding if rule == "zero padding" else of_ranks
    made = recipes.from_plain(recipe(rule, skew, rank, seed, rounds))
    with (
        tempfile.TemporaryDirectory() as scratch,
        recorded(errors),
        mock.patch.object(strategies, "of_ranks", counted),
    ):
        out = Path(scratch) / "run"
        simulation.run(made, out=out, recipe_dir=Path(), sinks=[told.append], report=False)
    finished = [e for e in told if isinstance(e, events.RoundFinished)]
    last = [e for e in told if isinstance(e, events.Evaluated)][-1]
    return {
        "rule": rule, "skew": skew, "rank": rank, "seed": seed,
        "perplexity": math.exp(sum(last.nll.values()) / sum(last.tokens.values())),
        "up_mb": sum(e.bytes_up for e in finished) / 1e6,
        "down_mb": sum(e.bytes_down for e in finished) / 1e6,
        "error": statistics.fmean(errors),
    }  # fmt: skip


def table(found: list[dict[str, Any]]) -> None:
    """Print the means over seeds, and each pipeline's own choice beside its best rule."""
    runs = defaultdict(list)
    for one in found:
        runs[one["skew"], one["rank"], one["rule"]].append(one)
    print("| text | rank | rule | perplexity (range over seeds) | MB up | MB down | error |")
    print("|---|---|---|---|---|---|---|")
    for (skew, rank, rule), ones in runs.items():
        ppl = [one["perplexity"] for one in ones]
        cells = [f"{statistics.fmean(one[key] for one in ones):.3g}" for key in ("up_mb", "down_mb")]
        missed = 100 * statistics.fmean(one["error"] for one in ones)
        mean = f"{statistics.fmean(ppl):.1f} ({min(ppl):.1f} to {max(ppl):.1f})"
        print(f"| {skew} | {rank} | {rule} | {mean} | {cells[0]} | {cells[1]} | {missed:.2g} % |")
    for skew, rank in dict.fromkeys((s, r) for s, r, _ in runs):
        for word, allowed in (("none", RULES), ("hidden", LINEAR)):
            ranks = {"rank_shares": {"4": 0.5, "8": 0.5}} if rank == "mixed" else {}
            chosen = recipes.from_plain({"privacy": word, "trainable": {"kind": "lora", **ranks}}).trainable.rule
            mean = {
                rule: statistics.fmean(one["perplexity"] for one in runs[skew, rank, rule])
                for rule in allowed if (skew, rank, rule) in runs
            }  # fmt: skip
            if chosen in mean:
                best = min(mean, key=lambda rule: mean[rule])
                more = 100 * (mean[chosen] / mean[best] - 1)
                print(f"{skew}, rank {rank}, privacy {word}: auto = {chosen}, {more:.2f} % above the best ({best})")


def main() -> None:
    """Play all runs, the first seed of each before the second, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", default="4,8,mixed")
    parser.add_argument("--lines", type=Path, help="file that keeps each run, and from which a stopped table goes on")
    parser.add_argument("--rules", default=",".join(dict.fromkeys((*RULES, *MIXED))))
    parser.add_argument("--most", type=int, default=0, help="stop after that many runs, and go on from --lines later")
    a = parser.parse_args()
    kept = a.lines.read_text().splitlines() if a.lines and a.lines.exists() else []
    found = [json.loads(line) for line in kept]
    done = {(one["rule"], one["skew"], one["rank"], one["seed"]) for one in found}
    for seed, skew, rank in product(range(a.seeds), SKEWS, a.ranks.split(",")):
        for rule in MIXED if rank == "mixed" else RULES:
            if (rule, skew, rank, seed) in done or rule not in a.rules.split(","):
                continue
            if a.most and len(found) - len(kept) == a.most:
                return
            found.append(play(rule, skew, rank, seed, a.rounds))
            bench.note(json.dumps(found[-1]))
            if a.lines:
                with a.lines.open("a") as f:
                    f.write(json.dumps(found[-1]) + "\n")
    print(f"{bench.machine()}; {a.rounds} rounds, {a.seeds} seeds")
    table(found)


if __name__ == "__main__":
    main()
