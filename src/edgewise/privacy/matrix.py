"""Correlated noise by matrix factorization: later rounds cancel part of earlier noise, so sums are less noisy.

    noise of all rounds = C^-1 z,  z independent;  C lower triangular, Toeplitz:  c_0 = 1, c_t = sum_j w_j theta_j^(t-1)
    y_t = z_t - sum_j w_j s_j(t),   s_j(t + 1) = theta_j s_j(t) + y_t,   s_j(0) = 0

So a stream of noise needs one buffer for each theta, for any number of rounds. The only assumptions on participation
are that two rounds of one device are at least ``gap`` apart, and that it is in at most ``takes`` rounds:

    sensitivity = || sum_(j < takes) C[:, j gap] ||_2        for columns that never rise and are never negative
    a whole run with noise sigma z is Gaussian(sigma / (sensitivity clip)): ``spend.matrix``

A model is a prefix sum of the rounds' totals. It carries the noise (A C^-1 z)_t, where A is all ones on and below the
diagonal (``matrix_loss``). The buffers give away all noise so far, so they must be stored as secrets.
Source: Dvijotham et al. 2024, arXiv:2404.16706 (the algorithm); McMahan et al. 2024, arXiv:2408.08868 (participation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import hypot, sqrt
from typing import Annotated

import numpy as np
from annotated_types import Gt
from numpy.typing import NDArray

from edgewise.core.errors import BudgetError
from edgewise.core.keys import Key, derive
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.space import Total
from edgewise.core.stage import Post
from edgewise.privacy import spend
from edgewise.privacy.grid import rounded_to_noise_grid
from edgewise.privacy.noise import check_noise_bounds, noise_grid_on_total, noise_words, secret_normals
from edgewise.privacy.spend import PrivacyEvent

Array = NDArray[np.float64]
Factors = tuple[tuple[float, ...], tuple[float, ...]]  # theta, w


@dataclass(frozen=True, slots=True)
class BltMatrix:
    """Buffered linear Toeplitz matrix of a run.

    Attributes: theta, w: see the module. rounds: rows of C. gap, takes: bounds on the participation of devices.
    Raises: ValueError where a column of C would rise or be negative, because ``matrix_sensitivity`` would be too small.
    """

    theta: tuple[float, ...]
    w: tuple[float, ...]
    rounds: int
    gap: int
    takes: int

    def __post_init__(self) -> None:
        if len(self.theta) != len(self.w) or not all(0.0 <= t <= 1.0 for t in self.theta):
            raise ValueError("theta must be in 0 to 1, one for each w")
        if not (all(w >= 0.0 for w in self.w) and sum(self.w) <= 1.0):
            raise ValueError("w must not be negative and add up to at most 1")
        if self.rounds < 1 or self.gap < 1 or self.takes < 1:
            raise ValueError("rounds, gap and takes must be at least 1")


def matrix_column(blt: BltMatrix) -> Array:
    """Compute the first column of C, float64[rounds]."""
    powers = np.asarray(blt.theta)[:, None] ** np.arange(blt.rounds - 1)
    return np.concatenate([[1.0], np.asarray(blt.w) @ powers]) if blt.theta else np.eye(1, blt.rounds)[0]


def matrix_sensitivity(blt: BltMatrix) -> float:
    """Compute the largest L2 distance by which one device of clip 1 moves C times the rounds' totals."""
    return participation_norm(matrix_column(blt), blt.gap, blt.takes)


def participation_norm(first: Array, gap: int, takes: int) -> float:
    """Compute ``||sum_(j < takes) C[:, j gap]||_2`` of the lower triangular Toeplitz matrix with that first column.

    It is the sensitivity only where columns never rise and are never negative.
    """
    total = np.zeros_like(first)
    for start in range(0, min(first.size, gap * takes), gap):
        total[start:] += first[: first.size - start]
    return float(np.linalg.norm(total))


def matrix_loss(blt: BltMatrix) -> tuple[float, float]:
    """Compute the (largest, root mean square) standard deviation of the noise on a prefix sum, for
    ``matrix_sensitivity`` noise 1.

    The identity matrix, which is independent noise, has ``sqrt(takes rounds)`` for the largest.
    """
    noise = np.zeros(blt.rounds)
    state = start_noise_stream(blt, 1)
    for t in range(blt.rounds):
        state, y = step_noise_stream(blt, state, np.asarray([float(t == 0)]))
        noise[t] = y[0]
    rows = np.cumsum(np.cumsum(noise) ** 2)
    own = matrix_sensitivity(blt)
    return own * sqrt(float(rows[-1])), own * sqrt(float(rows.mean()))


@dataclass(frozen=True, slots=True)
class NoiseStream:
    """State of the noise of a run. ``round``: the next one. ``buffers``: float64[buffers, d], secret."""

    round: int
    buffers: Array = field(repr=False)


def start_noise_stream(blt: BltMatrix, dim: int) -> NoiseStream:
    """Make the state before the first round, for vectors of ``dim``."""
    return NoiseStream(0, np.zeros((len(blt.theta), dim)))


