"""The [prune] section of a recipe: the server prunes the model further between rounds, by magnitude."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from edgewise.plan.recipe.distill import STATEFUL
from edgewise.plan.recipe.rules import Section, SettingError, rule


class PruneSection(Section):
    """Pruning of the released model between rounds. It reads no device's data."""

    to: float = Field(
        1.0, gt=0, le=1, description="share of each matrix's weights that is left at the end; 1 = nothing is pruned"
    )
    start: int = Field(0, ge=0, description="rounds that are played before pruning begins")
    end: int = Field(0, ge=0, description="rounds after which `to` is reached; 0 = all rounds")
    every: int = Field(1, ge=1, description="rounds from one pruning to the next")

    @property
    def active(self) -> bool:
        """True if the server prunes the model."""
        return self.to < 1.0

    @property
    def says(self) -> str | None:
        """Say what pruning reads, and what it costs in privacy. None where there is none."""
        if not self.active:
            return None
        return (
            f"between rounds the server prunes the released model to {self.to:g} of its weights by their magnitude: "
            "that is post-processing of released models, and no epsilon is spent on it"
        )

    def pruned(self, played: int, rounds: int) -> float:
        """Compute the share of weights that is zero after ``played`` of ``rounds`` rounds.

            s = (1 - to) (1 - (1 - t)^3),   t = every floor((played - start) / every) / (end - start), in [0, 1]

        It never falls. From ``end`` on it is 1 - to exactly.
        Source: Zhu and Gupta 2017, arXiv:1710.01878, equation 1, from a dense model.
        """
        end = self.end or rounds
        if not self.active or played <= self.start:
            return 0.0
        if played >= end:
            return 1.0 - self.to
        t = (played - self.start) // self.every * self.every / (end - self.start)
        return (1.0 - self.to) * (1.0 - (1.0 - t) ** 3)

    @rule
    def _pruning_complete(self) -> Iterator[SettingError]:
        changed = any(getattr(self, name) != field.default for name, field in type(self).model_fields.items())
        if not self.active and changed:
            what = "prune.to = 1 leaves all weights, and the section [prune] gives other keys"
            yield SettingError("E-COMBO", what, "give prune.to, or leave the section out")


def prune_faults(
    prune: PruneSection,
    rounds: int,
    strategy: Mapping[str, Any],
    trains: str,
    downlink: Sequence[Mapping[str, Any]],
    others: Mapping[str, bool],
) -> Iterator[SettingError]:
    """Find the settings that pruning between rounds does not go with.

    Args:
        rounds: of the run. trains: ``trainable.kind``.
        others: what else the recipe asks for, by name, and whether pruning is refused beside it.
    """
    if not prune.active:
        return
    if prune.start >= (end := prune.end or rounds) or end > rounds:
        what = f"prune.start = {prune.start} and prune.end = {prune.end} name no rounds of a run of {rounds}"
        yield SettingError("E-COMBO", what, "write start < end, and end at most round.rounds")
    elif prune.every > end - prune.start:
        what = f"prune.every = {prune.every} is more than the {end - prune.start} rounds from prune.start to the end"
        yield SettingError("E-COMBO", what, "lower prune.every")
    if (state := STATEFUL.get(kind := str(strategy.get("kind")))) is not None:
        what = f'[prune] with strategy = "{kind}": it keeps {state}, which would move pruned weights'
        yield SettingError("E-COMBO", what, 'take strategy = "fedavg" or a server optimizer')
    if trains != "full":
        what = f'[prune] with trainable.kind = "{trains}": pruning needs all weights of a matrix in the run\'s vector'
        yield SettingError("E-COMBO", what, 'write trainable.kind = "full", or prune the base: edgewise shrink')
    if downlink:
        what = "[prune] with [[downlink]]: devices would hold an approximation of the model, whose zeros are others"
        yield SettingError("E-COMBO", what, "leave one of them out")
    for name, used in others.items():
        if used:
            what = f"[prune] with {name}: it goes on from models that the pruning does not know"
            yield SettingError("E-COMBO", what, "leave one of them out")
