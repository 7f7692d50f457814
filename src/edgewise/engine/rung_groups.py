"""Division of a cohort into groups, each with its own masked sum: at random, or by the rung that devices can send.

deal(("a", "b", "c", "d"), 2, key)                        two random pairs
sort({"a": 0, "b": 2, "c": 0, "d": 2}, sizes, 2, 2, key)  [(0, ["a", "c"]), (2, ["b", "d"])]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from edgewise.core.keys import Key, generator
from edgewise.core.training import DeviceId


def deal_into_groups(devices: Sequence[DeviceId], groups: int, key: Key) -> list[list[DeviceId]]:
    """Deal ``devices`` into random groups whose sizes differ by one at most. The order of ``devices`` has no effect."""
    shuffled = generator(key).permutation(sorted(devices)).tolist() if groups > 1 else list(devices)
    return [shuffled[i::groups] for i in range(groups)]


def sort_by_rung(
    best: Mapping[DeviceId, int], sizes: Sequence[float], groups: int, least: int, key: Key
) -> list[tuple[int, list[DeviceId]]]:
    """Sort devices into at most ``groups`` groups of ``least`` or more, each with the rung of its slowest member.

    Of all cuts of the devices, in the order of their rungs, it takes the one that sends the most bytes: argmax of the
    sum over groups of |group| x size of its rung. Groups with the same rung are merged.
    Args: best: number of the rung that each device asks for. sizes: bytes of each rung, decreasing. key: decides which
        of equal devices join slower ones, where a group would otherwise be too small.
    Edge cases: fewer devices than twice ``least`` are one group.
    """
    shuffled = generator(key).permutation(sorted(best)).tolist()
    order = sorted(shuffled, key=lambda device: -best[device])  # slowest device first
    n = len(order)
    starts = [i for i in range(n) if i == 0 or best[order[i]] != best[order[i - 1]]]
    cuts = sorted({at for i in starts for k in range(groups) if least <= (at := i + k * least) <= n - least})
    # gain[at]: bytes of the devices before ``at``, cut as the list beside it says; one more cut per pass.
    gain: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for _ in range(groups - 1):
        for at in reversed(cuts):
            options = [gain[at]] if at in gain else []
            options += [
                (before + (at - start) * sizes[best[order[start]]], (*made, at))
                for start, (before, made) in gain.items()
                if at - start >= least
            ]
            if options:
                gain[at] = max(options, key=lambda option: option[0])
    ends = [(before + (n - at) * sizes[best[order[at]]], made) for at, (before, made) in gain.items() if at < n]
    made = max(ends, key=lambda end: (end[0], -len(end[1])))[1] if ends else ()
    sorted_: dict[int, list[DeviceId]] = {}
    for start, stop in pairwise((0, *made, n)):
        sorted_.setdefault(best[order[start]], []).extend(order[start:stop])
    return list(sorted_.items())
