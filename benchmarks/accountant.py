"""Every published or checked figure of the privacy accountant beside ours, and what a charge of the ledger costs.

    python benchmarks/accountant.py [--rounds 500]

A figure is reproduced where ours rounds to the digits that are printed, or, marked ~, differs by less than 0.1 %: those
were found by a search of that tolerance. The ledger is charged round after round, as a run does it; the first charge
also imports dp-accounting, which is timed apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from math import log

import bench
import numpy as np

from edgewise.privacy import accountant, card, distributed, ledger, matrix
from edgewise.privacy.accountant import (
    COARSE,
    calibrate,
    epsilon,
    epsilon_renyi,
    gaussian_epsilon,
    renyi_divergences,
    safe_poisson_cap,
)
from edgewise.privacy.adaptive import bit_noise, split_noise_multiplier
from edgewise.privacy.ledger import Budget, Ledger, LedgerEntry
from edgewise.privacy.spend import (
    PrivacyEvent,
    discrete_event,
    fixed_size_event,
    local,
    poisson,
    tree_event,
    truncated_poisson_event,
)
from edgewise.privacy.spend import gaussian as plain

Row = tuple[str, str, float]

TUTORIAL = 256 / 60000
SAMPLED = [
    ("Abadi et al. 2016, MNIST", 0.01, 4.0, 10_000, 1e-5, "1.0355", "0.9470", "1.2586"),
    ("TF-Privacy tutorial, 15 epochs", TUTORIAL, 1.3, 3515, 1e-5, "0.9544", "0.8645", "1.1921"),
    ("TF-Privacy tutorial, 60 epochs", TUTORIAL, 1.1, 14062, 1e-5, "2.5966", "2.3817", "3.0083"),
    ("TF-Privacy tutorial, 45 epochs", TUTORIAL, 0.7, 10546, 1e-5, "6.3195", "5.6394", "7.1013"),
    ("10k devices, m = 100, z = 1", 0.01, 1.0, 500, 1e-5, "1.6529", "1.3261", ""),
    ("10k devices, m = 100, z = 0.6", 0.01, 0.6, 500, 1e-5, "6.9522", "5.8002", ""),
    ("1M devices, m = 1000, z = 0.8", 0.001, 0.8, 2000, 1e-8, "2.1186", "1.1117", ""),
]
CALIBRATED = [
    (1, "1.1461", "1.2583", "4.0045", "8.3419"),
    (2, "0.8519", "0.9271", "2.4262", "4.4583"),
    (4, "0.6763", "0.7219", "1.6008", "2.4176"),
    (8, "0.5416", "0.5729", "1.2422", "1.3422"),
]
DISTRIBUTED = [
    (100, 70, 4, 1.0, 2**20, 18, "0.031412", "15.3767"),
    (32, 23, 4, 1.0, 2**22, 20, "0.031292", "15.3405"),
    (1000, 850, 8, 0.5, 2**22, 20, "0.007846", "6.7515"),
]
# (rounds, gap, takes): largest loss and rms of independent noise, of 2 buffers, of 4 buffers
CORRELATED = {
    (1000, 1000, 1): ("31.62", "22.37", "3.321", "3.133", "3.265"),
    (1000, 100, 10): ("100", "70.8", "14.953", "12.402", "14.884"),
    (2000, 400, 5): ("100", "70.7", "9.502", "8.304", "9.431"),
    (2000, 100, 20): ("200", "141", "27.016", "21.698", "26.928"),
}


def sampled() -> Iterator[Row]:
    """Poisson sampling and no sampling: Renyi, loss distributions, and the conversion of before 2020."""
    for name, q, z, rounds, delta, by_renyi, by_loss, published in SAMPLED:
        event = {poisson(z, q): rounds}
        yield f"{name}: Renyi", by_renyi, epsilon_renyi(event, delta)
        yield f"{name}: loss distribution", by_loss, epsilon(event, delta)
        if published:
            orders, divergences = renyi_divergences(event)
            yield f"{name}: as published", published, float(min(divergences - log(delta) / (orders - 1)))
    yield "all take part, z = 4, 100 rounds: Renyi", "14.1322", epsilon_renyi({plain(4.0): 100}, 1e-5)
    yield "all take part, z = 4, 100 rounds: exact", "13.2067", epsilon({plain(4.0): 100}, 1e-5)
    for cap, expected in ((110, "6.36"), (130, "3.16"), (140, "1.443"), (150, "1.3282"), (160, "1.3265")):
        yield (
            f"truncated Poisson, cap {cap}",
            expected,
            epsilon({truncated_poisson_event(1.0, 0.01, 10_000, cap): 500}, 1e-5, COARSE),
        )
    yield "smallest cap that costs nothing", "160", safe_poisson_cap(10_000, 0.01, 500, 1e-5)
    yield "fixed cohorts, z = 1", "15.6", epsilon({fixed_size_event(1.0, 10_000, 100): 500}, 1e-5)


def plain_ones() -> Iterator[Row]:
    """Gaussian, zCDP, trees, noise of devices."""
    yield "Gaussian, sigma 1, delta 1e-5", "4.377178", gaussian_epsilon(1.0, 1e-5)
    for target, delta, z in ((1.0, 1e-5, "3.730632"), (1.0, 1e-6, "4.224679"), (0.5, 1e-6, "8.057618")):
        found = calibrate(lambda z: {plain(z): 1}, target, delta, tolerance=1e-9)
        yield f"Gaussian, sigma of epsilon {target:g}, delta {delta:g}", z, found
    for expected, z in (("1", 3.731), ("4", 1.081), ("8", 0.600)):
        yield f"~ local, z = {z:g}", expected, epsilon({local(2.0 * z): 1}, 1e-5)
    yield "Gboard es, rho 0.81", "8.9223", epsilon({discrete_event(0.81): 1}, 1e-10)
    yield "tree, z = 7, 2000 rounds", "2.2811", epsilon({tree_event(7.0, 2000): 1}, 1e-6)
    yield "tree, z = 8.83, 1600 rounds", "1.7732", epsilon({tree_event(8.83, 1600): 1}, 1e-6)
    for n, honest, z, clip, dim, bits, rho, expected in DISTRIBUTED:
        found_sizes = distributed.size_noise(n, honest, z, clip, dim, bits, 4.0)
        yield f"distributed, n = {n}, {bits} bits: rho", rho, found_sizes.rho
        event = discrete_event(found_sizes.rho, found_sizes.xi)
        yield f"distributed, n = {n}, {bits} bits: epsilon of 100 rounds", expected, epsilon({event: 100}, 1e-6)
    for z, expected in ((4.0, "15.3280"), (8.0, "6.7346")):
        yield f"  the same noise of a server, z = {z:g}: Renyi", expected, epsilon_renyi({plain(z): 100}, 1e-6)
    for (left, found_eps), expected in zip(
        card.epsilon_degradation(1.0, 70, 1e-5)[1:], ("5.3", "9.2", "22", "70"), strict=True
    ):
        yield f"70 honest devices counted on, {left} there", expected, found_eps
    yield (
        "adaptive clip, z = 1, m = 100: z of the update",
        "1.0050",
        split_noise_multiplier(1.0, bit_noise(100), "add_remove"),
    )


def calibrations() -> Iterator[Row]:
    """Noise for a budget; the printed ones were found to 0.001."""

    def z(make: object, target: float) -> float:
        return calibrate(make, target, 1e-5)  # type: ignore[arg-type]

    for target, by_loss, by_renyi, fixed, none in CALIBRATED:
        yield (
            f"~ z of epsilon {target}, Poisson: loss distribution",
            by_loss,
            z(lambda z: {poisson(z, 0.01): 500}, target),
        )
        low, high = 0.1, 4.0
        while high - low > 1e-5:
            middle = (low + high) / 2
            fits = epsilon_renyi({poisson(middle, 0.01): 500}, 1e-5) <= target
            low, high = (low, middle) if fits else (middle, high)
        yield f"~ z of epsilon {target}, Poisson: Renyi", by_renyi, high
        found = z(lambda z: {fixed_size_event(z, 10_000, 100): 500}, target)
        yield f"~ sigma / C of epsilon {target}, fixed cohorts", fixed, found
        yield f"~ z of epsilon {target}, 5 rounds each", none, z(lambda z: {plain(z): 5}, target)


def correlated() -> Iterator[Row]:
    """Losses of prefix sums."""
    for shape, (worst, rms, two, two_rms, four) in CORRELATED.items():
        independent = matrix.matrix_loss(matrix.BltMatrix((), (), *shape))
        yield f"independent noise {shape}: largest", worst, independent[0]
        yield f"independent noise {shape}: rms", rms, independent[1]
        best = matrix.choose_blt(*shape, buffers=2)
        yield f"~ 2 buffers {shape}: largest", two, matrix.matrix_loss(best)[0]
        yield f"~ 2 buffers {shape}: rms", two_rms, matrix.matrix_loss(best)[1]
        yield f"~ up to 4 buffers {shape}: largest", four, matrix.matrix_loss(matrix.choose_blt(*shape, buffers=4))[0]
    found = matrix.choose_blt(1000, 100, 10, buffers=2)
    yield "sensitivity of 2 buffers (1000, 100, 10)", "6.8421", matrix.matrix_sensitivity(found)
    for i, (theta, w) in enumerate((("0.986072", "0.231319"), ("0.623144", "0.272538"))):
        yield f"~ their theta {i + 1}", theta, found.theta[i]
        yield f"~ their w {i + 1}", w, found.w[i]


def reproduced(name: str, expected: str, ours: float) -> bool:
    """See the module."""
    if name.startswith("~"):
        return abs(ours - float(expected)) <= 1e-3 * float(expected)
    return abs(ours - float(expected)) <= 0.5001 * 10.0 ** -len(expected.partition(".")[2])


def charges(event: PrivacyEvent, rounds: int) -> list[float]:
    """Seconds of each charge of a run."""
    accountant._by_loss.cache_clear()
    accountant._by_renyi.cache_clear()
    accountant._privacy_loss.cache_clear()
    accountant._event_divergences.cache_clear()
    book, took = Ledger(Budget(1e9, 1e-5)), []
    for round in range(rounds):
        began = time.perf_counter()
        after = ledger.charge_ledger(book, LedgerEntry(round, "a", 0, event))
        took.append(time.perf_counter() - began)
        assert isinstance(after, Ledger)
        book = after
    return took


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500)
    a = parser.parse_args()
    print(bench.machine())
    began = time.perf_counter()
    gaussian_epsilon(3.0, 1e-7)
    print(f"first epsilon, with the import of dp-accounting: {time.perf_counter() - began:.2f} s")
    good, missed = 0, []
    for part in (sampled, plain_ones, calibrations, correlated):
        began = time.perf_counter()
        for name, expected, ours in part():
            fine = reproduced(name, expected, ours)
            good += fine
            missed += [] if fine else [name]
            print(f"{name:64} {expected:>9} {ours:11.6f} {'' if fine else '  DIFFERS'}")
        print(f"  {time.perf_counter() - began:.1f} s")
    print(f"reproduced: {good} of {good + len(missed)}; not: {missed}")
    costs = {}
    for name, event in (
        ("gaussian", plain(4.0)), ("zcdp", discrete_event(0.01)), ("poisson", poisson(1.0, 0.01)),
        ("truncated", truncated_poisson_event(1.0, 0.01, 10_000, 160)), ("fixed", fixed_size_event(4.0, 10_000, 100)),
    ):  # fmt: skip
        took = charges(event, a.rounds)
        costs[name] = round(float(np.median(took)), 6)
        print(f"a charge of {a.rounds} rounds, {name}: {bench.spread(took)} s; first {took[0]:.3f} s")
    bench.say(reproduced=good, missed=missed, charge_s=costs)


if __name__ == "__main__":
    main()
