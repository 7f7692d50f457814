"""Robust mean of contributions that the server sees one by one."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le

from edgewise.core.part import Doc, part
from edgewise.core.space import Total
from edgewise.core.stage import Merge
from edgewise.merges import robust
from edgewise.merges.seen import seen_merge

Byzantine = Annotated[int, Ge(1), Le(499), Doc("devices of a round that may send anything")]
Bucket = Annotated[int, Ge(1), Le(100), Doc("updates in a random bucket, whose mean counts as one; 1 has no buckets")]
BeforeRule = Annotated[robust.Before, Doc("what is done to the updates before the rule")]


@part
def robust_mean(
    byzantine: Byzantine = 1,
    rule: Annotated[robust.RuleName, Doc("makes one update of all")] = "trimmed_mean",
    before: BeforeRule = "nnm",
    bucket: Bucket = 1,
) -> Merge:
    """Make one update of all by a rule that ``byzantine`` devices cannot move far. The server sees each update.

    Each device counts the same, whatever its weight is. Metrics are combined by the same rule, apart from the update.
    Guarantees: with at most ``byzantine`` devices that send anything, the result stays as near to the mean of the
        others as they are to one another, up to a factor of the rule (``merges.robust``). It is not the mean where
        nobody lies either: devices whose text is unlike that of the rest are cut as liars are. The result is the same
        for every order of arrival. A refused contribution leaves the accumulator unchanged.
    Algebra: sensitivity inf, so no noise can be added to the result.
    Memory: 20 bytes for each coordinate of each contribution, on the server.
    Raises: CompositionError(E-BYZANTINE) for rounds that may have too few devices, or buckets, for the rule.
    Source: the papers of ``merges.robust``.

    Example: ``[merge] kind = "robust_mean", byzantine = 4``.
    """
    least = least_robust_devices(robust.least_rows(rule, byzantine), bucket)

    def says(total: Total) -> str:
        return f"takes the {rule.replace('_', ' ')}{merge_words_before(before, bucket)}"

    name = f"robust_mean({byzantine}, {rule}{'' if before == 'none' else f', {before}'}{bucket_in_name(bucket)})"
    combine = robust.merge_of_rule(robust.rule(rule, byzantine, before), bucket)
    return seen_merge(name, f"{rule}{bucket_in_name(bucket)}", byzantine, least, says, combine)


def least_robust_devices(rows: int, bucket: int) -> int:
    """Return the least number of contributions that fill ``rows`` buckets. The last may have one only."""
    return (rows - 1) * bucket + 1


def bucket_in_name(bucket: int) -> str:
    """Name the buckets of a rule: ``", buckets of 2"``, or nothing for single updates."""
    return "" if bucket == 1 else f", buckets of {bucket}"


def merge_words_before(before: robust.Before, bucket: int) -> str:
    """Say what happens before a rule, for the sentence of a merge."""
    steps = {"none": "", "nnm": " of the means of nearest updates", "arc": " after the longest updates are cut"}
    return steps[before] + ("" if bucket == 1 else f", between the means of random buckets of {bucket}")
