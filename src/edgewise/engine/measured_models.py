"""Evaluations of a run's models: when they are due, and which model counts by them (``engine.evaluation``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgewise.core.events import AnyEvent, Evaluated
from edgewise.engine.checkpoint import Checkpoint
from edgewise.engine.evaluation import BASE, FEDERATED, ModelThatCounts, kept, told_by_cohort
from edgewise.engine.ports import Evaluator, Store
from edgewise.plan.plan import Plan

BEST = "best"  # name under which the store keeps the model with the lowest held-out loss


@dataclass(frozen=True)
class MeasuredModels:
    """Evaluations of the models of one run.

    Attributes:
        evaluator: measures models where the recipe asks for it. With None no model is measured. tell: event sink.
    """

    plan: Plan
    store: Store
    evaluator: Evaluator | None
    tell: Callable[[AnyEvent], None]

    def evaluate_if_due(self, checkpoint: Checkpoint) -> None:
        """Measure the model on held-out text when the recipe asks for it, unless a measurement is stored already."""
        if self.evaluator is None:
            return
        played, every = checkpoint.next_round, self.plan.evaluations.every
        if not (played in (0, self.plan.rounds) or (every > 0 and played % every == 0)):
            return
        name = BASE if played == 0 else FEDERATED
        if not self.store.evaluated(name, played - 1):
            event = self.evaluator.evaluate(name, played - 1, checkpoint.state.params)
            self.store.append(event)
            self.tell(event)
        self.keep_best(checkpoint)

    def by_cohort(self, before: Checkpoint, head: Mapping[str, float]) -> list[Evaluated]:
        """Make the cohort's own evaluation of the model that it trained from. Empty where there is none, or is one.

        It belongs into the commit of the round. A later write of its own could be lost, and no one measures again.

        Args: before: the checkpoint before the round. head: of the round's aggregate.
        """
        event = told_by_cohort(before.next_round, head)
        return [] if event is None or self.store.evaluated(event.model, event.round) else [event]

    def keep_best(self, checkpoint: Checkpoint) -> None:
        """Keep the vector of the best model where the recipe asks for it, unless it is kept already.

        Call it after each evaluation, and when a run continues: a crash may have come between the two.
        """
        rule = self.plan.evaluations
        if rule.keep == "best" and (measured := self.store.evaluations()):
            self.store.keep_model(BEST, kept(rule, measured, checkpoint.next_round).played)

    def kept(self, checkpoint: Checkpoint) -> ModelThatCounts:
        """Choose the model that counts so far, and tell whether the run ends with it."""
        rule = self.plan.evaluations
        return kept(rule, self.store.evaluations() if rule.choose else (), checkpoint.next_round)
