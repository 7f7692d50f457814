"""The industrial deployment: early faults from vibration, over nodes, edge servers of factories, and a hub.

    found = play(Path("bearings.npz"), Path("out"), {"seed": 0})
    found["models"]["federated"]["accuracy"]

Two runs train the model, and two others are baselines:

    OUT/encoder     rounds 1 to 10: nodes train their encoder by a small head of their own
    OUT/layers      rounds 11 to 30: edge servers train the layers on activations that went up once
    OUT/whole       baselines on raw windows: each factory alone, all raw data in one place, the whole model federated
    OUT/end_to_end  baseline: split learning whose activations and gradients cross in each step
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from edgewise.apps.deployments.industrial_page import page
from edgewise.apps.federation.playing import has_run
from edgewise.apps.runs.chosen import chosen_model
from edgewise.apps.runs.run_dirs import opened
from edgewise.core import events
from edgewise.core.errors import DataError, RecipeError, StoreError
from edgewise.core.vector import Spec, from_bytes, unpack
from edgewise.drivers.simulation.edge_links import HUB, NODE, EdgeLinks, link_totals
from edgewise.drivers.storage.files import write_durably
from edgewise.drivers.storage.folder import claim
from edgewise.engine.ports import Cohort
from edgewise.plan.recipe.recipe import Recipe, load, simulation_digest

RUNS = ("encoder", "layers", "whole", "end_to_end")
ENCODER = "encoder.safetensors"
BASELINE_STEPS = {"whole": 20, "end_to_end": 10}  # local steps of a round
DENSE: list[dict[str, Any]] = [{"kind": "weigh"}]
Showing = Callable[[Recipe, str], AbstractContextManager[Sequence[events.Sink]]]
_OWN = ("vibration.train", "vibration.encoder")  # settings that the deployment itself makes


def recipes(folder: Path, data: Path, settings: Mapping[str, Any]) -> dict[str, Recipe]:
    """Make the recipe of each run.

    Args:
        folder: the shipped recipes. settings: by dotted key; they hold for all runs.
    Raises:
        RecipeError: E-COMBO for settings that are of one run only.
    """
    for key in settings:
        section = key.partition(".")[0]
        if section not in ("seed", "vibration", "simulation", "engine") or key in _OWN:
            what = f"{key} differs between the runs of this deployment, and one setting holds for all."
            fix = "write the recipes with `edgewise recipes industrial --to` and industrial-layers, and play them."
            raise RecipeError("E-COMBO", what, fix)
    common = {"data.path": str(data.resolve()), **settings}
    first = load(folder / "industrial.toml", common)
    second = load(folder / "industrial-layers.toml", common)
    rounds = first.round.rounds + second.round.rounds
    found = {"encoder": first, "layers": second}
    for kind in ("whole", "end_to_end"):
        compared = kind == "whole"
        found[kind] = load(
            folder / "industrial.toml",
            {
                **common, "name": f"industrial-{kind.replace('_', '-')}", "vibration.train": kind,
                "round.rounds": rounds, "training.lr": 1e-3, "training.local_steps": BASELINE_STEPS[kind],
                "stage": DENSE, "downlink": [], "eval.every": 10,
                "compare.local_only": compared, "compare.centralised": compared,
            },
        )  # fmt: skip
    return found


def play(
    folder: Path,
    data: Path,
    out: Path,
    settings: Mapping[str, Any],
    showing: Showing = lambda recipe, run: nullcontext(()),
    runs: Sequence[str] = RUNS,
) -> dict[str, Any]:
    """Play the runs in ``out``, and write ``summary.json`` and ``report.html`` there.

    Runs that are over are only read, and one that was stopped is continued.

    Args:
        folder: the shipped recipes. data: file of recordings. showing: makes the sinks of a run's events.
        runs: to leave out the baselines.
    Raises:
        EdgewiseError: as ``simulation.run``. E-RESUME where ``out`` holds a run with other settings.
    """
    from edgewise.apps.simulate import simulation

    wanted = recipes(folder, data, settings)
    if not data.is_file():
        raise DataError("E-DATA-MISSING", f"there is no file {data}.", "check --data.")
    claim(out)
    for name in runs:
        at = out / name
        begun = has_run(at)
        if begun and _is_over(at, wanted[name]):
            continue
        links = None if name == "whole" else at / "links.json"
        with showing(wanted[name], name) as sinks:
            simulation.run(
                wanted[name], out=at, recipe_dir=out, resume=begun, sinks=sinks,
                wrap=None if links is None else _counted(links, name == "layers"),
            )  # fmt: skip
        if name == "encoder":
            _write_encoder(at, out / ENCODER)
    found = figures(out, [name for name in RUNS if (out / name / "summary.json").is_file()])
    write_durably(out / "summary.json", json.dumps(found, indent=1).encode())
    write_durably(out / "report.html", page(found).encode())
    return found


def _counted(path: Path, of_sites: bool) -> Callable[[Cohort], Cohort]:
    """Make what counts the links of a run. ``of_sites``: its devices are the edge servers."""
    return lambda cohort: EdgeLinks(cohort, None if of_sites else lambda node: node.rpartition("-")[0], path)


def _is_over(run_dir: Path, recipe: Recipe) -> bool:
    """Tell whether a run has ended with its comparisons. Raises StoreError(E-RESUME) for a run of another recipe."""
    at = run_dir / "summary.json"
    if not at.is_file():
        return False
    read = json.loads(at.read_text(encoding="utf-8"))
    if read["recipe_sha256"] != simulation_digest(recipe.resolved()):
        what = f"{run_dir} holds a run with other settings or another file."
        raise StoreError("E-RESUME", what, "give the settings that it began with, or another --out.")
    return bool(read["complete"])


def _write_encoder(run_dir: Path, to: Path) -> None:
    """Write the encoder of a run's model, for the next run."""
    from edgewise.drivers.storage.blobs import Blobs

    with opened(run_dir) as store:
        run = store.run()
        assert run is not None
        spec = Spec.of([(name, tuple(shape), dtype) for name, shape, dtype in run["facts"]["spec"]])
        params = from_bytes(Blobs(run_dir / "blobs").get(chosen_model(store).digest), spec.dim)
    tensors = unpack(params, spec)
    front = "encoder."
    parts = {n.removeprefix(front): np.ascontiguousarray(x) for n, x in tensors.items() if n.startswith(front)}
    write_durably(to, save(parts))


