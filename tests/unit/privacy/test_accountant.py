"""Epsilon: every published anchor to its digits, the traps of the library, calibration, and the ledger."""

from __future__ import annotations

import json
from math import inf, log, sqrt

import pytest

from edgewise.core.errors import CompositionError
from edgewise.privacy import accountant, card, distributed, ledger, spend
from edgewise.privacy.accountant import (
    calibrate,
    epsilon,
    epsilon_renyi,
    gaussian_epsilon,
    renyi_divergences,
    safe_poisson_cap,
)
from edgewise.privacy.ledger import Budget, Ledger, LedgerEntry, OverBudget
from edgewise.privacy.spend import PrivacyEvent


def plain(z: float) -> PrivacyEvent:
    return PrivacyEvent("gaussian", "zero_out", z=z)


def poisson(q: float, z: float) -> PrivacyEvent:
    return PrivacyEvent("gaussian", "add_remove", z=z, sampling="poisson", rate=q)


def zcdp(rho: float) -> PrivacyEvent:
    return PrivacyEvent("zcdp", "zero_out", rho=rho)


def fixed(z: float) -> PrivacyEvent:
    """100 of 10,000, replace-one; z = sigma / C, half of which is sigma over the distance of two updates."""
    return PrivacyEvent("gaussian", "replace_one", z=z / 2, sampling="fixed", population=10_000, cohort=100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "rounds", "delta", "expected"),
    [
        (poisson(0.01, 4.0), 10_000, 1e-5, 0.9470),  # Abadi et al. 2016, MNIST
        (poisson(256 / 60000, 1.3), 3515, 1e-5, 0.8645),  # TF-Privacy tutorial
        (poisson(256 / 60000, 1.1), 14062, 1e-5, 2.3817),
        (poisson(256 / 60000, 0.7), 10546, 1e-5, 5.6394),
        (poisson(0.01, 1.0), 500, 1e-5, 1.3261),
        (poisson(0.01, 0.6), 500, 1e-5, 5.8002),
        (poisson(0.001, 0.8), 2000, 1e-8, 1.1117),
        (plain(4.0), 100, 1e-5, 13.2067),
        (zcdp(0.81), 1, 1e-10, 8.9223),  # Gboard, es
        (zcdp(0.0314124168), 100, 1e-6, 15.3767),  # distributed discrete Gaussian
        (zcdp(0.0312918648), 100, 1e-6, 15.3405),
        (zcdp(0.0078464673), 100, 1e-6, 6.7515),
        (fixed(1.0), 500, 1e-5, 15.557),  # the same noise as Poisson's 1.33: fixed cohorts are not Poisson
    ],
)
def test_anchors(event: PrivacyEvent, rounds: int, delta: float, expected: float) -> None:
    digits = 5e-4 if expected == 15.557 else 5.1e-5
    assert epsilon({event: rounds}, delta) == pytest.approx(expected, abs=digits)


@pytest.mark.parametrize(
    ("cap", "expected"),
    [*(pytest.param(*case, marks=pytest.mark.slow) for case in ((110, 6.36), (130, 3.16), (140, 1.443), (150, 1.3282))),
     (160, 1.3265)],
)  # fmt: skip
def test_truncated_cohorts(cap: int, expected: float) -> None:
    event = PrivacyEvent("gaussian", "add_remove", z=1.0, sampling="truncated", rate=0.01, population=10_000, cap=cap)
    found = epsilon({event: 500}, 1e-5, accountant.COARSE)
    assert found == pytest.approx(expected, abs=5 * 10 ** -len(str(expected).split(".")[1]))


def test_gaussian_is_exact() -> None:
    assert gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.377178, abs=5e-7)
    for eps, delta, z in ((1.0, 1e-5, 3.730632), (1.0, 1e-6, 4.224679), (0.5, 1e-6, 8.057618)):
        assert gaussian_epsilon(z, delta) == pytest.approx(eps, abs=1e-6)
    # k equal releases are one with z / sqrt(k), and unequal ones add up by 1 / z^2.
    assert epsilon({plain(2.0): 4}, 1e-5) == pytest.approx(gaussian_epsilon(1.0, 1e-5))
    assert epsilon({plain(sqrt(2.0)): 1, plain(2.0): 2}, 1e-5) == pytest.approx(gaussian_epsilon(1.0, 1e-5))


