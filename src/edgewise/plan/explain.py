"""Explain a plan in words and numbers: the work of each part, the bytes of a round, and the time of a run. Pure.

for row in trace(plan):
    print(row["name"], row["does"])
cost(plan)["up"]                          # bytes that a device uploads in a round
forecast(plan, step_s=0.2, workers=2)     # seconds of computing
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, inf, isfinite
from typing import Any

from edgewise.codecs.wire import pack
from edgewise.core.space import Space, Total
from edgewise.core.stage import BELOW, Stage
from edgewise.plan.catalogue import BUILT_IN, Catalogue
from edgewise.plan.codec_choice.choice import offered_rungs
from edgewise.plan.frames import traffic
from edgewise.plan.plan import Plan

Row = dict[str, Any]  # Plain JSON. An unknown (infinite) bound is None.


def trace(plan: Plan) -> list[Row]:
    """Describe each part of the pipeline of round 0, in the order in which an update passes them.

    Where parts of the model take turns over rounds, the row of the stage with that schedule also describes the phases.

    Returns:
        One row per part. Every row has ``role`` (``start``, ``stage``, ``inner``, ``merge``, ``post``, ``strategy``),
        ``name`` and ``does`` (the part's own sentence). Rows of start, stage and inner also have ``dim``, ``kind``,
        ``l2``, ``linf``, ``bits``, ``sparse``, ``summable``, ``unbiased``, ``memory`` and ``bytes`` (packed size of one
        contribution at that point). Rows of merge and post have ``sensitivity``, ``noise_std`` and ``visible``. The
        stages inside ``feedback`` follow its row as ``inner`` rows.
    """
    pipe = plan.at(0)
    each = "direction" if plan.strategy.directions else "trained parameter"
    rows = [_space_row("start", "trained update", _start_row(plan, each), pipe.spaces[0])]
    for i, stage in enumerate(pipe.stages):
        before, after = pipe.spaces[i], pipe.spaces[i + 1]
        does = stage.says(before, after) + (_layer_turns(plan, i + 1) if after.period > before.period else "")
        if plan.rung_pipelines and i == len(plan.recipe.stage):  # This is the first stage of the ladder.
            does = f"{_shared_choice(plan)}; the largest: {does}"
        rows.append(_space_row("stage", stage.name, does, after))
        rows += _inner_rows(stage, before)
    total = pipe.totals[0]
    bound = "" if pipe.merge.combine else f"; {_sensitivity_in_words(total)}"
    rows.append(_total_row("merge", pipe.merge.name, pipe.merge.says(total) + bound, total))
    for post, earlier, total in zip(pipe.posts, pipe.totals, pipe.totals[1:], strict=False):
        rows.append(
            _total_row("post", post.name, f"{post.says(earlier, total)}; {_sensitivity_in_words(total)}", total)
        )
    rows.append({"role": "strategy", "name": plan.strategy.name, "does": plan.strategy.says})
    return rows


def _inner_rows(stage: Stage, before: Space) -> list[Row]:
    """Describe the stages inside of a stage."""
    rows, space = [], stage.opens(before)
    for inside in stage.inner:
        after = inside.infer(space)
        rows.append(_space_row("inner", inside.name, inside.says(space, after), after))
        space = after
    return rows


def trace_down(plan: Plan) -> list[Row]:
    """Describe the download pipeline as ``trace`` does, in ``start`` and ``stage`` rows.

    Edge cases: no rows where devices download the model itself.
    """
    pipe = plan.downlink
    if pipe is None:
        return []
    start = "float32: the model less what devices hold of it"
    rows = [_space_row("start", "change of the model", start, pipe.spaces[0])]
    for stage, before, after in zip(pipe.stages, pipe.spaces, pipe.spaces[1:], strict=False):
        rows.append(_space_row("stage", stage.name, stage.says(before, after), after))
    return rows


def cost(plan: Plan, parameters: float = 0.0, trained: float = 0.0, names: Sequence[str] = ()) -> Row:
    """Count the bytes of a device in a round, and compare them with float32.

    Args:
        parameters: number of all parameters of the model; 0 = unknown.
        trained: number of trained parameters; 0 takes the size of the run's vector.
        names: names of the devices. Longer names make longer frames.
    Returns:
        Bytes, but for the last three:
        ``up``: expected frames of a contribution with masks (``plan.frames``), the mean over phases.
        ``up_largest``: those of the phase with the largest. ``up_payload``: the packed update alone.
        ``down``: expected download of a device that takes part in every round. It is one delta, or the run's vector
        without a downlink, the positions of the last release where stages need them, and ``down_frames``.
        ``down_frames``: the invitation and the messages of secure aggregation.
        ``snapshot``: the run's vector, which a device downloads the first time and after a longer absence.
        ``float32_update``: the trained part in float32. ``float32_model``: the model in float32; None where unknown.
        ``down_missed``: rounds that a device may miss and still download deltas; None without a downlink.
        ``up_ratio``, ``down_ratio``: the float32 model (the update, where the model is unknown) over the bytes.
    """
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
    """Return the expected bytes of the last release's positions in a round's download, the mean over phases.

    Edge cases: 0 where no stage needs positions.
    """
    wanted = [pipe.encoded.announced for pipe in plan.pipelines]
    return sum(pack.announced_support_bytes(n, plan.layout.sent.dim) for n in wanted if n) / len(wanted)


def down_total(plan: Plan, frames: float) -> float:
    """Return the expected bytes that all invited devices download in all rounds.

    A device is invited with probability p each round. In round t it last took part g rounds ago with probability
    p (1 - p)^(g - 1), g <= t, and never with (1 - p)^t. It downloads min(g deltas, snapshot), or the snapshot if it
    never took part. An invited device counts as one that took part, even without a contribution.

    Args:
        frames: bytes of a device's frames in a round, ``down_frames`` of ``cost``.
    """
    sampling, snapshot = plan.sampling, float(plan.snapshot_bytes)
    delta = snapshot if plan.delta_bytes is None else plan.delta_bytes
    p, support = min(1.0, sampling.invite / sampling.population), _support_bytes(plan) + frames
    total, known = 0.0, 0.0  # The second is the expected download of a device that took part before.
    for t in range(plan.rounds):
        if t:
            known += p * (1.0 - p) ** (t - 1) * min(t * delta, snapshot)
        total += sampling.invite * (known + (1.0 - p) ** t * snapshot + support)
    return total


def forecast(
    plan: Plan,
    step_s: float | None,
    workers: int,
    local_steps: float = 0.0,
    encode_s: float = 0.0,
    personal_steps: float = 0.0,
) -> Row:
    """Forecast the seconds of computing of a simulation.

        federated = (step_s x local_steps + encode_s) x contributions x rounds / workers

    The local-only comparison trains the measured devices, in as many rounds as a device takes part in, and for the
    steps of their personal models. The centralised one is a single chain of steps on a worker of its own, beside the
    local-only one. Longer local training and personal models come after both. A device with ditto takes the steps of
    its personal model in each of its rounds instead, with fedrep in each of them and afterwards. One that chooses its
    weight takes them twice. Evaluation, masks, the server's work and start-up are left out. A step
    on some segments counts as a whole one.

    Args:
        step_s: measured seconds of one optimizer step; None = unknown, which makes all forecasts None.
        workers: number of worker processes.
        local_steps: mean steps of a device in a round, where the recipe counts passes; 0 = the recipe's own steps.
        encode_s: measured seconds of one encoding.
        personal_steps: mean steps of ``personal.epochs``; 0 = unknown, which leaves them out.
    """
    recipe, sampling = plan.recipe, plan.sampling
    expected = sampling.expected
    out: Row = {"contributions_per_round": expected, "federated_s": None, "compare_s": None, "total_s": None}
    if step_s is None:
        return out
    device_round_s = step_s * (local_steps or plan.rule(0).steps)
    after_s = step_s * recipe.personal.further_steps(personal_steps)
    beside_s = step_s * recipe.personal.beside_steps(personal_steps)
    federated = (device_round_s + beside_s + encode_s) * expected * plan.rounds / min(workers, expected)
    measured = min(recipe.eval.devices or sampling.population, sampling.population)
    device_alone_s = (device_round_s + beside_s) * len(plan.rounds_alone(plan.rounds)) + after_s
    alone = device_alone_s * measured if recipe.compare.local_only else 0.0
    chain = device_round_s * expected * plan.rounds if recipe.compare.centralised else 0.0
    longer = device_round_s * explain_longer_rounds(plan, plan.rounds) * min(recipe.compare.longer_devices, measured)
    if not (alone and chain):
        compare = alone / workers + chain
    else:
        compare = alone + chain if workers == 1 else max(chain, alone / (workers - 1))
    further = after_s * measured
    compare += longer / min(workers, recipe.compare.longer_devices, measured) + further / min(workers, measured)
    return {**out, "federated_s": federated, "compare_s": compare, "total_s": federated + compare}


def explain_longer_rounds(plan: Plan, rounds: int) -> int:
    """Return the rounds of training of a device that trains alone for longer, for a federation of ``rounds``."""
    return len(plan.rounds_alone(rounds)) * plan.recipe.compare.longer


LINKS_MBIT = (0.1, 0.3, 1.0, 3.0, 10.0, 20.0)


def ladder(plan: Plan, catalogue: Catalogue = BUILT_IN, local_steps: float = 0.0) -> Row | None:
    """List the rungs that devices may choose from, and the choice of a device on each of some links.

    Training takes the time of the simulation's median device for ``local_steps`` (as in ``forecast``). The downlink is
    ``simulation.link_down`` times the uplink.

    Returns:
        None where the codec is fixed. ``rungs``: ``name``, ``bytes`` and ``number``, which is None for a rung above
        ``adaptive.max_upload_mb``. ``links``: for each uplink speed ``mbit`` the ``down_s``, ``train_s``, ``rung``
        (name) and ``bytes`` of a device on a steady link, ``total_s`` with the upload, and ``late``. A device is late
        where ``total_s`` is above ``deadline_s``. Behind masks it is late where training ends after the round's
        deadline, or the upload alone takes longer than ``deadline_s``.
    """
    if not plan.rungs:
        return None
    recipe, s = plan.recipe, plan.recipe.simulation
    pipe = plan.at(0)
    before = pipe.spaces[len(recipe.stage)] if plan.rung_pipelines else pipe.spaces[-2].but(l2=inf, linf=inf)
    numbers = {name: i for i, name in enumerate(plan.rungs)}
    rungs = [
        {"name": o.name, "bytes": o.size_bytes, "number": numbers.get(o.name)}
        for o in offered_rungs(recipe, plan.spec, before, catalogue, bool(plan.rung_pipelines))
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
        if plan.rung_pipelines:
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
    settings = {"deadline_s": deadline_s, "slack": recipe.adaptive.slack, "patience": patience}
    return {**settings, "rungs": rungs, "links": links}


def _shared_choice(plan: Plan) -> str:
    sizes, groups = plan.sizes, plan.recipe.adaptive.groups
    return (
        f"the largest of {len(sizes)} rungs, {min(sizes):,.0f} to {max(sizes):,.0f} bytes: a cohort is sorted into "
        f"{groups} groups or fewer by what each device can send in time, and a group sends by the rung of its slowest; "
        "rungs of a share of the coordinates stretch them, to stand for all"
    )


def _layer_turns(plan: Plan, i: int) -> str:
    """Describe the groups of segments that the phases keep at space ``i``."""
    percents = [100 * pipe.spaces[i].dim / plan.layout.sent.dim for pipe in plan.pipelines]
    each = ", ".join(f"{percent:.3g}" for percent in percents)
    if len(percents) > 4:
        each = f"{min(percents):.3g} to {max(percents):.3g}"
    return f"; {len(percents)} groups of {each} % take turns, the group of round 0 is shown"


def _finite_or_none(x: float) -> float | None:
    """Return a number that JSON can carry. None for infinity."""
    return x if isfinite(x) else None


def _space_row(role: str, name: str, does: str, space: Space) -> Row:
    return {
        "role": role,
        "name": name,
        "does": does,
        "dim": space.dim,
        "kind": space.grid.kind.value,
        "l2": _finite_or_none(space.l2),
        "linf": _finite_or_none(space.linf),
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
        "sensitivity": _finite_or_none(total.sensitivity),
        "noise_std": total.noise_std,
        "visible": total.visible,
    }


def _start_row(plan: Plan, each: str) -> str:
    """Describe the update before the first stage."""
    client, head = plan.strategy.client, plan.at(0).spaces[0].head
    beside = (
        f", and as many for {_joined_names(client.sends)} of {plan.recipe.strategy['kind']}" if client.sends else ""
    )
    more = f", and {_joined_names(head)} as exact scalars" if head else ""
    return f"float32, one per {each}{beside}{more}"


def _sensitivity_in_words(total: Total) -> str:
    """Say how far one device can move the total."""
    if isfinite(total.sensitivity):
        who, clips = (
            "one device" if total.visible else "an honest device",
            " clips" if BELOW in total.space.head else "",
        )
        return f"{who} moves the total by at most {total.sensitivity:.4g}{clips} (L2)"
    return "one device can move the total without limit"


def _joined_names(names: Iterable[str]) -> str:
    """Join names with "and"."""
    return " and ".join(names)
