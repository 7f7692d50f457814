"""Facts that a server chose: what a device does to look at them does not grow with what they state."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from cost import allocated, calls, traced

from edgewise.core.errors import EdgewiseError
from edgewise.core.vector import Spec
from edgewise.plan.acceptance import planned
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.facts import MOST_DEVICES, PlanFacts, canonical, parse
from edgewise.plan.recipe.recipe import from_plain
from edgewise.plan.sampling import chernoff_most
from edgewise.secagg import params
from edgewise.secagg.merge import check_secagg_sessions
from edgewise.secagg.params import SESSION_MOST, TrustPolicy

SPEC = Spec.of([("w", (40,), "float32")])
ALL, FIXED, POISSON = {"sampling": "all"}, {"sampling": "fixed"}, {"sampling": "poisson"}
CASES = [
    pytest.param({"privacy": "hidden"}, ALL, {}, marks=pytest.mark.slow),
    ({"privacy": "hidden"}, FIXED, {"malicious_fraction": 0.33}),
    ({"privacy": "hidden"}, FIXED, {"server": "curious"}),
    ({"privacy": "hidden", "codec": "adaptive"}, FIXED, {"malicious_fraction": 1e-6}),
    ({"privacy": "hidden", "merge": {"kind": "grouped", "groups": 5}}, ALL, {"server": "curious"}),
    ({"privacy": "hidden", "merge": {"kind": "shared_sum"}}, ALL, {}),
    ({"privacy": "none"}, POISSON, {}),
]


def hostile(word: dict[str, Any], sampling: dict[str, Any], trust: dict[str, Any], population: int) -> PlanFacts:
    """Facts that state a huge population and a cohort as large as it."""
    few = compile(from_plain({"privacy": "hidden"}), SPEC, 40, BUILT_IN).facts
    round = sampling if sampling is ALL else {**sampling, "cohort": population}
    asked = {"round": round, **({"trust": trust} if trust else {})}
    plain = json.loads(canonical(few)) | {"recipe": from_plain({**word, **asked}).resolved(), "population": population}
    for left_out in ("simulation", "compare", "report", "eval"):
        plain["recipe"].pop(left_out)
    return parse(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.slow
@pytest.mark.parametrize(("word", "sampling", "trust"), CASES, ids=str)
def test_facts_for_any_population_are_looked_at_in_so_much_work(
    word: dict[str, Any], sampling: dict[str, Any], trust: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions called and numbers in vectors: for as many devices as can be in a masked sum, for one more, and for as
    many as facts can state. Bytes held at once: for the last."""
    added, real = [0], params._log_masses

    def counted(n: int, good: int, k: int) -> Any:
        found = real(n, good, k)
        added[0] += found[1].size
        return found

    monkeypatch.setattr(params, "_log_masses", counted)
    for population in (SESSION_MOST, SESSION_MOST + 1, MOST_DEVICES):
        facts, added[0] = hostile(word, sampling, trust, population), 0

        def look(facts: PlanFacts = facts) -> None:
            with pytest.raises(EdgewiseError):
                planned(facts, SPEC, BUILT_IN)

        assert calls(look) <= 200_000
        assert added[0] <= 1026 * SESSION_MOST // 2
    with traced():
        assert allocated(look) <= 1_000_000


@pytest.mark.slow
def test_a_plan_looks_at_one_graph_of_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, real = [], params.fitting_threshold
    monkeypatch.setattr(params, "fitting_threshold", lambda n, k, *rest: looked.append(n) or real(n, k, *rest))
    check_secagg_sessions(TrustPolicy(0.05, 0.1), 30_000, 60_000)
    assert len(looked) == len(set(looked)) <= 2049


@pytest.mark.parametrize("server", ["malicious", "curious"])
def test_one_graph_says_whether_there_is_any(server: params.Server) -> None:
    for corrupt, dropout in ((0.0, 0.0), (0.02, 0.02), (0.1, 0.1), (0.2, 0.1), (0.25, 0.1), (0.1, 0.33), (0.33, 0.33)):
        policy = TrustPolicy(corrupt, dropout, server)
        for n in (*range(2, 300, 7), 1000, 5000):
            seen = []
            for ask in (policy.shape, policy.check):
                try:
                    ask(n)
                    seen.append("")
                except EdgewiseError as e:
                    seen.append(str(e))
            assert seen[0] == seen[1]


@pytest.mark.parametrize("n", [SESSION_MOST + 1, MOST_DEVICES])
def test_more_devices_than_one_sum_may_mask_are_refused_by_name(n: int) -> None:
    for ask in (TrustPolicy(0.0, 0.0).shape, TrustPolicy(0.0, 0.0).check):
        with pytest.raises(EdgewiseError, match=f"E-NMIN.*{n:,} devices are too many for one masked sum"):
            ask(n)
    assert TrustPolicy(0.0, 0.0).shape(SESSION_MOST)


def test_a_bound_on_draws_is_found_by_halving() -> None:
    for n, p in ((10**9, 0.3), (10**9, 1e-6), (MOST_DEVICES, 0.999)):
        found = 0

        def look(n: int = n, p: float = p) -> None:
            nonlocal found
            found = chernoff_most(n, p, 2.0**-40)

        assert calls(look) <= 10 * math.log2(n) + 20
        q = (found + 1) / n
        assert n * (q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))) >= 40 * math.log(2)
