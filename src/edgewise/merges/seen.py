"""Merges that keep the contributions of a round one by one, because they compare them."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

from edgewise.core.errors import CompositionError
from edgewise.core.payload import Payload
from edgewise.core.safe_repr import outline
from edgewise.core.space import Space, Total
from edgewise.core.stage import Combine, Merge
from edgewise.core.training import DeviceId
from edgewise.merges.plain import plain_sum

_MIB = 2**20
ROW_BYTES = 20  # of each coordinate of each contribution: kept and divided in float32, then compared in float64.


class Seen(NamedTuple):
    """Accumulator: decoded contributions, one by one, as they arrived, and the devices that they came from."""

    rows: tuple[Payload, ...]
    devices: tuple[DeviceId, ...] = ()

    def __repr__(self) -> str:
        return outline(self)


def seen_merge(
    name: str,
    rule: str,
    byzantine: int | None,
    least: int,
    says: Callable[[Total], str],
    combine: Combine,
    kept: int = 0,
    parts: Callable[[Seen], list[tuple[Any, int]]] | None = None,
) -> Merge:
    """Make a merge of a rule between contributions that the server sees.

    It refuses what a sum refuses. A refused contribution leaves the accumulator unchanged.

    Args:
        rule: name of the rule, for the refusal. byzantine: number of devices that may send anything; None: any number.
        least: least number of contributions with which the rule holds against them.
        kept: number of vectors that ``combine`` keeps for the next round.
        says: total -> the sentence on the merge. What the merge keeps in memory is added to it.
        parts: as in ``Merge``. None hands out all contributions as they arrived.
    Raises:
        CompositionError(E-BYZANTINE): from ``infer``, for rounds that may have fewer.
    """
    one, kind = plain_sum(), name.split("(")[0]
    against = "" if byzantine is None else f" against {byzantine} dishonest devices"

    def infer(space: Space) -> Total:
        if space.quorum.n_min < least:
            raise CompositionError(
                "E-BYZANTINE",
                f"{kind}: {rule}{against} needs {least} updates in every round, and a round may have "
                f"{space.quorum.n_min}.",
                f"{'lower merge.byzantine, or ' if against else ''}raise round.cohort or round.minimum.",
            )
        return one.infer(space).but(sensitivity=inf)

    def init(space: Space) -> Seen:
        return Seen(())

    def add(acc: Seen, payload: Payload, space: Space) -> Seen:
        if len(acc.rows) >= space.quorum.n_max:
            raise ValueError(f"there are {len(acc.rows)} contributions, the limit")
        alone = one.add(one.init(space), payload, space)  # It refuses what a sum refuses.
        return Seen((*acc.rows, one.finish(alone, space, False)), acc.devices)

    def signed(acc: Seen, device: DeviceId) -> Seen:
        return Seen(acc.rows, (*acc.devices, device))

    def finish(acc: Payload, space: Space, precise: bool = True) -> Payload:
        return acc

    def all_parts(acc: Seen) -> list[tuple[Any, int]]:
        return [(row, 1) for row in acc.rows]

    def says_all(total: Total) -> str:
        quorum = total.space.quorum
        size = ROW_BYTES * quorum.n_max * total.space.dim / _MIB
        dishonest = "any number of" if byzantine is None else byzantine
        return (
            f"decodes each contribution, then {says(total)}, against {dishonest} dishonest of {quorum.n_min} or more; "
            f"keeps all of a round, up to {size:,.1f} MiB"
        )

    return Merge(
        name, False, says_all, infer, init, add, finish, parts=parts or all_parts, combine=combine, kept=kept,
        signed=signed,
    )  # fmt: skip