@pytest.mark.parametrize(
    ("q", "z", "rounds", "published", "today"),
    [
        (0.01, 4.0, 10_000, 1.2586, 1.0355),  # Abadi et al. 2016, printed as 1.26
        (256 / 60000, 1.3, 3515, 1.1921, 0.9544),  # TF-Privacy tutorial, printed as 1.19, 3.01, 7.10
        (256 / 60000, 1.1, 14062, 3.0083, 2.5966),
        (256 / 60000, 0.7, 10546, 7.1013, 6.3195),
    ],
)
def test_published_values_come_from_the_conversion_of_their_time(
    q: float, z: float, rounds: int, published: float, today: float
) -> None:
    """rdp + log(1 / delta) / (alpha - 1), before 2020."""
    orders, divergences = renyi_divergences({poisson(q, z): rounds})
    assert min(divergences - log(1e-5) / (orders - 1)) == pytest.approx(published, abs=5.1e-5)
    assert epsilon_renyi({poisson(q, z): rounds}, 1e-5) == pytest.approx(today, abs=5.1e-5)


@pytest.mark.slow
def test_the_librarys_replace_one_trap_is_not_ours() -> None:
    """dp-accounting gives two answers for one Gaussian under REPLACE_ONE; ours is the exact one of the given z."""
    import dp_accounting as dpa
    from dp_accounting import pld, rdp

    relation = dpa.NeighboringRelation.REPLACE_ONE
    both = []
    for a in (rdp.RdpAccountant(neighboring_relation=relation), pld.PLDAccountant(neighboring_relation=relation)):
        a.compose(dpa.GaussianDpEvent(1.0))
        both.append(a.get_epsilon(1e-5))
    assert both[0] == pytest.approx(4.73, abs=0.01)
    assert both[1] == pytest.approx(9.997, abs=0.01)
    assert epsilon({PrivacyEvent("gaussian", "replace_one", z=1.0): 1}, 1e-5) == pytest.approx(4.377178, abs=1e-6)
    assert epsilon({PrivacyEvent("gaussian", "replace_one", z=0.5): 1}, 1e-5) == pytest.approx(9.997, abs=0.01)


@pytest.mark.long(sample=2)
@pytest.mark.slow
@pytest.mark.parametrize(("target", "z"), [(1, 1.1461), (2, 0.8519), (4, 0.6763), (8, 0.5416)])
def test_calibration_with_poisson(target: float, z: float) -> None:
    assert calibrate(lambda z: {poisson(0.01, z): 500}, target, 1e-5) == pytest.approx(z, rel=1.2e-3)


@pytest.mark.parametrize(("target", "z"), [(1, 8.3419), (2, 4.4583), (4, 2.4176), (8, 1.3422)])
def test_calibration_without_amplification(target: float, z: float) -> None:
    found = calibrate(lambda z: {plain(z): 5}, target, 1e-5)
    assert found == pytest.approx(z, rel=1e-3)
    assert epsilon({plain(found): 5}, 1e-5) <= target


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize(("target", "z"), [(1, 4.0045), (2, 2.4262), (4, 1.6008), (8, 1.2422)])
def test_calibration_without_replacement(target: float, z: float) -> None:
    assert calibrate(lambda z: {fixed(z): 500}, target, 1e-5) == pytest.approx(z, rel=1.2e-3)


@pytest.mark.slow
def test_an_epsilon_that_promises_nothing_costs_no_memory() -> None:
    """A device computes it from facts that a server wrote. The distribution would have more than 10^9 steps."""
    many = {poisson(0.5, 1.0): 4_000_000}
    assert epsilon(many, 1e-5) == epsilon_renyi(many, 1e-5) > 1e5
    assert epsilon({spend.truncated_poisson_event(1.0, 0.5, 100, 60): 4_000_000}, 1e-5) == inf
    less = {poisson(0.01, 4.0): 20}
    assert epsilon(less, 1e-5) < 0.99 * epsilon_renyi(less, 1e-5), "what promises something is as tight as before"


def test_no_noise_is_no_privacy() -> None:
    assert epsilon({plain(0.0): 1}, 1e-5) == inf
    assert epsilon({zcdp(0.0): 1}, 1e-5) == inf
    assert epsilon({}, 1e-5) == 0.0
    assert epsilon({plain(1.0): 0}, 1e-5) == 0.0
    with pytest.raises(ValueError, match="no noise"):
        calibrate(lambda z: {plain(1.0): 100}, 0.1, 1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"adjacency": "zero_out", "sampling": "poisson"},
        {"adjacency": "add_remove", "sampling": "fixed"},
        {"adjacency": "replace_one", "sampling": "truncated"},
        {"kind": "zcdp", "adjacency": "add_remove", "sampling": "poisson"},
    ],
)
def test_amplification_for_other_neighbours_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(CompositionError) as caught:
        PrivacyEvent(**{"kind": "gaussian", "z": 1.0, **wrong})  # type: ignore[arg-type]
    assert caught.value.code == "E-ADJ-MIX"


