"""Epsilon: every published anchor to its digits, the traps of the library, calibration, and the ledger."""

from __future__ import annotations

from math import inf, log, sqrt

import pytest

from edgewise.core.errors import CompositionError
from edgewise.privacy import accountant, card, ledger
from edgewise.privacy.accountant import calibrate, epsilon, gaussian
from edgewise.privacy.ledger import Budget, Charge, Ledger, Refused
from edgewise.privacy.spend import Event


def plain(z: float) -> Event:
    return Event("gaussian", "zero_out", z=z)


def poisson(q: float, z: float) -> Event:
    return Event("gaussian", "add_remove", z=z, sampling="poisson", rate=q)


def zcdp(rho: float) -> Event:
    return Event("zcdp", "zero_out", rho=rho)


def fixed(z: float) -> Event:
    """100 of 10,000, replace-one; z = sigma / C, half of which is sigma over the distance of two updates."""
    return Event("gaussian", "replace_one", z=z / 2, sampling="fixed", population=10_000, cohort=100)


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
def test_anchors(event: Event, rounds: int, delta: float, expected: float) -> None:
    digits = 5e-4 if expected == 15.557 else 5.1e-5
    assert epsilon({event: rounds}, delta) == pytest.approx(expected, abs=digits)


@pytest.mark.parametrize(("cap", "expected"), [(110, 6.36), (130, 3.16), (140, 1.443), (150, 1.3282), (160, 1.3265)])
def test_truncated_cohorts(cap: int, expected: float) -> None:
    event = Event("gaussian", "add_remove", z=1.0, sampling="truncated", rate=0.01, population=10_000, cap=cap)
    found = epsilon({event: 500}, 1e-5, accountant.COARSE)
    assert found == pytest.approx(expected, abs=5 * 10 ** -len(str(expected).split(".")[1]))


def test_gaussian_is_exact() -> None:
    assert gaussian(1.0, 1e-5) == pytest.approx(4.377178, abs=5e-7)
    for eps, delta, z in ((1.0, 1e-5, 3.730632), (1.0, 1e-6, 4.224679), (0.5, 1e-6, 8.057618)):
        assert gaussian(z, delta) == pytest.approx(eps, abs=1e-6)
    # k equal releases are one with z / sqrt(k), and unequal ones add up by 1 / z^2.
    assert epsilon({plain(2.0): 4}, 1e-5) == pytest.approx(gaussian(1.0, 1e-5))
    assert epsilon({plain(sqrt(2.0)): 1, plain(2.0): 2}, 1e-5) == pytest.approx(gaussian(1.0, 1e-5))


def test_published_values_come_from_the_conversion_of_their_time() -> None:
    """rdp + log(1 / delta) / (alpha - 1), before 2020."""
    import dp_accounting as dpa
    from dp_accounting import rdp

    for q, z, rounds, expected in (
        (0.01, 4.0, 10_000, 1.2586), (256 / 60000, 1.3, 3515, 1.1921),
        (256 / 60000, 1.1, 14062, 3.0083), (256 / 60000, 0.7, 10546, 7.1013),
    ):  # fmt: skip
        orders = [1 + x / 10.0 for x in range(1, 100)] + list(range(11, 64)) + [128, 256, 512]
        a = rdp.RdpAccountant(orders)
        a.compose(dpa.PoissonSampledDpEvent(q, dpa.GaussianDpEvent(z)), rounds)
        assert min(r - log(1e-5) / (o - 1) for o, r in zip(orders, a._rdp, strict=True)) == pytest.approx(
            expected, abs=2e-3
        )


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
    assert epsilon({Event("gaussian", "replace_one", z=1.0): 1}, 1e-5) == pytest.approx(4.377178, abs=1e-6)
    assert epsilon({Event("gaussian", "replace_one", z=0.5): 1}, 1e-5) == pytest.approx(9.997, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "z"), [(1, 1.1461), (2, 0.8519), (4, 0.6763), (8, 0.5416)])
def test_calibration_with_poisson(target: float, z: float) -> None:
    assert calibrate(lambda z: {poisson(0.01, z): 500}, target, 1e-5) == pytest.approx(z, rel=1.2e-3)


@pytest.mark.parametrize(("target", "z"), [(1, 8.3419), (2, 4.4583), (4, 2.4176), (8, 1.3422)])
def test_calibration_without_amplification(target: float, z: float) -> None:
    found = calibrate(lambda z: {plain(z): 5}, target, 1e-5)
    assert found == pytest.approx(z, rel=1e-3)
    assert epsilon({plain(found): 5}, 1e-5) <= target


@pytest.mark.slow
@pytest.mark.parametrize(("target", "z"), [(1, 4.0045), (2, 2.4262), (4, 1.6008), (8, 1.2422)])
def test_calibration_without_replacement(target: float, z: float) -> None:
    assert calibrate(lambda z: {fixed(z): 500}, target, 1e-5) == pytest.approx(z, rel=1.2e-3)


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
        Event(**{"kind": "gaussian", "z": 1.0, **wrong})  # type: ignore[arg-type]
    assert caught.value.code == "E-ADJ-MIX"


def test_events_survive_the_ledgers_rows() -> None:
    for event in (plain(1.5), poisson(0.1, 1.0), zcdp(0.3), fixed(2.0)):
        assert Event.from_plain(event.to_plain()) == event


def test_a_ledger_refuses_what_exceeds_the_budget() -> None:
    book, event = Ledger(Budget(epsilon({plain(4.0): 3}, 1e-5), 1e-5)), plain(4.0)
    for round in range(3):
        after = ledger.charge(book, Charge(round, "a", 0, event))
        assert isinstance(after, Ledger)
        book = after
    refused = ledger.charge(book, Charge(3, "a", 0, event))
    assert isinstance(refused, Refused)
    assert refused.epsilon > book.budget.epsilon
    assert ledger.charge(book, Charge(2, "a", 0, event)) == book  # the same attempt again costs nothing
    assert isinstance(ledger.charge(book, Charge(2, "b", 0, event)), Refused)  # another attempt does
    assert ledger.spent(book.charges, 1e-5) == pytest.approx(book.budget.epsilon)


def test_disjoint_cohorts_do_not_add_up() -> None:
    charges = [Charge(i, "a", i % 4, plain(2.0)) for i in range(8)]
    assert ledger.spent(charges, 1e-5) == pytest.approx(epsilon({plain(2.0): 2}, 1e-5))
    assert ledger.spent([Charge(8, "a", 0, plain(2.0)), *charges], 1e-5) == pytest.approx(
        epsilon({plain(2.0): 3}, 1e-5)
    )


def test_fewer_honest_devices_cost_what_the_table_says() -> None:
    table = dict(card.degradation(1.0, 70, 1e-5))
    assert table[70] == pytest.approx(4.377, abs=1e-3)
    assert table[50] == pytest.approx(5.3, abs=0.05)
    assert table[20] == pytest.approx(9.2, abs=0.05)
    assert table[5] == pytest.approx(22, abs=0.5)
    assert table[1] == pytest.approx(70, abs=1.0)
    assert card.words(None, 1e-5) == card.words(inf, 1e-5) == "nothing is promised"
