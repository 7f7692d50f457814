"""Laws of counting: each hidden sum is sized for the most corrupt devices that its server can bring into it."""

from __future__ import annotations

from itertools import combinations
from math import ceil, floor
from typing import Any

import numpy as np
import pytest
from long import examples
from scipy.stats import binom, hypergeom

from edgewise.core.errors import CompositionError
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import from_plain
from edgewise.plan.trust import FAILURE

SPEC = Spec.of([("w", (40,), "float32")])
GRID = [{"kind": "clip", "l2": 1.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}]
LADDER = {"codec": "adaptive", "stage": GRID[:1], "adaptive": {"ladder": ["masked 8 bit", "masked 4 bit"]}}
MERGES: dict[str, dict[str, Any]] = {
    "secure_sum": {"merge": {"kind": "secure_sum"}},
    "shared_sum": {"merge": {"kind": "shared_sum"}},
    "grouped": {"merge": {"kind": "grouped", "groups": 3}},
    "ladder": {"merge": {"kind": "secure_sum"}, **LADDER},
}
NOISE = {
    "privacy": "distributed_dp",
    "stage": [],
    "metrics": "none",
    "dp": {"epsilon": 8.0, "delta": 1e-7, "clip_l2": 1.0, "bits": 20},
}
every = pytest.mark.parametrize("merge", MERGES)
pytestmark = pytest.mark.long
TRIES, MOST = examples(16, 120), examples(400, 3000)  # recipes, devices