def test_events_survive_the_ledgers_rows() -> None:
    for event in (plain(1.5), poisson(0.1, 1.0), zcdp(0.3), fixed(2.0)):
        assert PrivacyEvent.from_plain(event.to_plain()) == event


def test_a_ledger_refuses_what_exceeds_the_budget() -> None:
    book, event = Ledger(Budget(epsilon({plain(4.0): 3}, 1e-5), 1e-5)), plain(4.0)
    for round in range(3):
        after = ledger.charge_ledger(book, LedgerEntry(round, "a", 0, event))
        assert isinstance(after, Ledger)
        book = after
    refused = ledger.charge_ledger(book, LedgerEntry(3, "a", 0, event))
    assert isinstance(refused, OverBudget)
    assert refused.epsilon > book.budget.epsilon
    assert ledger.charge_ledger(book, LedgerEntry(2, "a", 0, event)) == book  # the same attempt again costs nothing
    assert isinstance(ledger.charge_ledger(book, LedgerEntry(2, "b", 0, event)), OverBudget)  # another attempt does
    assert ledger.spent_epsilon(book.charges, 1e-5) == pytest.approx(book.budget.epsilon)


def test_disjoint_cohorts_do_not_add_up() -> None:
    charges = [LedgerEntry(i, "a", i % 4, plain(2.0)) for i in range(8)]
    assert ledger.spent_epsilon(charges, 1e-5) == pytest.approx(epsilon({plain(2.0): 2}, 1e-5))
    assert ledger.spent_epsilon([LedgerEntry(8, "a", 0, plain(2.0)), *charges], 1e-5) == pytest.approx(
        epsilon({plain(2.0): 3}, 1e-5)
    )


def test_fewer_honest_devices_cost_what_the_table_says() -> None:
    table = dict(card.epsilon_degradation(1.0, 70, 1e-5))
    assert table[70] == pytest.approx(4.377, abs=1e-3)
    assert table[50] == pytest.approx(5.3, abs=0.05)
    assert table[20] == pytest.approx(9.2, abs=0.05)
    assert table[5] == pytest.approx(22, abs=0.5)
    assert table[1] == pytest.approx(70, abs=1.0)
    assert card.promise_words(None, 1e-5) == card.promise_words(inf, 1e-5) == "nothing is promised"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "rounds", "delta", "expected"),
    [
        (poisson(0.01, 1.0), 500, 1e-5, 1.6529),
        (poisson(0.01, 0.6), 500, 1e-5, 6.9522),
        (poisson(0.001, 0.8), 2000, 1e-8, 2.1186),
        (plain(4.0), 100, 1e-5, 14.1322),
        (plain(4.0), 100, 1e-6, 15.3280),  # what distributed noise is compared with
        (plain(8.0), 100, 1e-6, 6.7346),
    ],
)
def test_anchors_by_renyi_divergences(event: PrivacyEvent, rounds: int, delta: float, expected: float) -> None:
    assert epsilon_renyi({event: rounds}, delta) == pytest.approx(expected, abs=5.1e-5)
    assert epsilon({event: rounds}, delta) <= expected


@pytest.mark.parametrize(("z", "rounds", "expected"), [(7.0, 2000, 2.2811), (8.83, 1600, 1.7732)])
def test_tree_anchors(z: float, rounds: int, expected: float) -> None:
    assert epsilon({spend.tree_event(z, rounds): 1}, 1e-6) == pytest.approx(expected, abs=5.1e-5)


@pytest.mark.parametrize(
    ("n", "honest", "z", "clip", "dim", "bits", "expected"),
    [
        (100, 70, 4, 1.0, 2**20, 18, 15.3767),
        (32, 23, 4, 1.0, 2**22, 20, 15.3405),
        (1000, 850, 8, 0.5, 2**22, 20, 6.7515),
    ],
)
def test_anchors_of_distributed_noise(
    n: int, honest: int, z: float, clip: float, dim: int, bits: int, expected: float
) -> None:
    """From the sizes of a round to its epsilon, 100 rounds."""
    sizes = distributed.size_noise(n, honest, z, clip, dim, bits, 4.0)
    assert epsilon({spend.discrete_event(sizes.rho, sizes.xi): 100}, 1e-6) == pytest.approx(expected, abs=5.1e-5)


