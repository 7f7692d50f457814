"""Cohorts that devices verify: bytes of the beacon, and processor time of what each side does with it, on one core.

python benchmarks/beacon.py [--populations 1000,10000]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import bench

from edgewise.core import frame, vector
from edgewise.core.keys import derive, root
from edgewise.crypto import sign
from edgewise.engine import beacon
from edgewise.engine.ports import Trust
from edgewise.plan.recipe.sections import RoundSection, TrustSection
from edgewise.plan.sampling import Sampling, recipe_sampling
from edgewise.plan.trust import corrupt_most, planned_contributors

RUN, ROUNDS, FRACTION, KEY = "ab" * 32, 100, 0.02, root(1)


def seconds(work: Callable[[], object]) -> float:
    """Smallest processor seconds of three repeats."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def made(devices: tuple[str, ...], most: int) -> tuple[bytes, Trust]:
    """The beacon of the first devices, and the roster."""
    pairs = {d: sign.pair(derive(KEY, "identity", d)) for d in devices[:most]}
    values = {d: derive(KEY, "value", d) for d in pairs}
    listed = tuple(frame.Committed(device=d, commitment=beacon.commitment(RUN, d, v)) for d, v in values.items())
    anchor = beacon.anchor(KEY, ROUNDS)
    fixed = beacon.list_digest(RUN, anchor, listed)
    signed = tuple(sign.sign(pairs[d].secret, beacon.reveal_digest(fixed, d, v)) for d, v in values.items())
    whole = frame.Beacon(run=RUN, anchor=anchor, listed=listed, values=tuple(values.values()), signatures=signed)
    return frame.dump(whole), Trust(lambda d: pairs[d].public, lambda d: pairs[d].secret, roster=devices)


def measured(population: int) -> str:
    """A line of the table."""
    round = RoundSection(rounds=ROUNDS, sampling="fixed", cohort=200, overselect=1.3)
    sampling: Sampling = recipe_sampling(round, population)
    verified = TrustSection(malicious_fraction=FRACTION, cohorts="verified")
    most = planned_contributors(verified, population)
    devices = tuple(vector.digest(i.to_bytes(8, "big")) for i in range(population))
    blob, trust = made(tuple(sorted(devices)), most)

    def check() -> None:
        beacon.joint.cache_clear()
        beacon.joint(RUN, most, trust, blob)

    def draw() -> None:
        beacon.drawn.cache_clear()
        beacon.drawn(sampling, trust.roster, beacon.seed(sampling, bytes(32), 0, KEY), 0)

    alone = corrupt_most(TrustSection(malicious_fraction=FRACTION), sampling, ROUNDS)
    return (
        f"{population:,} devices: {corrupt_most(verified, sampling, ROUNDS)} corrupt in a sum at most (server alone "
        f"{alone}), {most:,} contributors, beacon {len(blob):,} bytes, check {1e3 * seconds(check):.1f} ms once, draw "
        f"{1e3 * seconds(draw):.1f} ms a round"
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--populations", default="1000,10000,100000")
    for population in parser.parse_args().populations.split(","):
        bench.note(measured(int(population)))


if __name__ == "__main__":
    main()
