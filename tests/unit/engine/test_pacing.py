"""Hints to come back spread any number of devices, follow the active ones, and never exceed what a device accepts."""

from __future__ import annotations

import numpy as np

from edgewise.drivers.http.answers import LONGEST_WAIT_S
from edgewise.engine.pacing import LEAST_S, LONGEST_S, Pace, check_in_pauses, longest_s, poll_s


def test_the_example() -> None:
    waits, next_s = check_in_pauses(0.0, 100.0, np.zeros(3), rate=2.0)
    assert (waits.tolist(), next_s) == ([30.0, 30.5, 31.0], 131.5)


def test_a_herd_comes_back_at_the_rate_and_stays_apart() -> None:
    pace, rng = Pace(rate=50.0), np.random.default_rng(0)
    due, at_s = np.zeros(5000), 0.0
    load = []
    for at_s in range(400):
        asks = due <= at_s
        due[asks] = at_s + pace.pauses(float(at_s), rng.random(int(asks.sum())))
        load.append(int(asks.sum()))
    assert load[0] == 5000
    assert max(load[1:]) <= 51
    assert np.mean(load[100:]) > 45, "the wait is as long as the devices need, and no longer"


def test_few_devices_wait_the_least_and_a_full_queue_spreads_the_rest() -> None:
    assert Pace(rate=1000.0).pause_s(7.0, 0.5) == LEAST_S
    draws = np.random.default_rng(1).random(10_000)
    waits, next_s = check_in_pauses(-np.inf, 0.0, draws, rate=1.0)
    beyond = waits[871:]
    assert waits[870] == LONGEST_S
    assert next_s == LONGEST_S + 1
    assert beyond.min() >= LONGEST_S / 2
    assert waits.max() == LONGEST_S < LONGEST_WAIT_S
    counts = np.histogram(beyond, 10, (LONGEST_S / 2, LONGEST_S))[0]
    assert counts.max() < 1.15 * counts.mean()


def test_one_after_the_other_gets_what_all_get_at_once() -> None:
    draws = np.random.default_rng(2).random(50)
    one, all_at_once = Pace(rate=0.04), Pace(rate=0.04)
    expected = all_at_once.pauses(5.0, draws).tolist()
    assert [one.pause_s(5.0, draw) for draw in draws] == expected


def test_nobody_is_no_reason_to_wait_longer() -> None:
    pace = Pace()
    assert pace.pauses(1.0, np.zeros(0)).size == 0
    assert pace.pause_s(1.0, 0.5) == LEAST_S


def test_the_longest_pause_follows_the_fleet_and_has_an_end() -> None:
    for devices in (1, 3, 50, 10_000):
        waits = Pace(rate=20.0).pauses(0.0, np.random.default_rng(4).random(devices))
        assert waits.max() <= longest_s(devices, rate=20.0)
    assert longest_s(100_000) == 130.0
    assert longest_s(10**7) == LONGEST_S


def test_long_polls_that_began_together_come_apart() -> None:
    assert (poll_s(25.0, 0.0), poll_s(25.0, 1.0)) == (12.5, 25.0)
    draws = np.random.default_rng(3).random((20, 2000))
    ends = [sum(poll_s(25.0, float(draw)) for draw in column) for column in draws.T]
    assert np.std(ends) > 10.0