def test_xi_counts() -> None:
    """Both terms of zCDP: xi is added at every order, so epsilon grows by xi at least."""
    assert epsilon({spend.discrete_event(0.1, 0.5): 2}, 1e-6) == pytest.approx(
        epsilon({spend.discrete_event(0.1): 2}, 1e-6) + 1.0
    )


@pytest.mark.parametrize(("z", "expected"), [(3.731, 1.0), (1.081, 4.0), (0.600, 8.0)])
def test_anchors_of_local_noise(z: float, expected: float) -> None:
    """Noise over what one device can change; over the clip it is twice as much, since any update may be the other."""
    assert epsilon({spend.local(2.0 * z): 1}, 1e-5) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "poisson_pld", "poisson_rdp", "without_replacement", "none"),
    [
        (1, 1.1461, 1.2583, 4.0045, 8.3419),
        (2, 0.8519, 0.9271, 2.4262, 4.4583),
        (4, 0.6763, 0.7219, 1.6008, 2.4176),
        (8, 0.5416, 0.5729, 1.2422, 1.3422),
    ],
)
def test_published_calibrations_meet_their_targets(
    target: float, poisson_pld: float, poisson_rdp: float, without_replacement: float, none: float
) -> None:
    """The noise of the table, put back in; the published one was found to 0.001, from above."""
    assert epsilon({poisson(0.01, poisson_pld): 500}, 1e-5, accountant.COARSE) == pytest.approx(target, rel=1e-3)
    assert epsilon_renyi({poisson(0.01, poisson_rdp): 500}, 1e-5) == pytest.approx(target, rel=1e-3)
    assert epsilon({fixed(without_replacement): 500}, 1e-5) == pytest.approx(target, rel=3e-3)
    assert epsilon({plain(none): 5}, 1e-5) == pytest.approx(target, rel=1e-4)


def test_made_events_keep_the_convention() -> None:
    """z of an event is over the distance of two neighbours' sums; these two are made from noise over the clip."""
    assert spend.fixed_size_event(1.0, 10_000, 100) == fixed(1.0)
    assert spend.local(1.0) == PrivacyEvent("gaussian", "replace_one", z=0.5)
    assert spend.poisson(1.0, 0.01) == poisson(0.01, 1.0)
    assert spend.gaussian(3.0) == plain(3.0)
    assert spend.discrete_event(0.81) == zcdp(0.81)


@pytest.mark.slow
def test_calibration_is_from_above_and_tight() -> None:
    def one(z: float) -> dict[PrivacyEvent, int]:
        return {poisson(0.01, z): 500}

    z = calibrate(one, 2.0, 1e-5)
    assert epsilon(one(z), 1e-5, accountant.COARSE) <= 2.0
    assert epsilon(one(z * 0.999), 1e-5, accountant.COARSE) > 2.0
    assert z == pytest.approx(0.8519, rel=1e-3)


