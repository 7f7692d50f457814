"""Summary of a run for ``summary.json``: every figure, computed from the measurements in the run's store alone.

Definitions. ``nll`` is a device's summed negative log-likelihood (nats) over its held-out ``tokens``.

    perplexity of a device    exp(nll / tokens)
    weighted_mean             exp(sum of nll / sum of tokens) over the measured devices
    median                    median of the devices' perplexities
    worst_decile              mean of the ceil(n / 10) highest perplexities of n devices
    change_percent            100 (weighted_mean / base weighted_mean - 1); negative is better
    share_improved            share of the devices measured under both models whose perplexity is lower with the
                              federated one

``against_alone`` and ``longer`` are defined in ``apps.report.alone_or_together``.

A run on real devices with ``eval.on_devices`` knows only the mean loss that came with the sums, of the model before its
last round. Single devices are not known. So ``devices`` is 0, and median and worst decile are null.

``base`` is the model before training. ``federated`` is the model after the last measured round (with
``round.keep = "best"`` after the one that counts). ``local_only`` is each device alone, and ``centralised`` all text in
one place. ``personal`` and ``local_personal`` are defined in ``apps.report.personal``. A model that was not run is
null, as is a figure that is not finite. ``no_pooled_data`` is true if the trainer has no data of all devices together.
The run is then complete without ``centralised``.

Participation: ``accepted`` counts the contributions that changed the model. ``unused`` counts those to a round that was
abandoned for too few. In asynchronous rounds ``staleness`` counts accepted contributions by the rounds that they lag,
and ``at_work`` the devices without an answer at the end of the last round. Else they are empty and 0.

Rounds: ``played`` are ``met`` (the model changed) plus ``abandoned`` ones. The model that counts is the one after
``kept`` rounds, and ``model_sha256`` is its digest. ``waited`` evaluations came after the one with the lowest held-out
loss. ``stopped`` is true if ``round.patience`` ended the run before its last round.

Rungs: if devices choose their codec, one row per rung: its ``accepted`` contributions, the ``devices`` that gave one,
and ``bytes_up``, the mean size of a contribution's frame (null without one). As in participation, only contributions
that changed the model count, so the rows add up to its ``accepted``. The list is empty if the codec is fixed.

Bytes: ``up_per_device_round`` is the mean size of an accepted contribution's frame. ``down_per_device_round`` is the
mean over invitations of the invited device's download: the frame, and the model or its changes since the device last
had it. ``float32_model`` is 4 bytes for each parameter of the model (null if the trainer does not report them), and
``float32_update`` 4 bytes for each trained one. ``up_ratio`` and ``down_ratio`` compare with the whole model (with the
trained part if that is unknown), and ``up_ratio_update`` with the trained part.
``quality_for_bytes`` is the curve over bytes: the federated model's weighted mean at each evaluation, and the bytes
that one device has sent (``up``) and received (``down``) until then, as means over the population. In the curve
``missing_by_code`` counts the devices that were asked for an evaluation and did not measure the model.
``text_total`` is about the size of the training text in UTF-8 (tokens times the bytes of a token), and
``text_per_device`` its mean over devices. ``up_per_device`` is the upload of one device in all rounds. The first two
are null if the tokens of devices are not known, and with differential privacy.

``simulator_metrics``: measured by the simulator (``summary_types.SimulatorMetric``), of the models ``base`` and
``federated`` on held-out data, and of the devices' own ``training``. Each device has the same weight in ``mean``.

``distillations``: what came of each distillation between the rounds (``summary_types.DistillationRow``).

``pruning``: the ``wanted`` and the ``zero`` share of each matrix's weights where the recipe prunes (``[prune]``), else
null. ``zero`` is smaller where the last rounds of the pruning had no sum.

Samples: if the recipe asks for them (``report.samples``), the beginning of some devices' held-out text (``prompt``),
its continuation (``actual``), and the continuations by ``base`` and by the ``federated`` model that counts.

Seconds: ``train`` and ``encode`` are device seconds, summed over contributions. They can exceed wall-clock time if
workers run in parallel. ``aggregate`` is the server's. ``rounds``, ``evaluate`` and ``compare`` are wall-clock seconds,
and ``total`` is their sum. It excludes loading and the report itself, and counts work that a crash repeated once.

Memory: ``process_peak`` is the largest resident memory of a process that trained devices, in bytes, with Python, torch
and the model. Where one process simulates all (``engine = "inproc"``), it has the server in it. Null if the system
does not tell it, and for real devices. `edgewise check` forecasts the memory of one device without Python and torch.

Summed metrics (``summary_types.SummedMetric``): ``per_round`` has their means, weighted as updates are; null in a round
without a sum. With noise they can lie outside of the bounds.

Reading: counts of the data that was read or left out (``learn.text.reading``); null if the trainer reports none.

Facts that are used if the run has them: ``model``, ``parameters``, ``trainable``, ``devices`` (name -> training
tokens), ``bytes_per_token``, ``fingerprint``, ``versions``, ``engine``, ``workers``, ``started_at``, ``plan``
(``trace``, ``trace_down``, ``claims``, ``dim``, ``upload_bytes``, ``population``, ``rungs``). ``recipe_dir``,
``recipe_from_run`` and ``spec`` are for ``edgewise export``. They are not part of the summary, but ``recipe_folder``
has the second where it is around the run. Every other fact is passed on under ``facts``.

``compared`` of a device (``apps.report.compared``): how far its updates were from those of the other devices, where the
server sees each update and compares them. Null elsewhere.

With differential privacy other people than the run's owner may read the summary. So ``per_device`` is empty,
``fingerprint`` is left out (an unsalted hash of all text tells a person who knows all other documents whether one is
there), and ``reading`` is left out (it has exact counts). ``not_covered`` names the figures that no epsilon covers.
``devices.json`` has all three, for its owner only.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgewise.apps.report import alone_or_together as alone
from edgewise.apps.report import (
    participation,
    personal,
    pruned,
    quality,
    redistillation,
    repeat,
    simulator_metrics,
    traffic,
)
from edgewise.apps.report.alone_or_together import LONGER, share_improved
from edgewise.apps.report.quality import MODELS, change_percent
from edgewise.apps.runs.chosen import chosen_model
from edgewise.core import events
from edgewise.core.errors import StoreError
from edgewise.core.training import POOLED
from edgewise.drivers.storage.files import write_durably
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine.evaluation import COHORT
from edgewise.plan.promise import promises_epsilon
from edgewise.plan.recipe.recipe import simulation_digest
from edgewise.privacy.card import OUTSIDE

_PLACES = {"recipe_dir", "recipe_from_run"}  # Folders of a machine.
_SHOWN_APART = {"versions", "plan", "devices", "bytes_per_token", "reading", "spec", "peak_bytes"} | _PLACES


def build(store: RunStore) -> dict[str, Any]:
    """Build the summary of the run in ``store``, finished or not. Raises StoreError(E-RESUME) if there is no run."""
    run = store.run()
    if run is None:
        raise StoreError("E-RESUME", f"there is no run in {store.out}.", "check the path of the run directory.")
    recipe, facts = run["recipe"], dict(run["facts"])
    log = store.events()
    rounds = [e for e in log if isinstance(e, events.RoundFinished)]
    measures = {name: store.measures(name) for name in MODELS}
    models = store.models()
    plan = facts.get("plan") or {}
    trained = facts.get("trainable") or plan.get("dim")  # Of the model. The run's vector may be shorter.
    noised = promises_epsilon(recipe)
    which = chosen_model(store)
    played = which.reached
    if which.played < played:  # A model before the last round counts.
        earlier = ("federated", which.played - 1) if which.played else ("base", -1)
        measures["federated"] = store.measures(*earlier)
    single = {d: m for d, m in measures["federated"].items() if d != COHORT}
    ppl = {name: quality.figures(m) for name, m in measures.items()}
    missing = {e.model: e.missing.get(POOLED, "") for e in log if isinstance(e, events.Evaluated)}
    never = {name: missing.get(name, "") for name in ("local_only", "centralised")}
    wanted = recipe.get("compare", {})
    out: dict[str, Any] = {
        "schema": 3,
        "name": run["name"],
        "complete": which.over
        and (store.evaluated("federated", played - 1) or facts.get("engine") == "devices")
        and all(ppl[name] is not None or not wanted.get(name) or never[name] for name in never)
        and (store.evaluated(LONGER, played - 1) or not wanted.get("longer"))
        and (store.evaluated("personal", played - 1) or "personal" not in recipe or facts.get("engine") == "devices"),
        "run": run["id"],
        "recipe_sha256": simulation_digest(recipe),
        "recipe_folder": repeat.folder(facts),
        "model_sha256": which.digest or None,
        "initial_sha256": models.get(0),
        "seed": recipe.get("seed"),
        "parameters": facts.get("parameters"),
        "trainable": trained,
        "rounds": {
            "planned": recipe["round"]["rounds"],
            "played": played,
            "kept": which.played,
            "stopped": which.stopped,
            "waited": which.waited,
            "met": sum(e.met for e in rounds),
            "abandoned": sum(not e.met for e in rounds),
        },
        "perplexity": ppl,
        "no_pooled_data": bool(never["centralised"]),
        "change_percent": {n: change_percent(ppl[n], ppl["base"]) for n in MODELS if n != "base"},
        "share_improved": {f"over_{name}": share_improved(single, measures[name]) for name in ("base", "local_only")},
        "against_alone": alone.against_alone(measures["federated"], measures["local_only"]),
        "personal": personal.figures(recipe, measures, store.measures(personal.ELSEWHERE)),
        "unseen": personal.unseen(store),
        "longer": alone.longer_alone_figures(wanted.get("longer", 0), measures, store.measures(LONGER)),
        "bytes": traffic.sizes(log, facts, trained, noised),
        "participation": participation.figures(log, recipe["round"]["sampling"] == "buffered"),
        "rungs": participation.rungs(log, plan.get("rungs") or []),
        "seconds": _seconds_of_run(log),
        "memory": {"process_peak": facts.get("peak_bytes")},
        "summed_metrics": _declared_metrics(recipe, plan),
        "per_round": [_round_row(e, [m["name"] for m in recipe.get("metric", ())]) for e in rounds],
        "curve": [
            {
                "played": e.round + 1,
                **(quality.figures({d: (e.nll[d], e.tokens[d]) for d in e.nll}) or {}),
                "missing_by_code": dict(Counter(e.missing.values()).most_common()),
            }
            for e in log
            if isinstance(e, events.Evaluated) and e.model in ("base", "federated")
        ],
        "simulator_metrics": simulator_metrics.rows(log, noised),
        "distillations": redistillation.rows(log),
        "pruning": pruned.figures(recipe, rounds, which.played),
        "quality_for_bytes": [],
        "per_device": [] if noised else participation.devices(log, measures, facts),
        "samples": [] if noised else _sample_rows(log),
        "population": plan.get("population") or len(facts.get("devices") or {}) or None,
        "plan": {
            "trace": plan.get("trace") or [],
            "trace_down": plan.get("trace_down") or [],
            "claims": plan.get("claims") or [],
            "privacy": plan.get("privacy"),
        },
        "reading": None if noised else facts.get("reading"),
        "versions": facts.get("versions") or {},
        "facts": _public_facts(facts, noised),
        "not_covered": OUTSIDE if noised else "",
        "recipe": recipe,
    }
    out["quality_for_bytes"] = traffic.quality_for_bytes(out)
    clean: dict[str, Any] = _with_nulls(out)
    return clean


def write(out: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``out/summary.json`` atomically."""
    path = out / "summary.json"
    write_durably(path, _summary_json(summary))
    return path


