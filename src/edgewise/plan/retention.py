"""The number of released totals that a run's folder keeps, and their bytes.

The total of a round is its released mean update: d float32 coordinates, and as many for each vector that a strategy
sends beside it. With the stored totals anyone can replay the server's steps (``engine.released``).

    largest_window(rounds=200, dim=1_000_000, vectors=1, limit_bytes=10**8)     # RetentionWindow(rounds=25,
    most_bytes=10**8)
"""

from __future__ import annotations

from typing import NamedTuple

from edgewise.plan.plan import Plan


class RetentionWindow(NamedTuple):
    """The latest rounds whose totals are stored.

    Attributes:
        rounds: largest number of rounds. None: every round of the run. Beyond it, old totals are dropped one
            stretch at a time, so at least half of ``rounds`` remain.
        most_bytes: largest size of all stored totals together.
    """

    rounds: int | None
    most_bytes: int

    @property
    def stride(self) -> int:
        """The number of rounds in a stretch; 0 = no stretches. The model before each stretch is stored too."""
        return (self.rounds + 1) // 2 if self.rounds else 0


def largest_window(rounds: int, dim: int, vectors: int, limit_bytes: int) -> RetentionWindow:
    """Return the largest window within ``limit_bytes``, for ``vectors`` of ``dim`` float32 coordinates each round."""
    each = 4 * dim * vectors
    fitting = limit_bytes // max(1, each)
    return RetentionWindow(None, rounds * each) if fitting >= rounds else RetentionWindow(fitting, fitting * each)


def window_of(plan: Plan) -> RetentionWindow:
    """Return the window that a plan's recipe asks for (``store.totals_mb``)."""
    vectors = 1 + len(plan.strategy.client.sends) + plan.recipe.distill.active
    return largest_window(plan.rounds, plan.spec.dim, vectors, round(plan.recipe.store.totals_mb * 1e6))


def oldest_retained_round(next_round: int, rounds: int | None) -> int:
    """Return the first round whose total is stored after ``next_round`` rounds, by the ``rounds`` of a window."""
    if rounds is None or next_round <= rounds:
        return 0
    if rounds == 0:
        return next_round
    stride = RetentionWindow(rounds, 0).stride
    return (next_round // stride - 1) * stride