def drawn(rng: np.random.Generator, population: int) -> dict[str, Any]:
    """A way of sampling with a cohort that is not small, so that many of them compile."""
    kind = str(rng.choice(["all", "fixed", "cyclic", "poisson"]))
    one = {"sampling": kind, "minimum": float(rng.uniform(0.3, 1.0)), "rounds": 20}
    if kind != "all":
        one["cohort"] = int(rng.integers(max(2, population // 3), population + 1))
    if kind == "fixed":
        one["overselect"] = float(rng.uniform(1.0, 1.4))
    return one


def plans(merge: str, server: str, seed: int, populations: tuple[int, int], tries: int = TRIES) -> list[Plan]:
    """Compile random recipes, and give the plans of those that compile."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(tries):
        population = int(rng.integers(*populations))
        trust = {"malicious_fraction": float(rng.choice([0.0, 0.01, 0.02, 0.05, 0.1, 0.2])), "server": server}
        if merge != "shared_sum":
            trust["dropout_fraction"] = float(rng.choice([0.0, 0.05, 0.1]))
        plain = {"privacy": "hidden", "stage": GRID, "trainable": {"kind": "full"}, "metrics": "none", "trust": trust}
        plain |= {"round": drawn(rng, population), **MERGES[merge]}
        try:
            found.append(compile(from_plain(plain), SPEC, population, BUILT_IN))
        except CompositionError as e:
            if e.code not in ("E-NMIN", "E-ROBUST-SECAGG"):
                raise
    assert len(found) >= tries // 8, "the law was hardly tried"
    return found


def exist(plan: Plan) -> int:
    return floor(plan.recipe.trust.malicious_fraction * plan.sampling.population + 1e-9)


@every
def test_no_cohort_that_a_lying_server_picks_has_fewer_honest_devices_in_its_smallest_sum(merge: str) -> None:
    """All cohorts and all sums of small populations; corrupt are the last devices, which is no loss of generality."""
    for plan in plans(merge, "malicious", 1, (6, 17)):
        for pipe in plan.rung_pipelines or plan.pipelines:
            quorum, devices = pipe.encoded.quorum, range(plan.sampling.population)
            honest = plan.sampling.population - exist(plan)
            worst = min(sum(d < honest for d in one) for one in combinations(devices, quorum.n_min))
            assert quorum.honest == worst


@every
@pytest.mark.parametrize("server", ["malicious", "curious"])
def test_the_smallest_sum_hides_honest_devices_and_its_policy_allows_for_all_corrupt_ones(
    merge: str, server: str
) -> None:
    for plan in plans(merge, server, 2, (10, MOST)):
        quorum = (plan.rung_pipelines or plan.pipelines)[0].encoded.quorum
        most, least = quorum.corrupt, plan.secagg(0, 0 if plan.rung_pipelines else None).n_min
        assert least == quorum.n_min >= 2
        assert quorum.honest >= 2
        assert most == exist(plan) or most == plan.sampling.invite or server == "curious"
        if merge == "shared_sum":
            continue
        assert least > 3 * most
        policy = plan.secagg(0, 0 if plan.rung_pipelines else None).policy
        assert all(floor(policy.corrupt * n + 1e-9) >= most for n in range(least, plan.sampling.population))


@every
def test_cohorts_and_groups_that_are_drawn_honestly_hold_more_corrupt_devices_never(merge: str) -> None:
    """The bound fails for at most one draw in 2^40."""
    for plan in plans(merge, "curious", 3, (20, MOST)):
        s, bad = plan.sampling, exist(plan)
        most = (plan.rung_pipelines or plan.pipelines)[0].encoded.quorum.corrupt
        if s.kind == "poisson":
            of = lambda m: binom.sf(m, bad, s.rate)  # noqa: B023, E731
        else:
            of = lambda m: hypergeom.sf(m, s.population, bad, s.invite)  # noqa: B023, E731
        if merge != "grouped":
            assert of(most) <= FAILURE
            continue
        inside = next(m for m in range(bad + 1) if of(m) <= FAILURE)
        for n in {s.minimum, (s.minimum + s.invite) // 2, s.invite}:
            assert hypergeom.sf(most, n, min(inside, n), ceil(n / 3)) <= FAILURE


@pytest.mark.parametrize("merge", ["secure_sum", "grouped", "ladder"])
def test_a_lying_server_cannot_have_both_secrets_of_a_device(merge: str) -> None:
    """2 t > holders + corrupt holders. Otherwise it could get seed shares from some and key shares from others."""
    graphs = 0
    for plan in plans(merge, "malicious", 4, (10, MOST)):
        rung = 0 if plan.rung_pipelines else None
        params, most = plan.secagg(0, rung), exist(plan)
        sizes = {params.n_min, plan.sampling.largest} if merge != "grouped" else {params.n_min}
        for n in sizes:
            k, t = params.policy.shape(n)
            if k == n - 1:
                assert 2 * t > n + min(n, most)
            else:
                graphs += 1
                assert n * hypergeom.sf(2 * t - k - 1, n - 1, min(most, n - 1), k) <= 2.0**-80
    assert graphs or merge == "grouped"


@every
@pytest.mark.parametrize("server", ["malicious", "curious"])
def test_noise_is_sized_for_the_honest_devices_of_the_smallest_sum(merge: str, server: str) -> None:
    if merge == "ladder":
        pytest.skip("a ladder is for hidden sums without noise")
    trust = {"malicious_fraction": 0.015, "server": server}
    cyclic = {"rounds": 4, "sampling": "cyclic", "cohort": 500, "minimum": 0.9}
    plain = {**NOISE, **MERGES[merge], "trainable": {"kind": "full"}, "trust": trust, "round": cyclic}
    plan = compile(from_plain(plain), SPEC, 2000, BUILT_IN)
    encoded, card = plan.at(0).encoded, plan.spend.card  # type: ignore[union-attr]
    assert card.honest == encoded.noise.honest == encoded.quorum.honest
    if server == "malicious":
        assert encoded.noise.honest == encoded.quorum.n_min - 30
    else:
        assert encoded.noise.honest > encoded.quorum.n_min - 30
    together = encoded.noise.std * encoded.noise.honest**0.5
    assert 1.0 <= together / plan.spend.z < 1.05  # type: ignore[union-attr]


@pytest.mark.parametrize(("kind", "needed"), [("secure_sum", 39), ("shared_sum", 12)])
def test_smaller_sums_are_refused(kind: str, needed: int) -> None:
    def least(minimum: float) -> Plan:
        plain = {"privacy": "hidden", "stage": GRID, "trainable": {"kind": "full"}, "merge": {"kind": kind}}
        return compile(from_plain({**plain, "round": {"minimum": minimum}}), SPEC, 100, BUILT_IN)

    assert least(needed / 100).secagg(0).n_min == needed
    for fewer in (2, needed - 1):
        with pytest.raises(CompositionError, match="10 may be corrupt") as caught:
            least(fewer / 100)
        assert caught.value.code == "E-NMIN"
        assert "trust.malicious_fraction" in caught.value.fix
