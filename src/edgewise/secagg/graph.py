"""Graph of the devices that share secrets: the complete graph, or a Harary graph over a random circle."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from edgewise.secagg.messages import secagg_digest


def mask_neighbours(roster: bytes, devices: Sequence[str], k: int) -> Mapping[str, tuple[str, ...]]:
    """Find each device's neighbours, sorted.

    The devices stand on a circle in the order of H("circle", roster, device). This order is uniformly random, and every
    implementation computes the same one. A device's neighbours are the k / 2 nearest on either side. With k = n - 1
    they are all other devices. The relation is symmetric.
    Args:
        roster: ``messages.roster_digest``, which nobody can choose alone. devices: distinct. k: even, or n - 1.
    Source: Bell et al. 2020, ePrint 2020/704, algorithm 1.
    """
    n = len(devices)
    if k >= n - 1:
        return {d: tuple(sorted(other for other in devices if other != d)) for d in devices}
    circle = sorted(devices, key=lambda d: secagg_digest(b"circle", roster, d.encode()))
    near = [*range(-(k // 2), 0), *range(1, k // 2 + 1)]
    return {d: tuple(sorted(circle[(i + j) % n] for j in near)) for i, d in enumerate(circle)}


def smallest_graph_part(near: Mapping[str, Sequence[str]], devices: Collection[str]) -> int:
    """Count the devices in the smallest connected part of the graph that ``devices`` span. Without devices: 0.

    The masks of a part cancel within it. So whoever has all masked updates can read the sum of each part.
    """
    unvisited, smallest = set(devices), len(devices)
    while unvisited:
        part = [unvisited.pop()]
        for device in part:  # The list grows while the loop walks it.
            reached = unvisited.intersection(near[device])
            unvisited -= reached
            part.extend(reached)
        smallest = min(smallest, len(part))
    return smallest
