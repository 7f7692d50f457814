"""A plan in words and numbers: what each part does to an update, what it costs, how long a run would take. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isfinite
from typing import Any

from edgewise.codecs import pack
from edgewise.core.space import Kind, Space, Total
from edgewise.core.stage import Stage
from edgewise.plan.catalogue import BUILT_IN, Catalogue
from edgewise.plan.compile import Plan, build_stages

Row = dict[str, Any]  # plain JSON; an unknown (infinite) bound is None


def trace(plan: Plan, catalogue: Catalogue = BUILT_IN) -> list[Row]:
    """One row per part of the pipeline, in the order in which an update passes them.

    Every row has ``role`` (``start``, ``stage``, ``inner``, ``merge``, ``post``), ``name`` and ``does`` (one line of
    words). start, stage and inner: ``dim``, ``kind``, ``l2``, ``linf``, ``bits``, ``sparse``, ``summable``,
    ``unbiased``, ``memory``, ``bytes`` (packed size of one contribution at that point). merge and post:
    ``sensitivity``, ``noise_std``, ``visible``. ``inner`` rows are the stages inside the ``feedback`` row that stands
    before them; they are left out where one of them is not in ``catalogue``.
    """
    pipe = plan.pipeline
    rows = [_space_row("start", "trained update", _start(pipe.spaces[0]), pipe.spaces[0])]
    for i, stage in enumerate(pipe.stages):
        before, after = pipe.spaces[i], pipe.spaces[i + 1]
        inside = _inner(plan, i, before, catalogue)
        does = "what the stages inside leave out is remembered on the device and added next time"
        rows.append(_space_row("stage", stage.name, does if inside else _effect(before, after), after))
        rows += inside
    rows.append(_total_row("merge", pipe.merge.name, _merged(pipe.merge.blind, pipe.totals[0]), pipe.totals[0]))
    for post, before_total, total in zip(pipe.posts, pipe.totals, pipe.totals[1:], strict=False):
        rows.append(_total_row("post", post.name, _posted(before_total, total), total))
    return rows


def cost(plan: Plan, parameters: float = 0.0) -> Row:
    """Bytes per device and round, against float32: ``up`` (expected payload), ``down`` (the model vector),
    ``float32_update`` (the trained part), ``float32_model`` (all ``parameters``; None where unknown), and the ratios
    ``up_ratio``, ``down_ratio`` = how many times smaller than the float32 model (or update, where that is unknown)."""
    update = 4.0 * plan.spec.dim
    model = 4.0 * parameters if parameters else None
    reference = model or update
    return {
        "up": plan.upload_bytes,
        "down": update,
        "float32_update": update,
        "float32_model": model,
        "up_ratio": reference / max(1.0, plan.upload_bytes),
        "down_ratio": reference / max(1.0, update),
    }


def forecast(plan: Plan, step_s: float, workers: int) -> Row:
    """Seconds of computing that a simulation needs, from the measured time of one optimizer step.

    federated = step_s x local_steps x contributions x rounds / workers; local_only
    the same for the measured devices, at the rounds that a device takes part in;
    centralised is one chain of steps, which has a worker to itself and runs beside local_only. Evaluation, encoding
    and start-up are not in it. All None where ``step_s`` is not known (0).
    """
    recipe, sampling = plan.recipe, plan.sampling
    expected = sampling.expected
    out: Row = {"contributions_per_round": expected, "federated_s": None, "compare_s": None, "total_s": None}
    if step_s <= 0.0:
        return out
    device_round_s = step_s * recipe.training.local_steps
    federated = device_round_s * expected * plan.rounds / min(workers, expected)
    measured = min(recipe.eval.devices or sampling.population, sampling.population)
    alone = device_round_s * measured * len(plan.rounds_alone) if recipe.compare.local_only else 0.0
    chain = device_round_s * expected * plan.rounds if recipe.compare.centralised else 0.0
    if not (alone and chain):
        compare = alone / workers + chain
    else:
        compare = alone + chain if workers == 1 else max(chain, alone / (workers - 1))
    return {**out, "federated_s": federated, "compare_s": compare, "total_s": federated + compare}


def _inner(plan: Plan, i: int, before: Space, catalogue: Catalogue) -> list[Row]:
    """The stages inside feedback, folded as feedback folds them: from a space without bounds."""
    tables = plan.recipe.stage
    if i >= len(tables) or tables[i].get("kind") != "feedback":
        return []
    rest = tables[i + 1 :]
    if any(table.get("kind") not in catalogue.stages for table in rest):
        return []
    rows, space = [], before.but(l2=inf, linf=inf)
    stages: list[Stage] = build_stages(rest, plan.spec, catalogue.stages)
    for stage in stages:
        after = stage.infer(space)
        rows.append(_space_row("inner", stage.name, _effect(space, after), after))
        space = after
    return rows


def _finite(x: float) -> float | None:
    return x if isfinite(x) else None


def _space_row(role: str, name: str, does: str, space: Space) -> Row:
    return {
        "role": role,
        "name": name,
        "does": does,
        "dim": space.dim,
        "kind": space.kind.value,
        "l2": _finite(space.l2),
        "linf": _finite(space.linf),
        "bits": space.bits,
        "sparse": space.sparse,
        "summable": space.summable,
        "unbiased": space.unbiased,
        "memory": space.memory,
        "bytes": pack.size_bytes(space),
    }


def _total_row(role: str, name: str, does: str, total: Total) -> Row:
    return {
        "role": role,
        "name": name,
        "does": does,
        "sensitivity": _finite(total.sensitivity),
        "noise_std": total.noise_std,
        "visible": total.visible,
    }


def _start(space: Space) -> str:
    more = f", and {_names(space.head)} as exact scalars" if space.head else ""
    return f"float32, one per trained parameter{more}"


def _effect(before: Space, after: Space) -> str:
    """What changed between two spaces, in words: true of any stage, also of one from an extension."""
    said: list[str] = []
    if new := [name for name in after.head if name not in before.head]:
        said.append(f"multiplies by the device's {_names(new)}, which travels as an exact scalar")
    if after.rotated != before.rotated:
        said.append(f"turns runs of {after.rotated} coordinates at random, the same on all devices of a round")
    if after.rank != before.rank:
        share = f"{100 * after.dim / max(1, before.dim):.3g} %"
        said.append(f"sends matrices as factors of rank {after.rank}, {share} of the numbers")
    elif after.dim != before.dim:
        share = f"{100 * after.dim / max(1, before.dim):.3g} %"
        how = "chosen by each device"
        if not after.sparse:
            how = "drawn anew each round, the same on all devices" if after.moving else "fixed for the run"
        said.append(f"keeps {share} of the coordinates, {how}")
    if after.kind is Kind.INTEGER and before.kind is Kind.REAL:
        many = "one scale" if after.scales == 1 else f"{after.scales} scales"
        grid = f"{many} per {after.block} coordinates" if after.block else "one public grid"
        said.append(f"rounds to {after.bits:g}-bit integers, {grid}")
    if after.kind is Kind.RING and before.kind is not Kind.RING:
        said.append(f"residues modulo 2^{(after.modulus - 1).bit_length()}")
    if after.residual and not before.residual:
        said.append("remembers on the device what was not sent, and adds it next time")
    elif after.memory and not before.memory:
        said.append("remembers on the device where to start next time")
    if after.l2 < before.l2:
        said.append(f"L2 norm at most {after.l2:.4g}")
    elif after.linf < before.linf and after.dim == before.dim:
        said.append(f"every coordinate at most {after.linf:.4g}")
    return "; ".join(said) or "changes neither size nor bounds"


def _merged(blind: bool, total: Total) -> str:
    who = "adds encodings, decodes the sum once" if blind else "decodes each contribution, then merges"
    return f"{who}; {_moves(total)}"


def _posted(before: Total, after: Total) -> str:
    if after.noise_std > before.noise_std:
        return f"adds Gaussian noise of std {after.noise_std:.4g} per coordinate; {_moves(after)}"
    return _moves(after)


def _moves(total: Total) -> str:
    if isfinite(total.sensitivity):
        return f"one device moves the total by at most {total.sensitivity:.4g} (L2)"
    return "one device can move the total without limit"


def _names(names: Iterable[str]) -> str:
    return " and ".join(names)
