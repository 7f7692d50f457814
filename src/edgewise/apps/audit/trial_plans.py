"""Plans for trials: a plan's own pipelines up to one sum, and the same pipelines scaled to another layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Adjacency, share_of
from edgewise.core.vector import Spec
from edgewise.merges.plain import plain_sum
from edgewise.merges.ring import ring_sum
from edgewise.plan.noise import PlannedSpend
from edgewise.plan.plan import Plan
from edgewise.plan.promise import Noiser
from edgewise.privacy.audit_findings import event_mu

COHORT = 20  # Cohort of a scaled plan. 5 % of it are one corrupt device.
LONG = 4.0  # A canary's coordinates, in clips.
FINER = 4  # Extra bits of a scaled ring. Without them the small noise would be rounded up too much.


def promised_adjacency(plan: Plan) -> Adjacency:
    """Return the adjacency that the threat model promises, independent of the plan's fold and its accountant."""
    if plan.promise.who_noises is Noiser.DEVICE:
        return "replace_one"
    return "add_remove" if plan.promise.who_noises is Noiser.SERVER and plan.sampling.kind == "poisson" else "zero_out"


def trial_pipelines(plan: Plan) -> list[Pipeline]:
    """List the plan's pipelines, one per phase or rung, up to one sum, because the server sees each sum."""
    return [
        pipe
        if pipe.merge.combine is None
        else pipeline(pipe.spaces[0], pipe.stages, ring_sum() if pipe.merge.blind else plain_sum(), pipe.posts)
        for pipe in plan.rung_pipelines or plan.pipelines
    ]


def trial_layout(spec: Spec, dim: int) -> Spec:
    """Make a layout with the same names and equal lengths, with ``dim`` coordinates or a few more."""
    return Spec.of([(s.name, (-(-dim // len(spec.segments)),), "float32") for s in spec.segments])


def first_trial_pipeline(scaled: Plan, plan: Plan) -> Pipeline:
    """Return the first pipeline of a scaled plan with the adjacency of ``plan``.

    A round of all devices has another adjacency than a Poisson cohort.
    """
    pipe = trial_pipelines(scaled)[0]
    start = pipe.spaces[0].but(adjacency=plan.at(0).spaces[0].adjacency)  # The fold's, which decides what devices send.
    return replace(pipeline(start, pipe.stages, pipe.merge, pipe.posts), divisor=pipe.divisor)


def trial_spend(plan: Plan) -> PlannedSpend:
    """Return the spend of a plan that has one."""
    assert plan.spend is not None
    return plan.spend


def trial_mu(plan: Plan, phase: int) -> float:
    """Return the accountant's mu for a release of a phase, or for the whole run if noise is correlated."""
    events = trial_spend(plan).events
    return event_mu(events[phase % len(events)])


def trial_clip(plan: Plan) -> float:
    """Return the largest clip of the separately clipped parts of an update."""
    return trial_spend(plan).clipping.largest


def lacks_corrupt_devices(plan: Plan) -> bool:
    """Tell whether the cohort of a scaled plan has no corrupt device although the plan assumes some."""
    share = plan.pipelines[0].spaces[0].quorum.corrupt_share
    return share > 0.0 and not share_of(share, COHORT)


def true_keys(found: Mapping[str, bool]) -> tuple[str, ...]:
    """List the keys whose value is true."""
    return tuple(what for what, so in found.items() if so)
