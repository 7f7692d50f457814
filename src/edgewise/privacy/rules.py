"""Rules that refuse a plan before anyone trains, because its privacy claim would be false. Each rule is one function.

A rule takes declarations of a plan. Where they are unsound it raises CompositionError with a stable code, the reason
and the fix. The stages have the rules that the algebra of spaces enforces by itself (noise without a clip, a ring too
small, per-device supports under a blind sum). The accountant has those about adding up.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import floor, log10, sqrt

from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.space import Adjacency
from edgewise.privacy.spend import Unit

_ROUNDING = 1.0 + 1e-6


def refuse_unnoised_metrics(names: Iterable[str], in_steps: bool, sampler: str) -> None:
    """Refuse numbers about a device's data that no noise covers (E-STATS).

    Args:
        names: of these numbers. in_steps: the noise is in the steps of training, which these numbers do not pass.
            Noise on an update or on a sum covers them too. sampler: of cohorts. With "poisson" nobody may learn how
            many devices took part.
    """
    asked = ", ".join(sorted(set(names)))
    if not asked or not (in_steps or sampler == "poisson"):
        return
    fix = 'write metrics = "none", eval.on_devices = false and no [[metric]]; or'
    if in_steps:
        what = f"{asked} would leave devices without noise, and each is computed from a device's data."
        raise CompositionError("E-STATS", what, f'{fix} dp.unit = "device", whose noise covers them.')
    what = f"{asked}: how many devices took part is hidden by sampling, so that nobody can take a mean over them."
    raise CompositionError("E-STATS", what, f"{fix} cohorts of a fixed size, whose noise covers them.")


def refuse_amplification(asked: str, sampler: str, seen_by_reader: bool) -> None:
    """Refuse amplification by Poisson sampling where it does not happen, or where the reader sees it (E-AMP-VISIBLE).

    Args:
        asked: "poisson", or anything else for none. sampler: of cohorts ("poisson", "fixed", "cyclic", "all"). Only
            "poisson" amplifies. seen_by_reader: the claim is against whoever runs the server and sees which devices
            take part.
    """
    if asked != "poisson":
        return
    if seen_by_reader:
        raise CompositionError(
            "E-AMP-VISIBLE",
            "amplification by sampling is claimed against somebody who sees which devices take part.",
            'dp.amplification = "auto" (every round counts in full), or privacy = "central_dp" for readers of the '
            "models.",
        )
    if sampler != "poisson":
        raise CompositionError(
            "E-AMP-VISIBLE",
            f"the accountant is asked to assume poisson sampling, and cohorts are drawn by {sampler}: the epsilons can "
            "differ tenfold at the same noise.",
            'round.sampling = "poisson", or dp.amplification = "auto".',
        )


def refuse_short_per_tensor(tensors: int, each_l2: float, accounted_l2: float) -> None:
    """Refuse an accounted length below sqrt(tensors) each_l2, which tensors clipped one by one reach (E-PERTENSOR)."""
    total = sqrt(tensors) * each_l2
    if not total <= accounted_l2 * _ROUNDING:
        raise CompositionError(
            "E-PERTENSOR",
            f"{tensors} tensors clipped to {each_l2:g} one by one have a total length of up to {total:.6g}, the noise "
            f"is sized for {accounted_l2:g}.",
            f"dp.clip_l2 = {total:.6g}, or dp.tensor_l2 = {accounted_l2 / sqrt(tensors):.6g}, or clip the update as "
            "one vector (dp.tensor_l2 = 0).",
        )


def refuse_record_weights(weighed: bool) -> None:
    """Refuse weights, which a device's records decide, together with example-level privacy (E-WEIGHT)."""
    if weighed:
        raise CompositionError(
            "E-WEIGHT",
            "the weight of an update is the number of tokens that its device predicts: one record changes it, without "
            "noise.",
            "leave out weigh: then all devices count the same.",
        )


