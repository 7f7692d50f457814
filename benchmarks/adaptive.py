"""Adaptive codec against each fixed rung on the same links: who is late, how long it takes, how good the model gets.

    python benchmarks/adaptive.py [--rounds 20] [--seed 7] [--bundled] [--hidden] [--rungs NAME ...] [--set KEY=NUMBER]

The recipe is ``tiny-link`` (17 devices, uplinks of 0.1 to 20 Mbit/s), constant learning rate. Seeds, links, speeds
and data are the same in all runs; only the codec differs: ``adaptive``, or one rung for everybody, inside the same
error feedback. Virtual time is the simulated devices'. The model is the one of byte_model.py, and deadline and training
time are shorter than the recipe's by as much as it is smaller (x 0.22); with ``--bundled`` it is the recipe's own,
which takes minutes per run.

    late       invitations whose contribution did not count, of all: it missed a deadline, or its sum did not come
    virtual s  when the last round closed
    ppl        held-out perplexity (weighted mean) after the last round
    ppl at T   the same at the moment T when the first of the runs ended: of the last model that was there by then

With ``--hidden`` updates are masked, and devices are sorted into groups that share a rung.

Bars: adaptive has no more late contributions than the smallest rung, and a lower perplexity at T than the best rung.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import bench

from edgewise.apps.report.quality import perplexity
from edgewise.apps.simulate import simulation
from edgewise.core import events, frame
from edgewise.core.errors import RoundError
from edgewise.plan.recipe import recipe as recipes

RUNGS = ("float32", "8 bit", "4 bit", "eden 1 bit", "random 30 %, 1 bit", "random 10 %, 1 bit", "top 0.02 %, 2 bit")
MASKED = ("masked 8 bit", "masked 4 bit", "masked 25 %, 8 bit", "masked 5 %, 8 bit", "masked 0.5 %, 8 bit")

# byte_model has 188,928 parameters, the recipe's model 852,992 trained ones: the same shares of the deadline.
SMALL = {
    "simulation.engine": "inproc",
    "round.deadline_s": 10.0,
    "simulation.step_s": 0.022,
    "trainable.kind": "full",
    "trainable.layers": [],
    "training.lr": 0.1,
}


HIDDEN: dict[str, Any] = {
    "round.minimum": 0.5,
    "privacy": "hidden",
    "merge": {"kind": "secure_sum"},
    "stage": [{"kind": "weigh"}, {"kind": "clip", "l2": 2.0}],
}


class Timed:
    """A cohort that notes how long each round took on its clock."""

    def __init__(self, inner: Any) -> None:
        self._inner, self._invited = inner, False
        self.rounds_s: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, to: str, raw: bytes) -> None:
        self._invited |= isinstance(frame.load(raw), frame.Invite)
        self._inner.send(to, raw)

    def close_round(self, keep: Collection[str] = ()) -> None:
        if self._invited and not keep:  # with devices to keep, masks go on with the round
            self.rounds_s.append(self._inner.now_s())
            self._invited = False
        self._inner.close_round(keep)


def play(ladder: list[str], settings: dict[str, Any], bundled: bool) -> dict[str, Any]:
    """One run: late and invited, rungs, bytes, virtual seconds and perplexity after each round."""
    told: list[events.AnyEvent] = []
    timed: list[Timed] = []

    def wrap(cohort: Any) -> Any:
        timed.append(Timed(cohort))
        return timed[0]

    tiny = Path(str(resources.files("edgewise"))) / "assets" / "recipes" / "tiny-link.toml"
    recipe = recipes.load(tiny, {**settings, **({"adaptive.ladder": ladder} if ladder else {})})
    # Masks need two thirds of a group, so a rung may be too large for any sum: such a run ends early.
    with tempfile.TemporaryDirectory() as scratch, suppress(RoundError):
        simulation.run(
            recipe,
            out=Path(scratch) / "run",
            recipe_dir=Path(),
            extensions=[] if bundled else ["byte_model"],
            sinks=[told.append],
            wrap=wrap,
            report=False,
        )
    rounds = [e for e in told if isinstance(e, events.RoundFinished)]
    ppl = {
        e.round: perplexity(sum(e.nll.values()), sum(e.tokens.values()))
        for e in told
        if isinstance(e, events.Evaluated)
    }
    ends = [sum(timed[0].rounds_s[: i + 1]) for i in range(len(rounds))]
    return {
        "late": sum(e.invited for e in told if isinstance(e, events.RoundStarted)) - sum(e.accepted for e in rounds),
        "invited": sum(e.invited for e in told if isinstance(e, events.RoundStarted)),
        "rungs": dict(sorted(Counter(e.rung for e in told if isinstance(e, events.Accepted)).items())),
        "mb_up": sum(e.bytes_up for e in rounds) / 1e6,
        "virtual_s": ends[-1],
        "start_ppl": ppl[-1],
        "curve": [(end, ppl[e.round]) for end, e in zip(ends, rounds, strict=True) if e.round in ppl],
        "ppl": ppl[max(ppl)],
    }


def at(run: dict[str, Any], time_s: float) -> float:
    """Perplexity of the last model that was there at ``time_s``."""
    return next((ppl for end, ppl in reversed(run["curve"]) if end <= time_s + 1e-9), run["start_ppl"])


def main() -> None:
    """Print the table and the two bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--bundled", action="store_true", help="the recipe's own model")
    parser.add_argument("--hidden", action="store_true", help="behind masks, in groups of a rung")
    parser.add_argument("--rungs", nargs="*", default=[])
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=NUMBER", help="change the recipe")
    a = parser.parse_args()
    settings: dict[str, Any] = {
        "round.rounds": a.rounds,
        "round.minimum": 0.1,
        "seed": a.seed,
        "training.schedule": "constant",
        "eval.every": 1,
        "eval.max_tokens": 2048,
        **({} if a.bundled else SMALL),
        **(HIDDEN if a.hidden else {}),
        **{k: float(v) for k, v in (one.split("=") for one in a.set)},
    }
    runs = {}
    for name in ("adaptive", *(a.rungs or (MASKED if a.hidden else RUNGS))):
        bench.note(name)
        runs[name] = play([] if name == "adaptive" else [name], settings, a.bundled)
    ended = min(r["virtual_s"] for r in runs.values())
    print(f"{bench.machine()}; {a.rounds} rounds, seed {a.seed}; T = {ended:.0f} s")
    print(f"{'codec':20} {'late':>10} {'MB up':>8} {'virtual s':>10} {'ppl':>8} {'ppl at T':>9}")
    for name, r in runs.items():
        late = f"{r['late']}/{r['invited']}"
        print(
            f"{name:20} {late:>10} {r['mb_up']:8.2f} {r['virtual_s']:10.0f} {r['ppl']:8.2f} {at(r, ended):9.2f}"
            f"   {r['rungs'] if name == 'adaptive' else ''}"
        )
    fixed = [r for name, r in runs.items() if name != "adaptive"]
    least, best = fixed[-1]["late"], min(at(r, ended) for r in fixed)
    mine = at(runs["adaptive"], ended)
    print(f"late, adaptive against the smallest rung: {runs['adaptive']['late']} against {least}")
    print(
        f"perplexity at T, adaptive against the best rung: {mine:.2f} against {best:.2f}: {bench.verdict(mine, best)}"
    )
    bench.say(rounds=a.rounds, seed=a.seed, at_s=ended, runs=runs)


if __name__ == "__main__":
    main()
