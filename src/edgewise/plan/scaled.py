"""A plan's noise mechanism at another size: what an audit plays many times over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgewise.core.vector import Spec
from edgewise.plan.catalogue import Catalogue
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import Recipe


def scaled(
    plan: Plan,
    stages: Sequence[Mapping[str, Any]],
    spec: Spec,
    z: float,
    catalogue: Catalogue,
    devices: int,
    bits: int = 0,
    **dp: Any,
) -> Plan:
    """The plan's update pipeline on another layout, with a given noise multiplier: one round of ``devices``.

    The same share of them may be corrupt as of the plan's smallest sum. ``dp``: other keys of [dp].
    """
    plain = plan.recipe.resolved()
    plain["codec"], plain["stage"], plain["downlink"] = "stages", list(stages), []
    plain["strategy"] = {"kind": "fedavg"}
    plain["round"] = {"rounds": 1, "sampling": "all", "minimum": 1.0}
    if plan.hides is not None:
        share = min(0.5, plan.pipelines[0].spaces[0].quorum.corrupt_share)
        plain["trust"] = {**plain["trust"], "malicious_fraction": share, "server": "malicious"}
    if plain["merge"]["kind"] == "grouped":  # the server sees each group's sum: that is the release to attack
        plain["merge"] = {"kind": "secure_sum"}
    loose = {"noise": "independent", "amplification": "auto", "noise_multiplier": z, "epsilon": 0.0, "bits": bits}
    plain["dp"] = {**plain["dp"], **loose, **dp}
    return compile(Recipe.model_validate(plain), spec, devices, catalogue)
