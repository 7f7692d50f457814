"""Make the personal model of a device: training on the device's own text, of which nothing is sent.

A simulation and a real device use the same functions. The recipe's [personal] section says how (``plan.personal``). The
trainer is the one of the rounds, without noise in its steps, because no result leaves.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from edgewise.core import keys
from edgewise.core.training import Correction, DeviceId, FitRequest, Update
from edgewise.core.vector import Vector
from edgewise.drivers.workers.records import in_steps, without_noise
from edgewise.engine.device_state import private_part
from edgewise.engine.ports import DeviceStore
from edgewise.engine.trainer import Registered
from edgewise.plan.personal import MODEL, SHARES, PersonalTraining, beside_rounds, keeps_private, personal_training
from edgewise.plan.plan import Plan


def personal_model(
    plan: Plan, trainer: Registered, store: DeviceStore, device: DeviceId, params: Vector, secret: keys.Key
) -> Vector:
    """Make or find a device's personal model when the rounds are over.

    Args:
        store: the device's state, with the model that it trained beside the rounds (ditto), or its own part of the
            model (fedper, fedrep).
        params: the released model. secret: as ``personalised``.
    Returns:
        float32[d], the whole model. With ditto a device that was in no round has the released model itself. With
        fedper and fedrep the device's own part takes ``personal.steps`` further steps beside the released model. A
        device that was in no round takes them from the own part of the seed.
    Raises:
        As ``personalised``, and StoreError where the device's state cannot be read.
    """
    wanted = personal_training(plan, device)
    assert wanted is not None  # The callers ask for a model that the recipe wants.
    if not keeps_private(plan):
        return personalised(plan, trainer, device, params, secret, wanted)
    state = store.load(device)
    private = {} if state is None else private_part(state)
    if trainer.keeps is None:
        return private.get(MODEL, params)
    whole = trainer.keeps.whole(params, private)
    rule = msgspec.structs.replace(wanted.rule, segments=trainer.keeps.own_names)
    return personalised(plan, trainer.keeps.inner, device, whole, secret, replace(wanted, rule=rule))


def personalised(
    plan: Plan, trainer: Registered, device: DeviceId, params: Vector, secret: keys.Key, wanted: PersonalTraining
) -> Vector:
    """Go on from ``params`` for one device.

        v = params after the steps on the device's own text
        personal model = params + share (v - params)             share = 1 unless ``interpolate``

    Where the recipe leaves the share to the device, it first trains without the last fifth of its training text, and
    takes the share of ``plan.personal.SHARES`` with the lowest loss on that fifth. Then it trains on all of the text.

    Args:
        params: float32[d], the model to start from. It is not changed.
        secret: the device's own randomness (``FitRequest.secret``).
        wanted: steps, and the share of v.
    Returns:
        float32[d].
    Raises:
        EdgewiseError: as the trainer.
    Guarantees:
        Equal arguments give equal bits.
    Edge cases:
        No steps give ``params`` themselves.
    """
    rule, share = in_steps(trainer, plan, device, wanted.rule), wanted.share
    if not rule.steps:
        return params
    request = FitRequest(device, wanted.round, params, rule, wanted.key, secret)
    with without_noise(trainer):
        share = share or _chosen_share(trainer, request)
        step = trainer.fit(request).x
    return params + np.float32(share) * step


def _chosen_share(trainer: Registered, request: FitRequest) -> float:
    """Train without the last part of the training text, and choose the share of the step by that part."""
    assert trainer.holds_back is not None  # ``make_trainer`` refuses such a recipe otherwise.
    with trainer.holds_back.holding_back():
        step = trainer.fit(request).x
        losses = []
        for share in SHARES:
            measured = trainer.trainer.evaluate(request.device, request.params + np.float32(share) * step)
            losses.append((measured.nll / measured.tokens, share))
    return min(losses)[1]


def beside(plan: Plan, trainer: Registered, request: FitRequest, update: Update) -> Update:
    """Train a device's own model v beside its part in a round, and add it to the update's private vectors.

        v -= lr (grad F(v) + lambda (v - w))       from the v of its last contribution, at first from w

    With v_0 the v before, the term is lambda (v - v_0) + lambda (v_0 - w): a ``Correction`` whose shift is fixed.
    Returns ``update`` as it is where the recipe asks for no such model. Raises as the trainer.
    """
    wanted = beside_rounds(plan, request.device, request.round)
    if wanted is None:
        return update
    w, v = request.params, request.personal.get(MODEL)
    shift = None if v is None else np.float32(wanted.pull) * (v - w)
    rule, start = in_steps(trainer, plan, request.device, wanted.rule), w if v is None else v
    further = FitRequest(
        request.device, wanted.round, start, rule, wanted.key, keys.derive(request.secret, "personal"),
        Correction(wanted.pull, shift), request.rank,
    )  # fmt: skip
    with without_noise(trainer):
        step = trainer.fit(further).x
    return replace(update, personal={**update.personal, MODEL: start + step})