def figures(out: Path, runs: Sequence[str]) -> dict[str, Any]:
    """Collect the figures of a deployment from the folders of its runs."""
    read = {name: json.loads((out / name / "summary.json").read_text(encoding="utf-8")) for name in runs}
    first, second = read["encoder"], read["layers"]
    raw = first["facts"]["raw_bytes"]
    models = {
        "base": _measures(first, "base"),
        "head": _measures(first, "federated"),
        "federated": _measures(second, "federated"),
    }
    models["head"]["accuracy"] = models["head"]["head_accuracy"]
    if "whole" in read:
        whole = read["whole"]
        models |= {
            "alone": _measures(whole, "local_only"),
            "whole": _measures(whole, "federated"),
            "central": _measures(whole, "centralised"),
        }
    links = {NODE: _link(out, NODE, raw, _sent_once(second)), HUB: _link(out, HUB, raw, 0)}
    if "end_to_end" in read:
        models["end_to_end"] = _measures(read["end_to_end"], "federated")
        up, down = (_noted(read["end_to_end"], f"crossed_{way}") for way in ("up", "down"))
        links["end_to_end"] = {"up": up, "down": down, "share": (up + down) / raw}
    rounds = first["rounds"]["played"]
    curve = [{"played": 0, **models["base"]}]
    curve += [{"played": rounds + m["played"], **m["measures"]} for m in _by_round(second)]
    return {
        "deployment": "industrial",
        "seed": first["seed"],
        "faults": first["facts"]["faults"],
        "factories": sorted(set(first["facts"]["factories"].values())),
        "nodes": len(first["facts"]["factories"]),
        "rounds": rounds + second["rounds"]["played"],
        "encoder_rounds": rounds,
        "raw_bytes": raw,
        "models": models,
        "links": links,
        "curve": curve,
        "complete": all(one["complete"] for one in read.values()),
    }


def _measures(summary: Mapping[str, Any], model: str) -> dict[str, float]:
    """Return the latest mean over devices of each measure of a model."""
    rows = [m for m in summary["simulator_metrics"] if m["model"] == model]
    last = max((m["round"] for m in rows), default=-1)
    return {m["name"]: m["mean"] for m in rows if m["round"] == last}


def _by_round(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the measures of the federated model after each evaluation."""
    rows = [m for m in summary["simulator_metrics"] if m["model"] == "federated"]
    return [
        {"played": r + 1, "measures": {m["name"]: m["mean"] for m in rows if m["round"] == r}}
        for r in sorted({m["round"] for m in rows})
    ]


def _noted(summary: Mapping[str, Any], name: str) -> int:
    """Add up the bytes that devices noted in all rounds."""
    rows = [m for m in summary["simulator_metrics"] if m["model"] == "training" and m["name"] == name]
    return round(sum(sum(m["devices"].values()) for m in rows))


def _sent_once(summary: Mapping[str, Any]) -> int:
    """Return the bytes of the messages with activations, which each edge server keeps. Each round notes them anew."""
    rows = [m for m in summary["simulator_metrics"] if m["name"] == "activation_bytes"]
    kept: dict[str, float] = {}
    for m in rows:
        kept |= m["devices"]
    return round(sum(kept.values()))


def _link(out: Path, link: str, raw: int, activations: int) -> dict[str, Any]:
    """Collect the bytes of one link over both runs, and their share of the raw data."""
    counts = [link_totals(out / name / "links.json")[link] for name in ("encoder", "layers")]
    found = {kind: sum(one[kind] for one in counts) for kind in counts[0]}
    moved = activations + found["up"] + found["down"]
    return {
        **found,
        "activations": activations,
        "total": moved,
        "share": moved / raw,
        "share_with_first_model": (moved + found["first_model"]) / raw,
    }