@pytest.mark.slow
def test_calibration_measures_few_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bisection alone would take 11 of them, each of which may be a second."""
    from dp_accounting.pld import privacy_loss_distribution as loss

    measured: list[float] = []
    original = loss.from_gaussian_mechanism

    def counted(z: float, **settings: object) -> object:
        measured.append(z)
        return original(z, **settings)

    monkeypatch.setattr(loss, "from_gaussian_mechanism", counted)
    z = calibrate(lambda z: {poisson(0.3, z): 7}, 2.0, 1e-6, grid=1e-2)
    assert len(measured) <= 8
    assert z in measured, "the answer itself was measured"
    assert epsilon({poisson(0.3, z): 7}, 1e-6, 1e-2) <= 2.0 < epsilon({poisson(0.3, z / 1.001): 7}, 1e-6, 1e-2)


@pytest.mark.slow
def test_calibration_sees_what_truncation_costs() -> None:
    """Renyi divergences, which find the neighbourhood, do not: the answer lies outside it."""

    def one(z: float) -> dict[PrivacyEvent, int]:
        return {spend.truncated_poisson_event(z, 0.01, 10_000, 130): 500}

    z = calibrate(one, 2.0, 1e-5)
    assert z > 1.2 * 0.9271
    assert epsilon(one(z), 1e-5, accountant.COARSE) <= 2.0 < epsilon(one(0.999 * z), 1e-5, accountant.COARSE)


def test_a_safe_cap_costs_nothing() -> None:
    assert safe_poisson_cap(10_000, 0.01, 500, 1e-5) == 160  # epsilon 1.3265, as without a cap
    assert safe_poisson_cap(10, 0.5, 100, 1e-5) == 10
    assert safe_poisson_cap(10, 1.0, 100, 1e-5) == 10
    # by hand: P[B = 2] = 0.01, P[B >= 1] = 0.19 of 2 devices at 0.1
    assert [safe_poisson_cap(2, 0.1, 1, delta) for delta in (0.5, 0.1, 0.005)] == [1, 2, 2]


@pytest.mark.slow
def test_amplified_epsilons_are_for_the_release_only() -> None:
    event = poisson(0.01, 1.0)
    with pytest.raises(CompositionError) as caught:
        epsilon({event: 10}, 1e-5, against="server")
    assert caught.value.code == "E-AMP-VISIBLE"
    assert epsilon({event.seen: 10}, 1e-5, against="server") == pytest.approx(gaussian_epsilon(1 / sqrt(10), 1e-5))
    # sampling without replacement: z of the event is over the distance of two updates, with or without the sampling
    assert epsilon({fixed(2.0).seen: 1}, 1e-5, against="server") == pytest.approx(gaussian_epsilon(1.0, 1e-5))
    # which records a device draws, the server does not see
    records = spend.record_level(1.0, 0.01, 50)
    assert records.seen == records
    found = epsilon({records: 10}, 1e-5, accountant.COARSE, against="server")
    assert found == pytest.approx(epsilon({event: 500}, 1e-5, accountant.COARSE))
    assert found == pytest.approx(1.3265, abs=5e-5)


def test_two_samplings_of_one_noise_are_the_same_thing_to_the_server() -> None:
    seen: dict[PrivacyEvent, int] = {}
    for event, n in {poisson(0.01, 4.0): 3, poisson(0.02, 4.0): 2}.items():
        seen[event.seen] = seen.get(event.seen, 0) + n
    assert epsilon(seen, 1e-5, against="server") == pytest.approx(gaussian_epsilon(4 / sqrt(5), 1e-5))


def test_fewer_honest_devices_promise_less() -> None:
    fewer = dict(card.epsilon_degradation(1.0, 70, 1e-6))
    assert fewer[70] == pytest.approx(gaussian_epsilon(1.0, 1e-6), abs=1e-3)
    assert fewer[20] == pytest.approx(gaussian_epsilon(sqrt(20 / 70), 1e-6), abs=1e-3)
    assert sorted(fewer.values()) == [fewer[h] for h in (70, 50, 20, 5, 1)]


def test_every_event_survives_the_ledgers_rows() -> None:
    made = [
        spend.gaussian(1.0, "replace_one"), spend.discrete_event(0.1, 1e-9), spend.poisson(1.0, 0.1), spend.local(3.0),
        spend.truncated_poisson_event(1.0, 0.1, 100, 30), spend.fixed_size_event(1.0, 100, 10), spend.matrix(1.0, 10,
            2, 3),
        spend.tree_event(2.0, 8), spend.record_level(1.0, 0.1, 7),
    ]  # fmt: skip
    for event in made:
        assert PrivacyEvent.from_plain(json.loads(json.dumps(event.to_plain()))) == event
    # rows from before an event had more fields
    assert PrivacyEvent.from_plain({"kind": "gaussian", "adjacency": "zero_out", "z": 2}) == plain(2.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"z": -1.0}, {"z": inf}, {"z": float("nan")}, {"kind": "laplace"}, {"unit": "person"}, {"steps": 0},
        {"rate": 1.5}, {"z": "1"}, {"steps": 1.0}, {"steps": True}, {"sigma": 1.0}, {"adjacency": "any"},
        {"sampling": "truncated", "adjacency": "add_remove", "population": 10, "cap": 11},
        {"sampling": "fixed", "adjacency": "replace_one", "population": 10},
    ],
)  # fmt: skip
def test_rows_that_are_no_event(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        PrivacyEvent.from_plain({"kind": "gaussian", "adjacency": "zero_out", "z": 1.0, **wrong})


def test_neighbours_of_a_mechanism_without_a_proof_are_refused() -> None:
    with pytest.raises(CompositionError) as caught:
        PrivacyEvent("tree", "add_remove", z=1.0, rounds=4)
    assert caught.value.code == "E-ADJ-MIX"
    with pytest.raises(ValueError, match="delta"):
        epsilon({plain(1.0): 1}, 0.0)