def step_noise_stream(blt: BltMatrix, state: NoiseStream, z: Array) -> tuple[NoiseStream, Array]:
    """Compute the noise of one round from fresh independent normals ``z`` (float64[d]): row ``state.round`` of C^-1 z.

    A round that was played with some noise must not be played again with the same. Continue from the new state, also
    where the round is abandoned.
    Guarantees: the given state is unchanged. Memory is that of the buffers.
    Raises: BudgetError(E-BUDGET) beyond the rounds that ``matrix_sensitivity`` was taken over.
    """
    if state.round >= blt.rounds:
        raise BudgetError(
            "E-BUDGET", f"the noise is made for {blt.rounds} rounds, all of which were played.", "start another run."
        )
    y = z - np.asarray(blt.w) @ state.buffers
    return NoiseStream(state.round + 1, np.asarray(blt.theta)[:, None] * state.buffers + y), y


@part
def correlated_noise(z: Annotated[float, Gt(0), Doc("noise multiplier")], blt: BltMatrix) -> Post:
    """Add row ``round`` of C^-1 z to the total, times z ``matrix_sensitivity`` times one device's largest move of one
    round.

    Algebra: noise_std -> as if the noise of the rounds were independent, so it is not below that of any prefix.
    Guarantees: the run as a whole is ``event(blt, z)``. The noise of abandoned rounds is drawn and never shown, so that
        later rounds keep their distance to earlier ones. Total and noise are rounded to one grid before they are added
        (``grid``), the noise from float64 with 2^-29 of a step to spare. As the total then is a multiple of the step,
        the result is the continuous mechanism's, rounded.
    The memory (``buffers``, float64) gives away all noise so far, so it must be stored as a secret.
    Args: z: noise multiplier, above 0. blt: for at least as many rounds as are played.
    Raises: RecipeError(E-VALUE); CompositionError as ``noise.check_noise_bounds``; BudgetError(E-BUDGET) as ``step``,
        and for a round that comes twice.
    """
    name = f"correlated_noise({z:g}, {len(blt.theta)} buffers)"
    own = matrix_sensitivity(blt)

    def infer(total: Total) -> Total:
        check_noise_bounds(total, name)
        return total.but(noise_std=hypot(total.noise_std, noise_grid_on_total(name, z * own, total).std))

    def init(total: Total, size: int) -> Memory:
        return Memory({"round": np.zeros(1), "buffers": start_noise_stream(blt, size).buffers})

    def apply(x: Array, total: Total, round: int, entropy: Key, memory: Memory) -> tuple[Array, Memory]:
        stream = NoiseStream(int(memory["round"][0]), memory["buffers"])
        if round < stream.round:
            raise BudgetError("E-BUDGET", f"the noise of round {round} was given already.", "start another run.")
        while True:  # It takes one step, and one more for each abandoned round before.
            number = stream.round
            stream, y = step_noise_stream(blt, stream, secret_normals(derive(entropy, "correlated", number), x.size))
            if number == round:
                break
        on = noise_grid_on_total(name, z * own, total)
        steps = rounded_to_noise_grid(x, on.step) + rounded_to_noise_grid(y, 1.0 / on.s)
        out: Array = np.multiply(steps, on.step, dtype=np.float64)
        return out, Memory({"round": np.array([float(stream.round)]), "buffers": stream.buffers})

    return Post(name, noise_words, infer, apply, init)


def correlated_noise_event(blt: BltMatrix, z: float) -> PrivacyEvent:
    """Make the event of a whole run with noise of ``z sensitivity clip`` times that of ``step`` on standard normals."""
    return spend.matrix(z, blt.rounds, blt.gap, blt.takes)


def choose_blt(rounds: int, gap: int, takes: int, buffers: int = 3) -> BltMatrix:
    """Choose the best shipped factors of at most ``buffers`` buffers, by the largest loss of a prefix sum.

    They are sound for all numbers, because sensitivity is computed for them. They are best for the numbers that they
    were optimised for.
    """
    shipped = [f for some in SHIPPED.values() for f in some if len(f[0]) <= buffers]
    found = [BltMatrix(theta, w, rounds, gap, takes) for theta, w in [*shipped, ((), ())]]
    return min(found, key=lambda blt: matrix_loss(blt)[0])


# (rounds, gap, takes) -> factors that minimise the largest loss, found by Nelder-Mead from eight random starts.
SHIPPED: Mapping[tuple[int, int, int], tuple[Factors, ...]] = {
    (1000, 1000, 1): (
        ((0.998077239, 0.907992001), (0.0671756809, 0.319703068)),
        ((0.998951848, 0.978230959, 0.741553936), (0.044870816, 0.121106936, 0.31079298)),
        (
            (0.999213056, 0.98870401, 0.920925595, 0.560802388),
            (0.0375342388, 0.0694021543, 0.160331068, 0.229552418),
        ),
    ),
    (1000, 100, 10): (
        ((0.986071868, 0.623144421), (0.231318578, 0.272537958)),
        ((1.0, 0.981396496, 0.62813791), (0.00838209749, 0.215244795, 0.275528367)),
    ),
    (2000, 400, 5): (
        ((0.995857872, 0.82894658), (0.118177324, 0.330940557)),
        ((1.0, 0.994023299, 0.823303189), (0.00747851726, 0.11093703, 0.332024714)),
        (
            (1.0, 0.994469464, 0.905884411, 0.510056355),
            (0.00738941321, 0.101872003, 0.184225307, 0.205642315),
        ),
    ),
    (2000, 100, 20): (
        ((0.987943799, 0.609933165), (0.238575757, 0.268221558)),
        ((1.0, 0.984480481, 0.618533106), (0.00466303366, 0.225422847, 0.272314984)),
    ),
}
