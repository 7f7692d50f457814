"""What is refused before anyone trains because the privacy claim would be false: each rule is one function.

A rule takes what a plan declares, says nothing where it is sound, and raises CompositionError with a stable code, the
reason and the fix where it is not. The rules that the algebra of spaces enforces by itself (noise without a clip, a
ring too small, per-device supports under a blind sum) are in the stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, sqrt
from typing import Literal

from edgewise.core.errors import CompositionError
from edgewise.privacy.spend import Adjacency, Event, Unit

AddedBy = Literal["server", "devices", "device"]
_ROUNDING = 1.0 + 1e-6

# Layers by class name: anything with batch statistics, whatever its framework calls the dimension.
_MIXING = ("BatchNorm", "batch_norm")


def norm_after(stage: str, accounted_l2: float, noised_l2: float) -> None:
    """E-NORM-AFTER: the vector that is noised may be longer than the accountant was told.

    Args:
        stage: what stands between. accounted_l2: sensitivity in the accountant. noised_l2: bound where noise is added.
    """
    if not noised_l2 <= accounted_l2 * _ROUNDING:
        raise CompositionError(
            "E-NORM-AFTER",
            f"{stage} lengthens the update after the clip: noise for {accounted_l2:.6g} would have to hide up to "
            f"{noised_l2:.6g}.",
            f"put {stage} before clip, or account with the longer bound.",
        )


def per_tensor(bounds: Sequence[float], accounted_l2: float) -> float:
    """``sqrt(sum C_l^2)``, the bound of an update whose tensors are clipped to C_l each. E-PERTENSOR: less is told."""
    if not all(c > 0.0 and isfinite(c) for c in bounds):
        raise CompositionError(
            "E-PERTENSOR",
            "a tensor without a clip of its own can be of any length.",
            "clip every tensor, or all as one.",
        )
    total = sqrt(sum(c * c for c in bounds))
    if not total <= accounted_l2 * _ROUNDING:
        raise CompositionError(
            "E-PERTENSOR",
            f"{len(bounds)} tensors clipped one by one have a total length of up to {total:.6g}, the accountant was "
            f"told {accounted_l2:.6g}.",
            f"account with {total:.6g}, or clip the update as one vector.",
        )
    return total


def amplification(event: Event, sampler: str, seen_by_reader: bool) -> None:
    """E-AMP-VISIBLE: the event counts on a sampling that does not happen, or that the reader can watch.

    Args:
        sampler: how cohorts come about: "poisson", "truncated", "fixed"; anything else ("all", "cyclic", who is
            available) amplifies nothing. seen_by_reader: who is to be kept from learning sees which devices take part.
    """
    if not event.amplified:
        return
    if seen_by_reader and event.unit == "device":
        raise CompositionError(
            "E-AMP-VISIBLE",
            "amplification by sampling is claimed against somebody who sees which devices take part.",
            "claim it for readers of the models only; against the server account every round that a device is in.",
        )
    if event.sampling != sampler:
        raise CompositionError(
            "E-AMP-VISIBLE",
            f"the accountant assumes {event.sampling} sampling, cohorts are drawn by {sampler}: their epsilons can "
            "differ tenfold at the same noise.",
            f'account for {sampler}, or set round.sampling = "{event.sampling}".',
        )


def neighbours(mechanism: Adjacency, accounted: Adjacency) -> None:
    """E-ADJ-MIX: noise is made for one neighbouring world and accounted for another."""
    if mechanism != accounted:
        raise CompositionError(
            "E-ADJ-MIX",
            f"the noise is sized for {mechanism} neighbours, the accountant is told {accounted}; replacing an update "
            "moves a sum by up to twice as much as leaving it out.",
            f"account for {mechanism} neighbours.",
        )


def feedback_of_records(feedback: bool, unit: Unit) -> None:
    """E-EF-RECORD: error feedback on the device together with record-level privacy."""
    if feedback and unit == "record":
        raise CompositionError(
            "E-EF-RECORD",
            "feedback keeps what was not sent, and a record in it comes back in later rounds, where the accountant "
            "does not count it.",
            "leave feedback out, use a codec whose memory is the server's (sketch), or protect whole devices instead.",
        )


def correlated_noise(added_by: AddedBy) -> None:
    """E-MF-LOCAL: correlated noise by anyone but the one who holds the sum and the buffers of all rounds."""
    if added_by != "server":
        raise CompositionError(
            "E-MF-LOCAL",
            "correlated noise takes back in one round what it added in another; devices come and go, and none can take "
            "back another's share.",
            'use independent noise (privacy = "distributed" or "local"), or let a trusted server add it.',
        )


def participation_gap(gap: int, by_devices: bool, by_sampler: bool) -> None:
    """E-MF-GAP: nobody makes sure that ``gap`` rounds lie between two of one device.

    Both must: the sampler alone would be the server's word, the device's timer alone could lag behind its rounds.
    """
    if gap < 1 or (gap > 1 and not (by_devices and by_sampler)):
        lacking = " and ".join(w for w, ok in (("devices", by_devices), ("the sampler", by_sampler)) if not ok)
        raise CompositionError(
            "E-MF-GAP",
            f"the noise is sized for {gap} rounds between two of one device"
            + (f", which {lacking} would not refuse to shorten." if gap >= 1 else "."),
            'set the gap on devices and draw cohorts in turns (round.sampling = "cyclic"), or account with gap 1.',
        )


def divisor(by: Literal["expected", "count", "weights"], adjacency: Adjacency) -> None:
    """E-DIV-N, and E-WEIGHT for weights: what a noised sum is divided by must be public.

    The number of contributions is public where who takes part is ("zero_out"), and private otherwise.
    """
    if by == "weights":
        raise CompositionError(
            "E-WEIGHT", "the mean would be divided by a noised sum of weights.", "leave out weigh: all count the same."
        )
    if by == "count" and adjacency != "zero_out":
        raise CompositionError(
            "E-DIV-N",
            "the mean would be divided by how many devices came, and one device more or less would show in it.",
            "divide by the expected number of devices, which is public.",
        )


def enough(n_min: int, least: int) -> None:
    """E-NMIN: a round may end with fewer contributions than the policy asks for."""
    if n_min < least:
        raise CompositionError(
            "E-NMIN",
            f"a round may end with {n_min} contributions, and a sum of fewer than {least} says too much of each.",
            "raise round.minimum or the cohort.",
        )


def one_sum(sums: int, disjoint: bool) -> None:
    """E-NMIN: several sums over overlapping cohorts in a round, whose difference is a sum over very few."""
    if sums > 1 and not disjoint:
        raise CompositionError(
            "E-NMIN",
            f"{sums} sums of one round over overlapping cohorts: their difference is about the few devices that are in "
            "one only.",
            "sum over disjoint groups, or once.",
        )


def robust(rule: str, blind: bool) -> None:
    """E-ROBUST-SECAGG: a rule that looks at single updates, behind a sum that hides them."""
    if blind:
        raise CompositionError(
            "E-ROBUST-SECAGG",
            f"{rule} compares single updates, and secure aggregation shows their sum only.",
            "use the robust rule on visible updates, or on the sums of several groups.",
        )


def metrics(outside: Iterable[str], private: bool) -> None:
    """E-STATS: numbers about a device's data leave it beside the private sum. ``outside``: their names."""
    if private and (names := sorted(set(outside))):
        raise CompositionError(
            "E-STATS",
            f"{', '.join(names)} would leave devices without noise, and each is computed from a device's data.",
            'write metrics = "none", or make them coordinates of the update that is clipped and noised.',
        )


def separate_records(layers: Mapping[str, str], unit: Unit) -> None:
    """E-BN: a layer computes one record's output from others of its batch. ``layers``: name -> class name."""
    if unit != "record":
        return
    if mixing := sorted(name for name, kind in layers.items() if any(m in kind for m in _MIXING)):
        raise CompositionError(
            "E-BN",
            f"{', '.join(mixing)}: the statistics of a batch mix its records, so that no clip bounds what one does.",
            "use layer or group normalisation, or protect whole devices instead of records.",
        )
