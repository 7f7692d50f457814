"""Plans for trials: a plan's own pipelines as far as one sum, and the same pipelines scaled to another layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Adjacency, share_of
from edgewise.core.vector import Spec
from edgewise.merges.ring import ring_sum
from edgewise.plan.noise import Spend
from edgewise.plan.plan import Plan
from edgewise.plan.promise import Noiser
from edgewise.privacy.audit import event_mu

COHORT = 20  # of a scaled plan: enough for 5 % of it to be one corrupt device
LONG = 4.0  # a canary's coordinates, in clips
FINER = 4  # bits by which a scaled ring is finer than need be: so little noise is rounded up a good deal else


def promised(plan: Plan) -> Adjacency:
    """What neighbours are by the threat model's words, whatever the plan's fold and its accountant take them for."""
    if plan.promise.who_noises is Noiser.DEVICE:
        return "replace_one"
    return "add_remove" if plan.promise.who_noises is Noiser.SERVER and plan.sampling.kind == "poisson" else "zero_out"


def ways_of(plan: Plan) -> list[Pipeline]:
    """The plan's ways up, one per phase or rung, as far as one sum: of several the server sees each."""
    return [
        pipeline(pipe.spaces[0], pipe.stages, ring_sum(), pipe.posts) if pipe.merge.combine is not None else pipe
        for pipe in plan.ways or plan.pipelines
    ]


def layout(spec: Spec, dim: int) -> Spec:
    """Tensors of the same names and of one length, ``dim`` coordinates or a few more."""
    return Spec.of([(s.name, (-(-dim // len(spec.segments)),), "float32") for s in spec.segments])


def first_way(scaled: Plan, plan: Plan) -> Pipeline:
    """The first way up of a scaled plan, with the neighbours of ``plan``: those of a round of everybody are others than
    those of a Poisson cohort."""
    pipe = ways_of(scaled)[0]
    start = pipe.spaces[0].but(adjacency=plan.at(0).spaces[0].adjacency)  # of the fold: it decides what devices send
    return replace(pipeline(start, pipe.stages, pipe.merge, pipe.posts), divisor=pipe.divisor)


def spend_of(plan: Plan) -> Spend:
    """The spend of a plan that has one."""
    assert plan.spend is not None
    return plan.spend


def mu_of(plan: Plan, phase: int) -> float:
    """What the accountant counts for a release of a phase, or for the run of correlated noise."""
    events = spend_of(plan).events
    return event_mu(events[phase % len(events)])


def clip_of(plan: Plan) -> float:
    """The largest bound of a part of an update that is clipped by itself."""
    return spend_of(plan).clipping.largest


def uncounted(plan: Plan) -> bool:
    """Whether a cohort of the mechanism's trial has no corrupt device though some are assumed."""
    share = plan.pipelines[0].spaces[0].quorum.corrupt_share
    return share > 0.0 and not share_of(share, COHORT)


def those(found: Mapping[str, bool]) -> tuple[str, ...]:
    """What is so."""
    return tuple(what for what, so in found.items() if so)