def refuse_delta(value: float, n: int, unit: Unit) -> None:
    """Refuse a delta that promises nothing (E-VALUE).

    A mechanism that shows each unit whole with probability delta keeps the promise (0, delta). Of n units it shows
    n delta on average. So delta must be below 1 / n, and by more for many units: 1 / n^1.1.
    Args:
        n: number of units that exist. 0: not known. unit: the protected unit. For "example", n is the number of blocks
            of text on all devices at hand. A device by itself counts its own.
    Source: Dwork and Roth 2014, section 2.3 (less than any inverse polynomial in the size of the database).
    """
    if n and value >= (most := n**-1.1):
        many, shown = ("devices", "the text of {} devices") if unit == "device" else ("blocks of text", "{} of them")
        digit = 10.0 ** (floor(log10(most)) - 1)
        raise RecipeError(
            "E-VALUE",
            f"dp.delta = {value:g} with {n:,} {many}: a mechanism that shows {shown.format(f'{value * n:.3g}')} on "
            "average would keep that promise.",
            f"dp.delta = {floor(most / digit) * digit:.2g}: it must be below 1 / {n}^1.1.",
        )


def refuse_drowning_noise(z: float, expected: int, epsilon: float, rounds: int) -> None:
    """Refuse a budget for whole devices whose noise no mean of them can be heard through (E-DROWNED).

    The mean of n updates has noise of z C / n in every coordinate, and is at most C long in all coordinates together.
    So from z = n on, a single coordinate's noise is longer than the longest update.
    Args:
        z: noise multiplier that the budget asks for. expected: n, the devices in a sum.
    """
    if z >= expected:
        raise RecipeError(
            "E-DROWNED",
            f"dp.epsilon = {epsilon:g} for whole devices over {rounds} rounds asks for noise of {z:.4g} clips on the "
            f"sum: {z / expected:.3g} clips in each coordinate of the mean of {expected:,} devices. The whole mean is "
            "at most 1 clip long, so nothing can be learned from it, whatever the model.",
            f"take more than {floor(z):,} devices (ten times as many learn something), a larger dp.epsilon, or fewer "
            'rounds; or protect single records: dp.unit = "example".',
        )


def refuse_correlated_noise(word: str, by_server: bool) -> None:
    """Refuse correlated noise unless the holder of the sum and of all rounds' buffers adds it (E-MF-LOCAL).

    Args: word: the recipe's privacy word, for the message. by_server: the server adds the noise.
    """
    if not by_server:
        raise CompositionError(
            "E-MF-LOCAL",
            f'privacy = "{word}": correlated noise takes back in one round what it added in another; devices come and '
            "go, and none can take back another's share.",
            'dp.noise = "independent", or privacy = "central_dp", where a trusted server adds it.',
        )


def refuse_participation_gap(gap: int, sampler: str) -> None:
    """Refuse correlated noise where a device may be in two rounds in a row (E-MF-GAP).

    Without a gap it would be sized for a device in every round, and hide no more than independent noise.
    Args: gap: least distance of two rounds of a device, by the sampler that the plan enforces.
    """
    if gap <= 1:
        raise CompositionError(
            "E-MF-GAP",
            f"correlated noise is sized by the rounds between two of one device, and cohorts drawn by {sampler} "
            "promise none.",
            'round.sampling = "cyclic" (cohorts in turns) with a cohort of at most half the devices, or '
            '"buffered" with buffer.rest = 2 or more.',
        )


def refuse_noised_divisor(by_count: bool, adjacency: Adjacency, noised_before_leaving: bool) -> None:
    """Refuse to divide a noised sum by the number of contributions where that number is private (E-DIV-N).

    The number is public where participation is public ("zero_out"). Where each device adds noise before anything leaves
    it, participation is no secret either.
    """
    if by_count and adjacency != "zero_out" and not noised_before_leaving:
        raise CompositionError(
            "E-DIV-N",
            "the mean would be divided by the number of devices that took part, and one device more or less would show "
            "in it.",
            "divide by the expected number of devices, which is public.",
        )


def refuse_small_robust_groups(rule: str, least: int, byzantine: int) -> None:
    """Refuse a robust rule between masked groups that are too small to hide single updates (E-ROBUST-SECAGG).

    Args: least: devices of the smallest group. byzantine: of them, devices that know their own part of the sum.
    """
    if least < byzantine + 2:
        raise CompositionError(
            "E-ROBUST-SECAGG",
            f"{rule} would compare single updates, and secure aggregation shows sums of two honest devices or more: "
            f"groups of {least} have {max(0, least - byzantine)} where {byzantine} may be dishonest.",
            "take fewer groups, or raise round.cohort or round.minimum.",
        )
