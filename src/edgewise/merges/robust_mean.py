"""Robust mean of contributions that the server sees one by one."""

from __future__ import annotations

from math import inf
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Le

from edgewise.core.errors import CompositionError
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.safe_repr import outline
from edgewise.core.space import Space, Total
from edgewise.core.stage import Merge
from edgewise.merges import robust
from edgewise.merges.plain import plain_sum

_MIB = 2**20
ROW_BYTES = 20  # of each coordinate of each contribution: kept and divided in float32, then compared in float64.


class Seen(NamedTuple):
    """Accumulator: decoded contributions, one by one, as they arrived."""

    rows: tuple[Payload, ...]

    def __repr__(self) -> str:
        return outline(self)


@part
def robust_mean(
    byzantine: Annotated[int, Ge(1), Le(499), Doc("devices of a round that may send anything")] = 1,
    rule: Annotated[robust.RuleName, Doc("makes one update of all")] = "trimmed_mean",
    before: Annotated[robust.Before, Doc("what is done to the updates before the rule")] = "nnm",
) -> Merge:
    """Make one update of all by a rule that ``byzantine`` devices cannot move far. The server sees each update.

    Each device counts the same, whatever its weight is. Metrics are combined by the same rule, apart from the update.
    Guarantees: with at most ``byzantine`` devices that send anything, the result stays as near to the mean of the
        others as they are to one another, up to a factor of the rule (``merges.robust``). It is not the mean where
        nobody lies either: devices whose text is unlike that of the rest are cut as liars are. The result is the same
        for every order of arrival. A refused contribution leaves the accumulator unchanged.
    Algebra: sensitivity inf, so no noise can be added to the result.
    Memory: 20 bytes for each coordinate of each contribution, on the server.
    Raises: CompositionError(E-BYZANTINE) for rounds that may have too few devices for the rule.
    Source: the papers of ``merges.robust``.

    Example: ``[merge] kind = "robust_mean", byzantine = 4``.
    """
    one, least = plain_sum(), robust.least_rows(rule, byzantine)

    def infer(space: Space) -> Total:
        if space.quorum.n_min < least:
            raise CompositionError(
                "E-BYZANTINE",
                f"robust_mean: {rule} against {byzantine} dishonest devices needs {least} updates in every round, and "
                f"a round may have {space.quorum.n_min}.",
                "lower merge.byzantine, or raise round.cohort or round.minimum.",
            )
        return one.infer(space).but(sensitivity=inf)

    def init(space: Space) -> Seen:
        return Seen(())

    def add(acc: Seen, payload: Payload, space: Space) -> Seen:
        if len(acc.rows) >= space.quorum.n_max:
            raise ValueError(f"there are {len(acc.rows)} contributions, the limit")
        alone = one.add(one.init(space), payload, space)  # It refuses what a sum refuses.
        return Seen((*acc.rows, one.finish(alone, space, False)))

    def finish(acc: Payload, space: Space, precise: bool = True) -> Payload:
        return acc

    def parts(acc: Seen) -> list[tuple[Any, int]]:
        return [(row, 1) for row in acc.rows]

    def says(total: Total) -> str:
        steps = {"none": "", "nnm": " of the means of nearest updates", "arc": " after the longest updates are cut"}
        size = ROW_BYTES * total.space.quorum.n_max * total.space.dim / _MIB
        return (
            f"decodes each contribution, then takes the {rule.replace('_', ' ')}{steps[before]}, against {byzantine} "
            f"dishonest of {total.space.quorum.n_min} or more; keeps all of a round, up to {size:,.1f} MiB"
        )

    name = f"robust_mean({byzantine}, {rule}{'' if before == 'none' else f', {before}'})"
    return Merge(name, False, says, infer, init, add, finish, parts=parts, combine=robust.rule(rule, byzantine, before))
