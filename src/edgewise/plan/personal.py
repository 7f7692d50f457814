"""Further training of a device for its personal model, as the recipe's [personal] section asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key
from edgewise.core.training import DeviceId
from edgewise.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class PersonalTraining:
    """The way from the federated model w to the personal model w + share (v - w), where v is w after ``rule``.

    Attributes:
        method: ``personal.method``.
        rule: steps and learning rate. All segments train, also where layer groups take turns in the rounds.
        share: share of v in the personal model, above 0 and at most 1.
        round: number of this training beside the rounds: the first that no round has.
        key: public seed of its batches (``FitRequest.key``).
    """

    method: str
    rule: LocalRule
    share: float
    round: int
    key: Key = field(repr=False)


def personal_training(plan: Plan, device: DeviceId) -> PersonalTraining | None:
    """Return the further training of a device; None where the recipe asks for no personal models."""
    wanted, training = plan.recipe.personal, plan.recipe.training
    if wanted.method == "none":
        return None
    rule = LocalRule(steps=wanted.steps or training.max_local_steps, lr=wanted.lr, epochs=wanted.epochs)
    return PersonalTraining(wanted.method, rule, wanted.mix, plan.rounds, plan.batch_key(device, plan.rounds))
