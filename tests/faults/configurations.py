"""Small runs, one for each place where a run keeps something.

That is: what the device remembers, what the server does, the ledger, sessions; and with "report" its figures and pages,
which the others leave out. With "text" a tiny model learns texts (``texts``), otherwise it is the toy federation. Parts
that keep nothing of their own, as windows of time, are not walked apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SMALL: Mapping[str, Any] = {
    "data.devices": 5, "round.rounds": 3, "compare.local_only": False, "compare.centralised": False,
    "simulation.engine": "inproc",
}  # fmt: skip
_NOISED: Mapping[str, Any] = {"metrics": "none", "stage": [], "dp.epsilon": 20.0, "dp.delta": 1e-5, "dp.clip_l2": 4.0}
_MASKED: Mapping[str, Any] = {"privacy": "hidden", "round.minimum": 0.6}
_GRID = [{"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 4, "grid": "shared"}, {"kind": "wrap"}]
_BUFFERED: Mapping[str, Any] = {
    "data.devices": 6, "round.rounds": 4, "round.sampling": "buffered", "round.cohort": 2, "buffer.concurrency": 4,
    "simulation.speed_spread": 1.5, "simulation.dropout": 0.1,
}  # fmt: skip

_TEXT: Mapping[str, Any] = {"text": True, "round.rounds": 2}
_DISTILL: Mapping[str, Any] = {
    "distill.every": 1, "distill.teacher": "teacher", "distill.public": "public.txt", "distill.steps": 2,
    "distill.adapt": 1, "distill.batch": 2, "distill.held_tokens": 128, "distill.diversity": 0.0,
}  # fmt: skip

CONFIGURATIONS: dict[str, Mapping[str, Any]] = {
    "plain": {},
    "compared": {"compare.local_only": True, "compare.centralised": True},
    "turns": {"stage": [{"kind": "segments", "cycle": 2}, {"kind": "weigh"}, {"kind": "feedback"},
                        {"kind": "top_k", "fraction": 0.2}]},
    "dropouts": {"round.sampling": "fixed", "round.cohort": 4, "simulation.dropout": 0.2, "round.minimum": 0.5},
    "ef21": {"stage": [{"kind": "feedback", "form": "ef21"}, {"kind": "top_k", "fraction": 0.2}]},
    "shared top-k": {"stage": [{"kind": "shared_top_k", "fraction": 0.4}]},
    "sketch": {"stage": [{"kind": "sketch", "ratio": 2.0, "rows": 3, "keep": 0.2}], "strategy": {"kind": "fedavg"}},
    "downlink": {"downlink": [{"kind": "top_k", "fraction": 0.1}, {"kind": "quantize", "bits": 4}],
                 "round.sampling": "fixed", "round.cohort": 4, "simulation.dropout": 0.1},
    "adaptive": {"codec": "adaptive", "stage": [], "adaptive.deadline_s": 2.0, "simulation.step_s": 0.1},
    "hidden": {**_MASKED, "merge": {"kind": "secure_sum"}, "stage": [{"kind": "feedback"}, *_GRID]},
    "hidden ladder": {**_MASKED, "codec": "adaptive", "merge": {"kind": "secure_sum"}, "adaptive.deadline_s": 2.0,
                      "adaptive.groups": 2, "simulation.step_s": 0.4,
                      "stage": [{"kind": "weigh", "cap": 160}, {"kind": "clip", "l2": 8.0}]},
    "two servers": {**_MASKED, "merge": {"kind": "shared_sum"}, "stage": _GRID},
    "grouped": {**_MASKED, "data.devices": 18, "round.minimum": 0.8, "trust.malicious_fraction": 0.0,
                "merge": {"kind": "grouped", "groups": 3, "byzantine": 1}, "stage": _GRID},
    "distributed_dp": {**_NOISED, "privacy": "distributed_dp", "merge": {"kind": "secure_sum"}, "round.minimum": 0.75},
    "distributed, two servers": {**_NOISED, "privacy": "distributed_dp", "merge": {"kind": "shared_sum"},
                                 "round.minimum": 0.75},
    "correlated": {**_NOISED, "privacy": "central_dp", "round.sampling": "cyclic", "round.cohort": 2,
                   "dp.noise": "correlated", "round.rounds": 6, "data.devices": 6},
    "poisson": {**_NOISED, "privacy": "central_dp", "round.sampling": "poisson", "round.cohort": 3},
    "local_dp": {**_NOISED, "privacy": "local_dp"},
    "buffered": {**_BUFFERED, "stage": [{"kind": "feedback"}, {"kind": "top_k", "fraction": 0.2}]},
    "buffered, central_dp": {**_NOISED, **_BUFFERED, "privacy": "central_dp"},
    "best": {"round.rounds": 6, "round.patience": 1, "round.keep": "best", "eval.every": 1, "strategy.lr": 0.5},
    "measured by devices": {"eval.on_devices": True, "strategy.kind": "fedavg", "strategy.lr": 1.0, "stage": []},
    "pruned": {"environ": {"TOY_ROWS": "5"}, "prune.to": 0.5, "stage": [{"kind": "weigh", "cap": 160}]},
    "robust": {"merge": {"kind": "robust_mean", "byzantine": 1}, "stage": []},
    "centred": {"merge": {"kind": "centred_clip", "byzantine": 1}, "stage": []},
    "personal": {"personal.method": "fine_tune", "personal.steps": 2, "personal.lr": 0.1, "compare.local_only": True},
    "ditto": {"personal.method": "ditto", "personal.steps": 2, "personal.lr": 0.1},
    "own part": {"personal.method": "fedrep", "personal.parts": ["b"], "personal.steps": 2, "personal.lr": 0.1},
    "moon": {**_TEXT, "strategy.kind": "moon", "strategy.mu": 5.0},
    "distilled": {**_TEXT, **_DISTILL},
    "split": {**_TEXT, "split.cut": 1},
    "split, in turn": {**_TEXT, "split.cut": 1, "split.server_parts": "in_turn"},
    "split, local": {**_TEXT, "split.cut": 1, "split.loss": "local", "split.shape": "head", "model.base": "teacher",
                     "split.held_by": "gateway"},
    "reported": {"report": True, "data.devices": 2, "round.rounds": 1},
}  # fmt: skip
