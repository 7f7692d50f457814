"""Numbers of a first run with protection, from the number of devices.

    recipe_cohorts("distributed_dp", 8)                              # the devices of a round, and the number that may
    lie completion({"privacy": "central_dp", "dp": {"epsilon": 8.0}}, 8)["dp.delta"]        # 1e-05

`edgewise new` writes them into a recipe. ``Federation`` completes a recipe with them that gives an epsilon alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log10
from typing import Any, NamedTuple

from edgewise.core.errors import CompositionError
from edgewise.plan.recipe.privacy import DP_WORDS
from edgewise.plan.recipe.sections import TrustSection
from edgewise.secagg.merge import smallest_masked_sum

EVERYBODY = 40  # Up to so many devices all take part in every round.
COHORT, DP_COHORT = 20, 125  # Cohorts of larger federations. Noise does not grow with a cohort, so DP's is larger.
MINIMUM = {"hidden": 0.75, "distributed_dp": 0.9}  # Masks and noise are sized for this share of the cohort.
CORRUPT = {"hidden": 0.1, "distributed_dp": 0.02}  # Share of devices that may lie, if the cohort is large enough.
OVERSELECT = 1.3  # The default of round.overselect.
CLIP_L2 = 1.0  # Largest L2 norm of one device's update.

# One plain step of a device: the update is the gradient, which the clip bounds. The server's optimizer sets the step.
TRAINING: Mapping[str, Any] = {
    "optimizer": "sgd", "lr": 1.0, "schedule": "constant", "local_steps": 1, "batch": 8, "clip_grad": 0.0,
}  # fmt: skip
STRATEGY: Mapping[str, Any] = {"kind": "fedadam", "lr": 0.002, "tau": 0.0001}


class FirstCohorts(NamedTuple):
    """The devices that take part in a round, and those of them that may lie.

    Attributes:
        cohort: devices of a round; 0 = all. sampling: value of ``round.sampling``.
        minimum: share of the cohort below which a round is abandoned.
        corrupt, fraction: devices that may lie, as a number and as ``trust.malicious_fraction``. None without masks.
    """

    cohort: int
    sampling: str
    minimum: float
    corrupt: int | None = None
    fraction: float | None = None


def recipe_delta(units: int) -> float:
    """Return a power of ten below 1 / units^1.1, at most 1e-5. ``units``: devices, or blocks of text."""
    return 10.0 ** -max(5, ceil(1.1 * log10(max(2, units))) + 1)


def recipe_cohorts(word: str, devices: int) -> FirstCohorts:
    """Choose cohorts for a number of devices.

    With masks as many devices may lie as the smallest sum bears, at most the share ``CORRUPT`` of all devices.

    Raises:
        CompositionError: E-NMIN for masks over fewer than two devices.
    """
    noisy = word in ("central_dp", "distributed_dp")
    cohort = 0 if devices <= EVERYBODY else min(DP_COHORT, devices // 2) if noisy else COHORT
    expected = cohort or devices
    sampling = "all" if not cohort else "cyclic" if noisy else "fixed"
    minimum = MINIMUM.get(word, 0.5)
    if word not in CORRUPT:
        return FirstCohorts(cohort, sampling, minimum)
    invited = ceil(expected * OVERSELECT) if sampling == "fixed" else ceil(devices / max(1, devices // expected))
    least = max(2, ceil(expected * minimum - 1e-9))
    if least > expected:
        raise CompositionError(
            "E-NMIN", f'privacy = "{word}" hides a device in a sum of two or more; the data has {devices}.',
            "give data of more owners.",
        )  # fmt: skip
    corrupt = min(int(CORRUPT[word] * devices), invited)
    while corrupt and smallest_masked_sum(corrupt, dropout=TrustSection().dropout_fraction) > least:
        corrupt -= 1
    whole = corrupt == int(CORRUPT[word] * devices)
    return FirstCohorts(
        cohort,
        sampling,
        max(minimum, min(1.0, 2 / expected)),
        corrupt,
        CORRUPT[word] if whole else _fraction_of_devices(corrupt, devices),
    )


def completion(tables: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """Return the settings that a recipe with an epsilon lacks, by dotted key. Empty where it lacks none.

    A recipe lacks some where its word promises an epsilon for whole devices and ``dp.delta`` or ``dp.clip_l2`` is
    missing. Values of the recipe stay. Training and strategy are chosen together, and cohorts with their minimum: what
    the recipe gives of either, it gives as a whole.

    Args:
        tables: the recipe's tables as they were read, not yet validated.
    Raises:
        CompositionError: as ``recipe_cohorts``.
    """
    word, dp, trust = tables.get("privacy"), tables.get("dp", {}), tables.get("trust", {})
    if word not in DP_WORDS or not isinstance(dp, Mapping) or dp.get("unit", "device") != "device":
        return {}
    missing = [key for key in ("delta", "clip_l2") if not dp.get(key)]
    if not missing:
        return {}
    values = {"delta": recipe_delta(devices), "clip_l2": CLIP_L2}
    out: dict[str, Any] = {f"dp.{key}": values[key] for key in missing}
    if "training" not in tables and "strategy" not in tables:
        out |= {f"training.{key}": value for key, value in TRAINING.items()}
        out |= {f"strategy.{key}": value for key, value in STRATEGY.items()}
    drawn = tables.get("round", {})
    if (
        isinstance(drawn, Mapping)
        and isinstance(trust, Mapping)
        and not drawn.keys() & {"sampling", "cohort", "minimum"}
    ):
        chosen = recipe_cohorts(str(word), devices)
        out |= {"round.sampling": chosen.sampling, "round.minimum": chosen.minimum}
        if chosen.cohort:
            out["round.cohort"] = chosen.cohort
        if chosen.fraction is not None and "malicious_fraction" not in trust:
            out["trust.malicious_fraction"] = chosen.fraction
    return out


def _fraction_of_devices(count: int, n: int) -> float:
    """Find a short decimal fraction f with floor(f n) = count."""
    digits = 2
    while int((share := round((count + 0.5) / n, digits)) * n) != count:
        digits += 1
    return share
