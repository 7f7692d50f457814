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
one place. A model that was not run is null, as is a figure that is not finite. ``no_pooled_data`` is true if the
trainer has no data of all devices together. The run is then complete without ``centralised``.

Participation: ``accepted`` counts the contributions that changed the model. ``unused`` counts those to a round that was
abandoned for too few. Rounds: ``played`` are ``met`` (the model changed) plus ``abandoned`` ones. The model that counts
is the one after ``kept`` rounds, and ``model_sha256`` is its digest. ``waited`` evaluations came after the one with the
lowest held-out loss. ``stopped`` is true if ``round.patience`` ended the run before its last round.

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

Samples: if the recipe asks for them (``report.samples``), the beginning of some devices' held-out text (``prompt``),
its continuation (``actual``), and the continuations by ``base`` and by the ``federated`` model that counts.

Seconds: ``train`` and ``encode`` are device seconds, summed over contributions. They can exceed wall-clock time if
workers run in parallel. ``aggregate`` is the server's. ``rounds``, ``evaluate`` and ``compare`` are wall-clock seconds,
and ``total`` is their sum. It excludes loading and the report itself, and counts work that a crash repeated once.

Summed metrics (``summary_types.SummedMetric``): ``per_round`` has their means, weighted as updates are; null in a round
without a sum. With noise they can lie outside of the bounds.

Reading: counts of the data that was read or left out, by reason (``learn.text.reading``); null if the trainer reports
none.

Facts that are used if the run has them: ``model``, ``parameters``, ``trainable``, ``devices`` (name -> training
tokens), ``bytes_per_token``, ``fingerprint``, ``versions``, ``engine``, ``workers``, ``started_at``, ``plan``
(``trace``, ``trace_down``, ``claims``, ``dim``, ``upload_bytes``, ``population``, ``rungs``), ``recipe_dir``,
``recipe_from_run`` and ``spec`` (``edgewise export`` finds a relative ``model.base`` and the names of tensors by them;
they are not part of the summary, but ``recipe_folder`` has the latter where it is around the run). Every other fact is
passed on under ``facts``.

With differential privacy other people than the run's owner may read the summary. So ``per_device`` is empty,
``fingerprint`` is left out (an unsalted hash of all text tells a person who knows all other documents whether one is
there), and ``reading`` is left out (it has exact counts). ``not_covered`` names the figures that no epsilon covers.
``devices.json`` has all three, for its owner only.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgewise.apps.report import alone_or_together as alone
from edgewise.apps.report import repeat, simulator_metrics, traffic
from edgewise.apps.report.alone_or_together import LONGER, Measures, share_improved
from edgewise.apps.runs.chosen import chosen
from edgewise.core import events
from edgewise.core.errors import StoreError
from edgewise.core.training import POOLED
from edgewise.drivers.storage.files import write_durably
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine.evaluation import COHORT
from edgewise.plan.promise import promises_epsilon
from edgewise.plan.recipe.recipe import simulation_digest
from edgewise.privacy.card import OUTSIDE

MODELS = ("base", "local_only", "federated", "centralised")
_PLACES = {"recipe_dir", "recipe_from_run"}  # Folders of a machine.
_SHOWN_APART = {"versions", "plan", "devices", "bytes_per_token", "reading", "spec"} | _PLACES


def perplexity(nll: float, tokens: float) -> float:
    """Compute exp(nll / tokens); inf if it overflows or nothing was measured."""
    try:
        return math.exp(nll / tokens)
    except (OverflowError, ZeroDivisionError):
        return math.inf


