"""The record of a plan in a run's store, for the summary and the report."""

from __future__ import annotations

from typing import Any

from edgewise.plan import explain
from edgewise.plan.disclosure import privacy_facts
from edgewise.plan.plan import Plan


def planned(plan: Plan) -> dict[str, Any]:
    """Make the fact ``plan`` of a run's record."""
    return {
        "trace": explain.trace(plan),
        "trace_down": explain.trace_down(plan),
        "claims": list(plan.claims),
        "privacy": privacy_facts(plan),
        "upload_bytes": explain.cost(plan)["up"],
        "dim": plan.spec.dim,
        "population": plan.facts.population,
        "rungs": list(plan.rungs),
        "metric_noise": {metric.name: plan.metric_noise(metric.name) for metric in plan.metrics.own},
    }
