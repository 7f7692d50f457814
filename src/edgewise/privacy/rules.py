"""What is refused before anyone trains because the privacy claim would be false: each rule is one function.

A rule takes what a plan declares, says nothing where it is sound, and raises CompositionError with a stable code, the
reason and the fix where it is not. The rules that the algebra of spaces enforces by itself (noise without a clip, a
ring too small, per-device supports under a blind sum) are in the stages; those about adding up are in the accountant.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import floor, log10, sqrt

from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.space import Adjacency
from edgewise.privacy.spend import Unit

_ROUNDING = 1.0 + 1e-6


def metrics(names: Iterable[str], by_server: bool, sampler: str) -> None:
    """E-STATS: numbers about a device's data leave it beside the private sum.

    Args:
        names: of those that do. by_server: the server adds the noise, to body and head of the sum alike. sampler: how
            cohorts come about; where that is by chance ("poisson"), nobody may learn how many came.
    """
    asked = ", ".join(sorted(set(names)))
    if not asked or (by_server and sampler != "poisson"):
        return
    fix = 'write metrics = "none", eval.on_devices = false and no [[metric]]; or privacy = "central_dp" with cohorts'
    if by_server:
        what = f"{asked}: how many devices took part is hidden by sampling, so that nobody can take a mean over them."
        raise CompositionError("E-STATS", what, f"{fix} of a fixed size, whose noise covers them.")
    raise CompositionError(
        "E-STATS",
        f"{asked} would leave devices without noise, and each is computed from a device's data.",
        f"{fix} that are not drawn by chance, whose noise covers them.",
    )


def amplification(asked: str, sampler: str, seen_by_reader: bool) -> None:
    """E-AMP-VISIBLE: amplification by Poisson sampling is asked for where it does not happen, or can be watched.

    Args:
        asked: "poisson", or anything else for nothing. sampler: how cohorts come about ("poisson", "fixed", "cyclic",
            "all"); every other one amplifies nothing. seen_by_reader: who is to be kept from learning runs the server
            and sees which devices take part.
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


def per_tensor(tensors: int, each_l2: float, accounted_l2: float) -> None:
    """E-PERTENSOR: ``tensors`` clipped to ``each_l2`` are up to sqrt(tensors) each_l2 long, less is accounted."""
    total = sqrt(tensors) * each_l2
    if not total <= accounted_l2 * _ROUNDING:
        raise CompositionError(
            "E-PERTENSOR",
            f"{tensors} tensors clipped to {each_l2:g} one by one have a total length of up to {total:.6g}, the noise "
            f"is sized for {accounted_l2:g}.",
            f"dp.clip_l2 = {total:.6g}, or dp.tensor_l2 = {accounted_l2 / sqrt(tensors):.6g}, or clip the update as "
            "one vector (dp.tensor_l2 = 0).",
        )


def weight_of_records(weighed: bool) -> None:
    """E-WEIGHT: a device says how much it has to say, which its records decide, together with example-level privacy."""
    if weighed:
        raise CompositionError(
            "E-WEIGHT",
            "the weight of an update is how many tokens its device predicts: one record changes it, without noise.",
            "leave out weigh: then all devices count the same.",
        )


def delta(value: float, n: int, unit: Unit) -> None:
    """E-VALUE: a delta that promises nothing.

    A mechanism that shows each unit whole with probability delta keeps the promise (0, delta), and of n units shows
    n delta on average. So delta must be below 1 / n, and by more for many: 1 / n^1.1.
    Args:
        n: how many units exist; 0: not known. unit: what epsilon and delta are about. For "example", n is the number
            of blocks of text on all devices at hand: a device by itself counts its own.
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


def correlated_noise(word: str, by_server: bool) -> None:
    """E-MF-LOCAL: correlated noise by anyone but the one who holds the sum and the buffers of all rounds.

    ``word``: of privacy, for the message. ``by_server``: whether the server adds the noise."""
    if not by_server:
        raise CompositionError(
            "E-MF-LOCAL",
            f'privacy = "{word}": correlated noise takes back in one round what it added in another; devices come and '
            "go, and none can take back another's share.",
            'dp.noise = "independent", or privacy = "central_dp", where a trusted server adds it.',
        )


def participation_gap(gap: int, sampler: str) -> None:
    """E-MF-GAP: nobody makes sure that more than one round lies between two of one device.

    Correlated noise without a gap would be sized for a device in every round, and hide no more than independent noise.
    ``gap``: rounds from one of a device to its next, at least, by the sampler that the plan enforces.
    """
    if gap <= 1:
        raise CompositionError(
            "E-MF-GAP",
            f"correlated noise is sized by the rounds between two of one device, and cohorts drawn by {sampler} "
            "promise none.",
            'round.sampling = "cyclic" (cohorts in turns) with a cohort of at most half the devices.',
        )


def divisor(by_count: bool, adjacency: Adjacency, noised_before_leaving: bool) -> None:
    """E-DIV-N: a noised sum is divided by how many came, and that is private.

    The number of contributions is public where who takes part is ("zero_out"). Where each device hides itself
    before anything leaves it, being there at all is no secret either.
    """
    if by_count and adjacency != "zero_out" and not noised_before_leaving:
        raise CompositionError(
            "E-DIV-N",
            "the mean would be divided by how many devices came, and one device more or less would show in it.",
            "divide by the expected number of devices, which is public.",
        )


def robust(rule: str, least: int, byzantine: int) -> None:
    """E-ROBUST-SECAGG: a rule that looks at single updates, behind a sum that hides them. ``least``: devices of the
    smallest group, of which ``byzantine`` know their own part of the sum."""
    if least < byzantine + 2:
        raise CompositionError(
            "E-ROBUST-SECAGG",
            f"{rule} would compare single updates, and secure aggregation shows sums of two honest devices or more: "
            f"groups of {least} have {max(0, least - byzantine)} where {byzantine} may be dishonest.",
            "take fewer groups, or raise round.cohort or round.minimum.",
        )