def quality(measures: Measures) -> dict[str, Any] | None:
    """Compute the figures of one model over devices, as the module defines them; None if nothing was measured."""
    if not measures:
        return None
    each = sorted(perplexity(*m) for m in measures.values())
    worst = each[-math.ceil(len(each) / 10) :]
    tokens = sum(t for _, t in measures.values())
    alone = set(measures) == {COHORT}  # Then only the mean over devices is known.
    return {
        "weighted_mean": perplexity(sum(nll for nll, _ in measures.values()), tokens),
        "median": None if alone else statistics.median(each),
        "worst_decile": None if alone else statistics.fmean(worst),
        "best": each[0],
        "worst": each[-1],
        "low": each[(len(each) - 1) // 10],
        "high": each[-1 - (len(each) - 1) // 10],
        "devices": 0 if alone else len(each),
        "tokens": tokens,
    }


def build(store: RunStore) -> dict[str, Any]:
    """Build the summary of the run in ``store``, finished or not. Raises StoreError(E-RESUME) if there is no run."""
    run = store.run()
    if run is None:
        raise StoreError("E-RESUME", f"there is no run in {store.out}.", "check the path of the run directory.")
    recipe, facts = run["recipe"], dict(run["facts"])
    told = store.events()
    rounds = [e for e in told if isinstance(e, events.RoundFinished)]
    measures = {name: store.measures(name) for name in MODELS}
    models = store.models()
    plan = facts.get("plan") or {}
    trained = facts.get("trainable") or plan.get("dim")  # Of the model. The run's vector may be shorter.
    noised = promises_epsilon(recipe)
    which = chosen(store)
    played = which.reached
    if which.played < played:  # A model before the last round counts.
        earlier = ("federated", which.played - 1) if which.played else ("base", -1)
        measures["federated"] = store.measures(*earlier)
    single = {d: m for d, m in measures["federated"].items() if d != COHORT}
    ppl = {name: quality(m) for name, m in measures.items()}
    missing = {e.model: e.missing.get(POOLED, "") for e in told if isinstance(e, events.Evaluated)}
    never = {name: missing.get(name, "") for name in ("local_only", "centralised")}
    wanted = recipe.get("compare", {})
    out: dict[str, Any] = {
        "schema": 3,
        "name": run["name"],
        "complete": which.over
        and (store.evaluated("federated", played - 1) or facts.get("engine") == "devices")
        and all(ppl[name] is not None or not wanted.get(name) or never[name] for name in never)
        and (store.evaluated(LONGER, played - 1) or not wanted.get("longer")),
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
        "change_percent": {n: _change(ppl[n], ppl["base"]) for n in MODELS if n != "base"},
        "share_improved": {f"over_{name}": share_improved(single, measures[name]) for name in ("base", "local_only")},
        "against_alone": alone.against_alone(measures["federated"], measures["local_only"]),
        "longer": alone.longer(wanted.get("longer", 0), measures, store.measures(LONGER)),
        "bytes": traffic.sizes(told, facts, trained, noised),
        "participation": _participation(told),
        "rungs": _rungs(told, plan.get("rungs") or []),
        "seconds": _seconds(told),
        "summed_metrics": _metrics(recipe, plan),
        "per_round": [_round_row(e, [m["name"] for m in recipe.get("metric", ())]) for e in rounds],
        "curve": [
            {
                "played": e.round + 1,
                **(quality({d: (e.nll[d], e.tokens[d]) for d in e.nll}) or {}),
                "missing_by_code": dict(Counter(e.missing.values()).most_common()),
            }
            for e in told
            if isinstance(e, events.Evaluated) and e.model in ("base", "federated")
        ],
        "simulator_metrics": simulator_metrics.rows(told, noised),
        "quality_for_bytes": [],
        "per_device": [] if noised else _devices(told, measures, facts),
        "samples": [] if noised else _samples(told),
        "population": plan.get("population") or len(facts.get("devices") or {}) or None,
        "plan": {
            "trace": plan.get("trace") or [],
            "trace_down": plan.get("trace_down") or [],
            "claims": plan.get("claims") or [],
            "privacy": plan.get("privacy"),
        },
        "reading": None if noised else facts.get("reading"),
        "versions": facts.get("versions") or {},
        "facts": _facts(facts, noised),
        "not_covered": OUTSIDE if noised else "",
        "recipe": recipe,
    }
    out["quality_for_bytes"] = traffic.quality_for_bytes(out)
    clean: dict[str, Any] = _finite(out)
    return clean


def write(out: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``out/summary.json`` atomically."""
    path = out / "summary.json"
    write_durably(path, _json(summary))
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
    rows = _finite(_devices(store.events(), measures, run["facts"]))
    told = {key: run["facts"].get(key) for key in ("fingerprint", "reading")}
    owners = {"per_device": rows, **told, "not_covered": OUTSIDE}
    write_durably(out / "devices.json", _json(owners), owner_only=True)


def _facts(facts: Mapping[str, Any], noised: bool) -> dict[str, Any]:
    """Return the facts that are passed on. With differential privacy they hold no digest of data or objects."""
    shown = {k: v for k, v in facts.items() if k not in _SHOWN_APART and not (noised and k == "fingerprint")}
    return {**shown, "objects": {}} if noised and "objects" in shown else shown


def _json(plain: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode()


def _change(new: Mapping[str, Any] | None, old: Mapping[str, Any] | None) -> float | None:
    if new is None or old is None or not math.isfinite(old["weighted_mean"]):
        return None
    return float(100.0 * (new["weighted_mean"] / old["weighted_mean"] - 1.0))


def _participation(told: Sequence[events.AnyEvent]) -> dict[str, Any]:
    finished = [e for e in told if isinstance(e, events.RoundFinished)]
    answered = {(e.round, e.device) for e in told if isinstance(e, events.Accepted)}
    gone = [e for e in told if isinstance(e, events.Lost) and (e.round, e.device) not in answered]
    met = [e for e in finished if e.met]
    return {
        "invited": traffic.invited(told),
        "accepted": sum(e.accepted for e in met),
        "unused": sum(e.accepted for e in finished if not e.met),
        "lost": sum(e.lost for e in finished),
        "late": sum(e.late for e in finished),
        "lost_by_code": dict(Counter(e.code for e in gone).most_common()),
    }


def _rungs(told: Sequence[events.AnyEvent], names: Sequence[str]) -> list[dict[str, Any]]:
    """Make one row per rung that devices could choose, from the most bytes to the fewest.

    Only contributions to rounds that were met count. The list is empty if the codec is fixed.
    """
    met = {e.round for e in told if isinstance(e, events.RoundFinished) and e.met}
    chosen: dict[int | None, list[events.Accepted]] = defaultdict(list)
    for e in told:
        if isinstance(e, events.Accepted) and e.round in met:
            chosen[e.rung].append(e)
    return [
        {
            "rung": i,
            "name": name,
            "accepted": len(chosen[i]),
            "devices": len({e.device for e in chosen[i]}),
            "bytes_up": statistics.fmean(e.bytes_up for e in chosen[i]) if chosen[i] else None,
        }
        for i, name in enumerate(names)
    ]


def _seconds(told: Sequence[events.AnyEvent]) -> dict[str, float]:
    finished = [e for e in told if isinstance(e, events.RoundFinished)]
    measured = [e for e in told if isinstance(e, events.Evaluated)]
    rounds = math.fsum(e.seconds for e in finished)
    compare = math.fsum(e.seconds for e in measured if e.model in ("local_only", "centralised", LONGER))
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


def _samples(told: Sequence[events.AnyEvent]) -> list[dict[str, str]]:
    """Make one row per device whose held-out text both models continued."""
    by: dict[str, dict[str, events.Sampled]] = defaultdict(dict)
    for e in told:
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


def _metrics(recipe: Mapping[str, Any], plan: Mapping[str, Any]) -> list[dict[str, Any]]:
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


def _devices(
    told: Sequence[events.AnyEvent], measures: Mapping[str, Measures], facts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Make one row per known device: its contributions, and its perplexity under each model."""
    accepted: dict[str, list[events.Accepted]] = defaultdict(list)
    lost: dict[str, list[events.Lost]] = defaultdict(list)
    flagged: dict[str, dict[str, str]] = defaultdict(dict)
    for e in told:
        if isinstance(e, events.Accepted):
            accepted[e.device].append(e)
        elif isinstance(e, events.Lost):
            lost[e.device].append(e)
        elif isinstance(e, events.Flagged):
            flagged[e.device][str(e.round)] = e.code
    text = facts.get("devices") if isinstance(facts.get("devices"), dict) else {}
    names = sorted({*accepted, *lost, *(text or {}), *(d for m in measures.values() for d in m)})
    return [
        {
            "device": d,
            "tokens": (text or {}).get(d),
            "held_out_tokens": next((m[d][1] for m in measures.values() if d in m), None),
            "rounds": [e.round for e in accepted[d]],
            "lost": {str(e.round): e.code for e in lost[d] if e.round not in {a.round for a in accepted[d]}},
            "flagged": flagged[d],
            "bytes_up": sum(e.bytes_up for e in accepted[d]),
            "bytes_down": sum(e.bytes_down for e in accepted[d]),
            "train_s": sum(e.train_s for e in accepted[d]),
            **{name: perplexity(*m[d]) if d in m else None for name, m in measures.items()},
        }
        for d in names
    ]


def _finite(x: Any) -> Any:
    """Convert to plain JSON values. A number that is not finite becomes null."""
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, Mapping):
        return {str(k): _finite(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(v) for v in x]
    return x
