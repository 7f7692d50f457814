"""How many released totals a run's folder keeps, and the bytes that they take.

The total of a round is the mean update as it was released: d float32 coordinates, and as many for each vector that a
strategy sends beside it. Kept totals let anyone replay the server's steps (``engine.released``).

    window(rounds=200, dim=1_000_000, vectors=1, limit_bytes=10**8)     # Window(rounds=25, most_bytes=10**8)
"""

from __future__ import annotations

from typing import NamedTuple

from edgewise.plan.plan import Plan

ALL = -1


class Window(NamedTuple):
    """The latest rounds of which the totals are kept.

    Attributes:
        rounds: how many at most; ``ALL``: every round of the run. Beyond the first ``rounds`` rounds a stretch is
            dropped at a time, so that half of them are kept at least.
        most_bytes: of all kept totals together.
    """

    rounds: int
    most_bytes: int

    @property
    def stride(self) -> int:
        """Rounds of a stretch; the model before each stretch is kept too. 0: there are no stretches."""
        return 0 if self.rounds in (ALL, 0) else (self.rounds + 1) // 2


def window(rounds: int, dim: int, vectors: int, limit_bytes: int) -> Window:
    """The largest window of totals within ``limit_bytes``; ``vectors`` of ``dim`` float32 coordinates each round."""
    each = 4 * dim * vectors
    most = limit_bytes // max(1, each)
    return Window(ALL, rounds * each) if most >= rounds else Window(most, most * each)


def window_of(plan: Plan) -> Window:
    """The window that a plan's recipe asks for (``store.totals_mb``)."""
    vectors = 1 + len(plan.strategy.client.sends)
    return window(plan.rounds, plan.spec.dim, vectors, round(plan.recipe.store.totals_mb * 1e6))


def oldest(next_round: int, rounds: int) -> int:
    """The first round whose total is kept after ``next_round`` rounds. ``rounds``: of the window."""
    if rounds == ALL or next_round <= rounds:
        return 0
    if rounds == 0:
        return next_round
    stride = Window(rounds, 0).stride
    return (next_round // stride - 1) * stride
