"""Rounds of the parts of a model that take turns: in a cycle, or one after another with no return.

in a cycle      round r moves part floor(r / cohorts in turn) mod parts        layers, RoLoRA
one by one      round r of R moves part floor(r parts / R)                     ReFFA
two in order    rounds below ``until`` move part 0, and later ones part 1      local-loss split
"""

from __future__ import annotations

from typing import NamedTuple


class PlannedTurns(NamedTuple):
    """The schedule of a run's parts.

    Attributes:
        parts: number of parts.
        groups: number of cohorts that take turns. A cycle gives each of them every part.
        rounds: number of rounds of the run, where parts come one by one. 0: they come in a cycle.
        until: number of rounds of the first of two parts. 0: all parts have as many rounds.
    """

    parts: int
    groups: int
    rounds: int = 0
    until: int = 0

    def at(self, round: int) -> int:
        """Return the number of the part that a round moves. Rounds after the last one move the last part."""
        if self.until:
            return int(round >= self.until)
        if self.rounds:
            return min(round * self.parts // self.rounds, self.parts - 1)
        return round // self.groups % self.parts

    def first(self, part: int) -> int:
        """Return the first round that moves a part."""
        if self.until:
            return part * self.until
        return -(-part * self.rounds // self.parts) if self.rounds else part * self.groups
