"""Scale a plan's noise mechanism down to a size at which an audit can repeat it many times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgewise.core.vector import Spec
from edgewise.plan.catalogue import Catalogue
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import Recipe


def scaled_plan(
    plan: Plan,
    stages: Sequence[Mapping[str, Any]],
    spec: Spec,
    z: float,
    catalogue: Catalogue,
    devices: int,
    bits: int = 0,
    metrics: bool = True,
    **dp: Any,
) -> Plan:
    """Compile one round of a plan's update pipeline, on another layout and with a given noise multiplier.

    The share of corrupt devices is that of the plan's smallest sum.

    Args:
        stages: the [[stage]] tables of the scaled plan.
        spec: its layout.
        z: noise multiplier.
        devices: number of devices in the round.
        bits: bits of the ring; 0 = the smallest number that will do.
        metrics: False leaves out the metrics that travel with updates.
        dp: further keys of [dp].
    """
    plain = plan.recipe.resolved()
    plain["codec"], plain["stage"], plain["downlink"] = "stages", list(stages), []
    plain["strategy"] = {"kind": "fedavg"}
    if not metrics:
        plain["metrics"], plain["metric"], plain["eval"] = "none", [], {**plain["eval"], "on_devices": False}
    plain["round"] = {"rounds": 1, "sampling": "all", "minimum": 1.0}
    if plan.hides is not None:
        share = min(0.5, plan.pipelines[0].spaces[0].quorum.corrupt_share)
        plain["trust"] = {**plain["trust"], "malicious_fraction": share, "server": "malicious"}
    if plain["merge"]["kind"] == "grouped":  # The server sees each group's sum, so an attack is on one group.
        plain["merge"] = {"kind": "secure_sum"}
    loose = {"noise": "independent", "amplification": "auto", "noise_multiplier": z, "epsilon": 0.0, "bits": bits}
    plain["dp"] = {**plain["dp"], **loose, **dp}
    return compile(Recipe.model_validate(plain), spec, devices, catalogue)
