"""A trainer whose devices have the first part of the model, and train it in sessions with the rest (``learn.split``).

    trainer = split_between(trainer, parts, recipe, sessions)     # trainer.spec is the layout of the device's part

Both parts are in this process, as in a simulation. What a network would carry between them crosses as bytes all the
same. An enrolled device has its part alone (``learn.part_trainer``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.errors import TrainingError
from edgewise.core.keys import derive
from edgewise.core.parts import ModelParts
from edgewise.core.training import FitRequest, Update
from edgewise.core.vector import Vector, finite
from edgewise.engine.split_rest import SessionResult, Sessions
from edgewise.engine.trainer import Registered
from edgewise.learn.computing import computing
from edgewise.learn.joined_trainer import JoinedTrainer
from edgewise.learn.models.architecture import embeddings, text_config
from edgewise.learn.models.cut import probed_cut
from edgewise.learn.seeded import seeded
from edgewise.learn.split import CutCrossings, DevicePart, ServerPart, train_split_session
from edgewise.learn.text.trainer import TextTrainer
from edgewise.learn.train import LOWER, LocalOptimizer, quarter_losses
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.split_part import check_split_sides, split_facts, split_noise, split_token_bytes


def split_between(trainer: Registered, parts: ModelParts, recipe: Recipe, sessions: Sessions) -> Registered:
    """Wrap the text trainer of a whole model into one whose vector is the device's part.

    Raises:
        ModelError: E-CUT as ``learn.models.cut.cut_model`` and ``check_cut``, and where the layout's parts are not
            those of the stages. E-MEMORY as ``learn.models.part_memory.check_part_memory``.
    """
    inner = trainer.trainer
    assert isinstance(inner, TextTrainer)
    made = SplitTrainer(trainer, inner, parts, recipe, sessions)
    return replace(trainer, trainer=made, describes=made, continues=made, together=None, keeps=made, splits=made)


class SplitTrainer(JoinedTrainer):
    """The ``Trainer`` port over the device's part of another trainer's model.

    ``fit`` trains both parts in one session of ``learn.split`` and returns the change of the device's part. The rest
    goes to ``Sessions.end``. ``evaluate`` and ``sample`` take a vector of the device's part, to which they add the rest
    of the round's model, or of the whole model.

    Without rounding and dropout the session equals ``learn.train.fit`` of the whole model, up to float tolerance.
    """

    def __init__(
        self, inner: Registered, text: TextTrainer, parts: ModelParts, recipe: Recipe, sessions: Sessions
    ) -> None:
        super().__init__(inner, text, parts, recipe, sessions)
        model = text.model
        self._stages = probed_cut(model, recipe)
        device = [s.name for s in parts.shared.segments]
        names = [s.name for s in parts.whole.segments]
        check_split_sides(names, set(self._stages.sides(model)[0]), device, type(model).__name__)
        hidden = text_config(model.config).hidden_size
        self.vocabulary = int(embeddings(model).weight.shape[0])
        self._crossings = cut_crossings(recipe, hidden)
        self.token_bytes = split_token_bytes(recipe, hidden, self.vocabulary)
        fixed = text.flat.fixed
        self._device_names = [name for name in device if name not in fixed]
        self._rest_names = [n for n in self.own_names if n not in fixed] if self._split.trains_rest else []
        self._optimizers = [LocalOptimizer(self._training, text.flat) for _ in range(2)]

    def whole(self, shared: Vector, private: Mapping[str, Vector] | None = None) -> Vector:
        """Join the device's part with the rest of the round's model. ``private`` is not read."""
        return self.parts.join(shared, self.sessions.current)

    def fit(self, request: FitRequest) -> Update:
        """Train a device's part and the rest in one session.

        Raises:
            DataError, TrainingError: as ``TorchTrainer.fit``. E-TRAIN for terms of a strategy in the gradient.
        """
        check_split_request(request)
        text, flat, split = self._text, self._text.flat, self._split
        rest = self.sessions.begin(request.round, request.device)
        batches, count = text.work(request)
        names = [n for n in self._device_names if not request.rule.segments or n in request.rule.segments]
        steps, lr, key = request.rule.steps, request.rule.lr, derive(request.key, "split")
        rest_of_arguments: tuple[Any, ...] = (self._training, lr, self._crossings, key)
        with computing(request.device), seeded(request.key), flat.only([*names, *self._rest_names]):
            flat.write(self.parts.join(request.params, rest))
            flat.zero_grad()
            text.model.train()
            device = DevicePart(
                self._stages, text.loss, iter(batches), self.vocabulary, flat, names, *rest_of_arguments,
                optimizer=self._optimizers[0], secret=derive(request.secret, "split"),
            )  # fmt: skip
            server = ServerPart(
                self._stages, text.loss, self.vocabulary, flat, self._rest_names, *rest_of_arguments,
                optimizer=self._optimizers[1],
            )  # fmt: skip
            crossed = train_split_session(device, server, split.shape == "U", steps, split.window)
            shared, rest = self.parts.split(flat.read())
        update = split_training_update(device, request, shared, count)
        if not finite(rest):
            raise not_finite(steps)
        kept = rest if split.trains_rest else np.zeros(0, np.float32)
        result = SessionResult(kept, count, steps, crossed.up_bytes, crossed.down_bytes)
        self.sessions.end(request.round, request.device, result)
        return update

    def describe(self) -> dict[str, Any]:
        """Describe the inner trainer, with both parts of the layout and the bytes of a token at the cut."""
        return {**self.inner.describe(), **split_facts(self._recipe, self.parts, self.token_bytes)}


def cut_crossings(recipe: Recipe, hidden: int) -> CutCrossings:
    """Return the formats of what crosses the cut of a recipe, with its noise. ``hidden``: C, numbers per token."""
    split = recipe.split
    codecs = [TokenCodec(r, hidden) for r in (split.activations, split.gradients)]
    return CutCrossings(*codecs, *(split_noise(recipe, hidden) or ()))


def check_split_request(request: FitRequest) -> None:
    """Refuse terms of a strategy in the gradient. Raises TrainingError(E-TRAIN)."""
    if request.correction.pull or request.correction.shift is not None or request.rank:
        what = "the strategy changes gradients of whole models, and a session has those of two parts."
        raise TrainingError("E-TRAIN", what, 'write strategy.kind = "fedavg".')


def split_training_update(device: DevicePart, request: FitRequest, shared: Vector, count: float) -> Update:
    """Make the update of a session that has ended. Raises TrainingError: E-TRAIN where it was refused, E-NAN."""
    if device.ended is not None and (refused := device.ended.refused) is not None:
        raise TrainingError("E-TRAIN", f"the session ended: {refused.code} {refused.reason}")
    if not finite(shared):
        raise not_finite(request.rule.steps)
    first, last = quarter_losses(device.seen)
    return Update(shared - request.params, {"loss_first": first, "loss_last": last}, count)


def not_finite(steps: int) -> TrainingError:
    """Make the error for an update that is not finite."""
    return TrainingError("E-NAN", f"the update is not finite after local step {steps}.", LOWER)