def write_devices(store: RunStore, summary: Mapping[str, Any], out: Path) -> None:
    """Write the figures that a summary with differential privacy leaves out to ``out/devices.json``.

    They are ``per_device``, the data's ``fingerprint`` and its ``reading``. Only the owner can read the file. Without
    differential privacy nothing is left out, and no file is written.
    """
    run = store.run()
    if not summary["not_covered"] or run is None:
        return
    measures = {name: store.measures(name) for name in MODELS}
    rows = _with_nulls(participation.devices(store.events(), measures, run["facts"]))
    apart = {key: run["facts"].get(key) for key in ("fingerprint", "reading")}
    owners = {"per_device": rows, **apart, "not_covered": OUTSIDE}
    write_durably(out / "devices.json", _summary_json(owners), owner_only=True)


def _public_facts(facts: Mapping[str, Any], noised: bool) -> dict[str, Any]:
    """Return the facts that are passed on. With differential privacy they hold no digest of data or objects."""
    shown = {k: v for k, v in facts.items() if k not in _SHOWN_APART and not (noised and k == "fingerprint")}
    return {**shown, "objects": {}} if noised and "objects" in shown else shown


def _summary_json(plain: Mapping[str, Any]) -> bytes:
    """Write a summary as JSON."""
    return (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode()


def _seconds_of_run(log: Sequence[events.AnyEvent]) -> dict[str, float]:
    """Add up the time of rounds, measurements and comparisons."""
    finished = [e for e in log if isinstance(e, events.RoundFinished)]
    measured = [e for e in log if isinstance(e, events.Evaluated)]
    rounds = math.fsum(e.seconds for e in finished)
    compare = math.fsum(e.seconds for e in measured if e.model in ("local_only", "centralised", LONGER, "personal"))
    evaluate = math.fsum(e.seconds for e in measured if e.model in ("base", "federated"))
    return {
        "total": rounds + evaluate + compare,
        "rounds": rounds,
        "evaluate": evaluate,
        "compare": compare,
        "train": math.fsum(e.train_s for e in finished),
        "encode": math.fsum(e.encode_s for e in finished),
        "aggregate": math.fsum(e.aggregate_s for e in finished),
    }


def _sample_rows(log: Sequence[events.AnyEvent]) -> list[dict[str, str]]:
    """Make one row per device whose held-out text both models continued."""
    by: dict[str, dict[str, events.Sampled]] = defaultdict(dict)
    for e in log:
        if isinstance(e, events.Sampled):
            by[e.device][e.model] = e
    return [
        {
            "device": d,
            "prompt": e["base"].prompt,
            "actual": e["base"].actual,
            **{m: e[m].text for m in ("base", "federated")},
        }
        for d, e in by.items()
        if {"base", "federated"} <= e.keys()
    ]


def _declared_metrics(recipe: Mapping[str, Any], plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the recipe's metrics with the noise on their means."""
    noise = plan.get("metric_noise", {})
    return [{**metric, "noise_std": noise.get(metric["name"], 0.0)} for metric in recipe.get("metric", ())]


def _round_row(e: events.RoundFinished, metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "round": e.round,
        "met": e.met,
        "accepted": e.accepted,
        "lost": e.lost,
        "late": e.late,
        "loss_first": e.head.get("loss_first"),
        "loss_last": e.head.get("loss_last"),
        "update_l2": e.update_l2,
        "bytes_up": e.bytes_up,
        "bytes_down": e.bytes_down,
        "lag_l2": e.lag_l2,
        "code": e.code,
        "epsilon": e.epsilon,
        "train_s": e.train_s,
        "seconds": e.seconds,
        "summed_metrics": {name: e.head.get(name) for name in metrics},
    }


def _with_nulls(x: Any) -> Any:
    """Convert to plain JSON values. A number that is not finite becomes null."""
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, Mapping):
        return {str(k): _with_nulls(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_with_nulls(v) for v in x]
    return x
