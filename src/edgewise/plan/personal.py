"""Further training of a device for its personal model, as the recipe's [personal] section asks for it.

after the rounds    ``personal_training``: v goes on from the released model w (fine_tune, interpolate)
beside the rounds   ``beside_rounds``: in each of its rounds a device also trains a vector v of its own (ditto)
inside the rounds   a part of the model stays on the device, and the rest travels (fedper, fedrep: ``plan.own_part``)

What a device keeps between rounds is *private*: vectors of ``core.training.Update.personal``. A part of the system that
keeps something on the device declares it by returning it there, under a name of its own, and names its method in
``PRIVATE``. The engine then makes it durable with the device's memory and gives it back (``FitRequest.personal``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec

from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key, derive
from edgewise.core.training import DeviceId
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.personal import BESIDE, PARTED, PRIVATE

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
MODEL = "model"  # name of the private vector v of ditto, float32[d]
PART = "part"  # name of the private vector of fedper and fedrep: the own part of the model, float32[d_own]


@dataclass(frozen=True, slots=True)
class PersonalTraining:
    """The way from the federated model w to the personal model w + share (v - w), where v is w after ``rule``.

    Attributes:
        method: ``personal.method``.
        rule: steps and learning rate. All segments train, also where layer groups take turns in the rounds.
        share: share of v in the personal model, above 0 and at most 1. 0: each device chooses one of ``SHARES``, the
            one with the lowest loss on training text that it holds back for the choice.
        round: number of this training in requests. After the rounds it is the first that no round has.
        key: public seed of its batches (``FitRequest.key``).
        pull: lambda of ditto: g += lambda (v - w) in every step.
    """

    method: str
    rule: LocalRule
    share: float
    round: int
    key: Key = field(repr=False)
    pull: float = 0.0


def keeps_private(plan: Plan) -> bool:
    """Tell whether devices keep private vectors between rounds."""
    return plan.recipe.personal.method in PRIVATE or plan.recipe.drift.stays is not None


def drift_vectors(plan: Plan) -> int | None:
    """Count the vectors float32[d] that [drift] keeps on a device. None where it keeps nothing, not even numbers."""
    drift = plan.recipe.drift
    return None if drift.stays is None else 2 * bool(drift.penalty)


def keeps_part(plan: Plan) -> bool:
    """Tell whether a part of the model stays on its device, and the run's vector is the rest (``plan.own_part``)."""
    return plan.recipe.personal.method in PARTED


def personal_training(plan: Plan, device: DeviceId) -> PersonalTraining | None:
    """Return the further training of a device after the rounds. None where the recipe asks for no personal models."""
    wanted, training = plan.recipe.personal, plan.recipe.training
    if wanted.method == "none":
        return None
    steps = wanted.steps or (training.max_local_steps if wanted.epochs else 0)
    rule = LocalRule(steps=steps, lr=wanted.lr, epochs=wanted.epochs)
    return PersonalTraining(wanted.method, rule, wanted.mix, plan.rounds, plan.batch_key(device, plan.rounds))


def as_many_alone(plan: Plan, device: DeviceId, rounds: int) -> PersonalTraining | None:
    """Return the same number of steps for a device that trained ``rounds`` rounds alone, all of which count.

    None where the recipe asks for no personal models. Ditto takes its steps in each of the rounds, and FedRep in each
    of them and afterwards. A device that chooses its weight takes them twice.
    """
    wanted = personal_training(plan, device)
    if wanted is None:
        return None
    times = (rounds if wanted.method in BESIDE else 0) + (wanted.method != "ditto") * (1 if wanted.share else 2)
    rule = wanted.rule
    rule = msgspec.structs.replace(rule, steps=rule.steps * times, epochs=rule.epochs * times)
    return replace(wanted, rule=rule, share=1.0)


def beside_rounds(plan: Plan, device: DeviceId, round: int) -> PersonalTraining | None:
    """Return the training of a device's own model v beside a round. None where there is none.

    v -= lr (grad F(v) + lambda (v - w)), with w the round's model. Source: Li et al. 2021, "Ditto: Fair and Robust
    Federated Learning Through Personalization", arXiv:2012.04221, algorithm 1.
    """
    wanted = plan.recipe.personal
    if wanted.method != "ditto":
        return None
    rule = LocalRule(steps=wanted.steps or plan.recipe.training.max_local_steps, lr=wanted.lr, epochs=wanted.epochs)
    key = derive(plan.batch_key(device, round), "personal")
    return PersonalTraining(wanted.method, rule, 1.0, round, key, wanted.pull)
