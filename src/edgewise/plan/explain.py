"""A plan in words and numbers: what each part does to an update, what it costs, how long a run would take. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, inf, isfinite
from typing import Any

from edgewise.codecs.wire import pack
from edgewise.core.space import Space, Total
from edgewise.core.stage import BELOW, Stage
from edgewise.plan.catalogue import BUILT_IN, Catalogue
from edgewise.plan.codec_choice.choice import offers
from edgewise.plan.frames import traffic
from edgewise.plan.plan import Plan

Row = dict[str, Any]  # plain JSON; an unknown (infinite) bound is None


def trace(plan: Plan) -> list[Row]:
    """One row per part of the pipeline of round 0, in the order in which an update passes them. Where stages take turns
    over rounds, the row of the stage that keeps another group in each phase says what the phases keep.

    Every row has ``role`` (``start``, ``stage``, ``inner``, ``merge``, ``post``, ``strategy``), ``name`` and ``does``
    (what the part says of itself). start, stage and inner: ``dim``, ``kind``, ``l2``, ``linf``, ``bits``, ``sparse``,
    ``summable``, ``unbiased``, ``memory``, ``bytes`` (packed size of one contribution at that point). merge and post:
    ``sensitivity``, ``noise_std``, ``visible``. ``inner`` rows are the stages inside the ``feedback`` row that stands
    before them.
    """
    pipe = plan.at(0)
    each = "direction" if plan.strategy.directions else "trained parameter"
    rows = [_space_row("start", "trained update", _start(plan, each), pipe.spaces[0])]
    for i, stage in enumerate(pipe.stages):
        before, after = pipe.spaces[i], pipe.spaces[i + 1]
        does = stage.says(before, after) + (_turns(plan, i + 1) if after.period > before.period else "")
        if plan.ways and i == len(plan.recipe.stage):  # the ladder's first
            does = f"{_shared_choice(plan)}; the largest: {does}"
        rows.append(_space_row("stage", stage.name, does, after))
        rows += _inner(stage, before)
    total = pipe.totals[0]
    bound = "" if pipe.merge.combine else f"; {_moves(total)}"
    rows.append(_total_row("merge", pipe.merge.name, pipe.merge.says(total) + bound, total))
    for post, earlier, total in zip(pipe.posts, pipe.totals, pipe.totals[1:], strict=False):
        rows.append(_total_row("post", post.name, f"{post.says(earlier, total)}; {_moves(total)}", total))
    rows.append({"role": "strategy", "name": plan.strategy.name, "does": plan.strategy.says})
    return rows


def _inner(stage: Stage, before: Space) -> list[Row]:
    rows, space = [], stage.opens(before)
    for inside in stage.inner:
        after = inside.infer(space)
        rows.append(_space_row("inner", inside.name, inside.says(space, after), after))
        space = after
    return rows


def trace_down(plan: Plan) -> list[Row]:
    """The same for the way down: ``start`` and ``stage`` rows; empty where devices download the model itself."""
    pipe = plan.downlink
    if pipe is None:
        return []
    start = "float32: the model less what devices hold of it"
    rows = [_space_row("start", "change of the model", start, pipe.spaces[0])]
    for stage, before, after in zip(pipe.stages, pipe.spaces, pipe.spaces[1:], strict=False):
        rows.append(_space_row("stage", stage.name, stage.says(before, after), after))
    return rows


def cost(plan: Plan, parameters: float = 0.0, trained: float = 0.0, names: Sequence[str] = ()) -> Row:
    """Bytes per device and round, against float32: ``up`` (expected frames of a contribution, masks included
    (``plan.frames``), mean over phases; ``up_largest``: of the largest; ``up_payload``: the packed update alone),
    ``down`` (expected download of a device that takes part in every round: one delta, or the run's vector where there
    is no downlink; the positions of the last release where stages ask for them; and ``down_frames``: the invitation and
    the messages of secure aggregation), ``snapshot`` (the run's vector, what a device downloads the first time and
    after a longer absence), ``down_missed`` (rounds that a device may miss and still download deltas; None without a
    downlink), ``float32_update`` (the ``trained`` part; the vector where 0), ``float32_model`` (all ``parameters``;
    None where unknown), and the ratios ``up_ratio``, ``down_ratio`` = how many times smaller than the float32 model (or
    update, where that is unknown). ``names``: of the devices; frames are longer where names are."""
    down, missed = float(plan.snapshot_bytes), None
    if plan.delta_bytes is not None:
        down, missed = plan.delta_bytes, ceil(plan.snapshot_bytes / plan.delta_bytes) - 2
    moved = traffic(plan, names)
    frames = sum(t.down for t in moved) / len(moved)
    down += _support_bytes(plan) + frames
    update = 4.0 * trained or float(plan.snapshot_bytes)
    model = 4.0 * parameters if parameters else None
    reference = model or update
    payloads = [pack.size_bytes(pipe.encoded) for pipe in plan.pipelines]
    up = sum(t.up for t in moved) / len(moved)
    return {
        "up": up,
        "up_largest": max(t.up for t in moved),
        "up_payload": sum(payloads) / len(payloads),
        "down": down,
        "down_frames": frames,
        "snapshot": float(plan.snapshot_bytes),
        "down_missed": missed,
        "float32_update": update,
        "float32_model": model,
        "up_ratio": reference / max(1.0, up),
        "down_ratio": reference / max(1.0, down),
    }


def _support_bytes(plan: Plan) -> float:
    """Expected bytes of the positions of the last release that devices are told each round, mean over phases; 0 where
    none are."""
    wanted = [pipe.encoded.announced for pipe in plan.pipelines]
    return sum(pack.announced_bytes(n, plan.layout.sent.dim) for n in wanted if n) / len(wanted)


def down_total(plan: Plan, frames: float) -> float:
    """Expected bytes that all invited devices download in all rounds. ``frames``: of them in a round, see ``cost``.

    A device is invited with probability p each round, so in round t it took part g rounds ago with probability
    p (1 - p)^(g - 1), g <= t, and never with (1 - p)^t; it downloads min(g deltas, snapshot), or the snapshot. Devices
    that were invited and gave nothing count as if they had taken part.
    """
    sampling, snapshot = plan.sampling, float(plan.snapshot_bytes)
    delta = snapshot if plan.delta_bytes is None else plan.delta_bytes
    p, support = min(1.0, sampling.invite / sampling.population), _support_bytes(plan) + frames
    total, known = 0.0, 0.0  # known: expected download of those who took part before
    for t in range(plan.rounds):
        if t:
            known += p * (1.0 - p) ** (t - 1) * min(t * delta, snapshot)
        total += sampling.invite * (known + (1.0 - p) ** t * snapshot + support)
    return total


def forecast(plan: Plan, step_s: float, workers: int, local_steps: float = 0.0, encode_s: float = 0.0) -> Row:
    """Seconds of computing that a simulation needs, from the measured time of one optimizer step and of one encoding.

    federated = (step_s x local_steps + encode_s) x contributions x rounds / workers; local_only
    the training of the measured devices, at the rounds that a device takes part in;
    centralised is one chain of steps, which has a worker to itself and runs beside local_only; longer comes after them.
    Evaluation, masks, the server's work and start-up are not in it; a step that trains only some segments counts as a
    whole one. All None where ``step_s``
    is not known (0). ``local_steps``: the mean over devices where the recipe counts passes; 0 = the recipe's own steps.
    """
    recipe, sampling = plan.recipe, plan.sampling
    expected = sampling.expected
    out: Row = {"contributions_per_round": expected, "federated_s": None, "compare_s": None, "total_s": None}
    if step_s <= 0.0:
        return out
    device_round_s = step_s * (local_steps or plan.rule(0).steps)
    federated = (device_round_s + encode_s) * expected * plan.rounds / min(workers, expected)
    measured = min(recipe.eval.devices or sampling.population, sampling.population)
    alone = device_round_s * measured * len(plan.rounds_alone(plan.rounds)) if recipe.compare.local_only else 0.0
    chain = device_round_s * expected * plan.rounds if recipe.compare.centralised else 0.0
    longer = device_round_s * longer_rounds(plan, plan.rounds) * min(recipe.compare.longer_devices, measured)
    if not (alone and chain):
        compare = alone / workers + chain
    else:
        compare = alone + chain if workers == 1 else max(chain, alone / (workers - 1))
    compare += longer / min(workers, recipe.compare.longer_devices, measured)
    return {**out, "federated_s": federated, "compare_s": compare, "total_s": federated + compare}


def longer_rounds(plan: Plan, rounds: int) -> int:
    """Rounds of training of each device that trains alone for longer, where the federation played ``rounds``."""
    return len(plan.rounds_alone(rounds)) * plan.recipe.compare.longer


LINKS_MBIT = (0.1, 0.3, 1.0, 3.0, 10.0, 20.0)


def ladder(plan: Plan, catalogue: Catalogue = BUILT_IN, local_steps: float = 0.0) -> Row | None:
    """What devices may choose from and what a device on a given link would; None where the codec is fixed.

    ``rungs``: ``name``, ``bytes``, ``number`` (None for one that is left out: above ``adaptive.max_upload_mb``).
    ``links``: for each uplink speed ``mbit``: ``down_s``, ``train_s``, the ``rung`` (name) and ``bytes`` that a device
    picks on a steady link, ``total_s`` with the upload, and ``late`` where that is after ``deadline_s``; behind masks
    where training ends after the round's deadline or the upload by itself takes longer than ``deadline_s``. Training
    time is that of the simulation's median device and of ``local_steps`` (as in ``forecast``), the downlink
    ``simulation.link_down`` times the uplink.
    """
    if not plan.rungs:
        return None
    recipe, s = plan.recipe, plan.recipe.simulation
    pipe = plan.at(0)
    before = pipe.spaces[len(recipe.stage)] if plan.ways else pipe.spaces[-2].but(l2=inf, linf=inf)
    numbers = {name: i for i, name in enumerate(plan.rungs)}
    rungs = [
        {"name": o.name, "bytes": o.size_bytes, "number": numbers.get(o.name)}
        for o in offers(recipe, plan.spec, before, catalogue, bool(plan.ways))
    ]
    deadline_s = recipe.adaptive.deadline_s or recipe.round.deadline_s
    sizes = plan.sizes
    train_s = s.step_s * (local_steps or plan.rule(0).steps)
    costs = cost(plan)
    down_bytes = costs["down"] - costs["down_frames"]
    links = []
    for mbit in LINKS_MBIT:
        down_s = 8.0 * down_bytes / (mbit * s.link_down * 1e6)
        chosen = plan.best(down_s + train_s, mbit)
        up_s = 8.0 * sizes[chosen] / (mbit * 1e6)
        total_s = down_s + train_s + up_s
        late = total_s > deadline_s
        if plan.ways:
            late = up_s > deadline_s or down_s + train_s > recipe.round.deadline_s
        elif not plan.counts_training:
            late = total_s > recipe.round.deadline_s
        links.append(
            {
                "mbit": mbit,
                "down_s": down_s,
                "train_s": train_s,
                "rung": plan.rungs[chosen],
                "bytes": sizes[chosen],
                "total_s": total_s,
                "late": late,
            }
        )
    patience = recipe.adaptive.patience if plan.counts_training else 0.0
    told = {"deadline_s": deadline_s, "slack": recipe.adaptive.slack, "patience": patience}
    return {**told, "rungs": rungs, "links": links}


def _shared_choice(plan: Plan) -> str:
    sizes, most = plan.sizes, plan.recipe.adaptive.groups
    return (
        f"the largest of {len(sizes)} rungs, {min(sizes):,.0f} to {max(sizes):,.0f} bytes: a cohort is sorted into "
        f"{most} groups or fewer by what each device can send in time, and a group sends by the rung of its slowest; "
        "rungs of a share of the coordinates stretch them, to stand for all"
    )


def _turns(plan: Plan, i: int) -> str:
    """What the phases keep at space ``i``, in words."""
    kept = [100 * pipe.spaces[i].dim / plan.layout.sent.dim for pipe in plan.pipelines]
    each = ", ".join(f"{share:.3g}" for share in kept)
    if len(kept) > 4:
        each = f"{min(kept):.3g} to {max(kept):.3g}"
    return f"; {len(kept)} groups of {each} % take turns, the group of round 0 is shown"


def _finite(x: float) -> float | None:
    return x if isfinite(x) else None


def _space_row(role: str, name: str, does: str, space: Space) -> Row:
    return {
        "role": role,
        "name": name,
        "does": does,
        "dim": space.dim,
        "kind": space.grid.kind.value,
        "l2": _finite(space.l2),
        "linf": _finite(space.linf),
        "bits": space.grid.bits,
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


def _start(plan: Plan, each: str) -> str:
    client, head = plan.strategy.client, plan.at(0).spaces[0].head
    beside = f", and as many for {_names(client.sends)} of {plan.recipe.strategy['kind']}" if client.sends else ""
    more = f", and {_names(head)} as exact scalars" if head else ""
    return f"float32, one per {each}{beside}{more}"


def _moves(total: Total) -> str:
    if isfinite(total.sensitivity):
        who, clips = (
            "one device" if total.visible else "an honest device",
            " clips" if BELOW in total.space.head else "",
        )
        return f"{who} moves the total by at most {total.sensitivity:.4g}{clips} (L2)"
    return "one device can move the total without limit"


def _names(names: Iterable[str]) -> str:
    return " and ".join(names)
