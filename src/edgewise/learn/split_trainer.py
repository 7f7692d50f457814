"""A trainer whose devices have the first part of the model, and train it in sessions with the rest (``learn.split``).

    trainer = split_between(trainer, parts, recipe, sessions)     # trainer.spec is the layout of the device's part
    trainer = split_between(trainer, parts, recipe, sessions, remote)

In a simulation both parts are in this process. What a network would carry between them crosses as bytes all the same.
An enrolled device trains with the rest that a server has (``remote``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.errors import TrainingError
from edgewise.core.keys import derive
from edgewise.core.parts import ModelParts
from edgewise.core.training import FitRequest, Update
from edgewise.core.vector import Vector, finite
from edgewise.engine.split_rest import RemoteRest, SessionResult, Sessions, WantedSession
from edgewise.engine.trainer import Registered
from edgewise.learn.computing import computing
from edgewise.learn.joined_trainer import JoinedTrainer
from edgewise.learn.models.architecture import embeddings, text_config
from edgewise.learn.models.cut import check_cut, cut
from edgewise.learn.seeded import seeded
from edgewise.learn.split import Crossed, Crossings, DevicePart, ServerPart, session
from edgewise.learn.text.trainer import TextTrainer
from edgewise.learn.train import LOWER, Optimizer, quarters
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.split_part import check_sides, split_facts, split_noise, token_bytes

PROBE = 16  # tokens of the forward pass that compares the stages with the model


def split_between(
    trainer: Registered, parts: ModelParts, recipe: Recipe, sessions: Sessions, remote: RemoteRest | None = None
) -> Registered:
    """Wrap the text trainer of a whole model into one whose vector is the device's part.

    ``remote``: the rest on another machine, for a recipe whose rest is frozen. None: it is in this process.

    Raises:
        ModelError: E-CUT as ``learn.models.cut.cut`` and ``check_cut``, and where the layout's parts are not those of
            the stages. E-MEMORY as ``learn.models.part_memory.check_part``.
    """
    inner = trainer.trainer
    assert isinstance(inner, TextTrainer)
    made = SplitTrainer(trainer, inner, parts, recipe, sessions, remote)
    return replace(trainer, trainer=made, describes=made, continues=made, together=None, keeps=made, splits=made)


class SplitTrainer(JoinedTrainer):
    """The ``Trainer`` port over the device's part of another trainer's model.

    ``fit`` trains both parts in one session of ``learn.split`` and returns the change of the device's part. The rest
    goes to ``Sessions.end``. ``evaluate`` and ``sample`` take a vector of the device's part, to which they add the rest
    of the round's model, or of the whole model.

    Without rounding and dropout the session equals ``learn.train.fit`` of the whole model, up to float tolerance.
    """

    def __init__(
        self,
        inner: Registered,
        text: TextTrainer,
        parts: ModelParts,
        recipe: Recipe,
        sessions: Sessions,
        remote: RemoteRest | None = None,
    ) -> None:
        super().__init__(inner, text, parts, recipe, sessions)
        self._remote = remote
        model = text.model
        self._stages = cut(model, recipe.split.cut, recipe.split.shape)
        ids = torch.arange(PROBE).view(1, PROBE)
        check_cut(model, self._stages, ids.to(text.processor), recipe.data.packing == "isolated")
        device = [s.name for s in parts.shared.segments]
        names = [s.name for s in parts.whole.segments]
        check_sides(names, set(self._stages.sides(model)[0]), device, type(model).__name__)
        hidden = text_config(model.config).hidden_size
        self.vocabulary = int(embeddings(model).weight.shape[0])
        codecs = [TokenCodec(r, hidden) for r in (self._split.activations, self._split.gradients)]
        self._crossings = Crossings(*codecs, *(split_noise(recipe, hidden) or ()))
        self.token_bytes = token_bytes(recipe, hidden, self.vocabulary)
        fixed = text.flat.fixed
        self._device_names = [name for name in device if name not in fixed]
        self._rest_names = [n for n in self.own_names if n not in fixed] if self._split.trains_rest else []
        self._optimizers = [Optimizer(self._training, text.flat) for _ in range(2)]

    def whole(self, shared: Vector, private: Mapping[str, Vector] | None = None) -> Vector:
        """Join the device's part with the rest of the round's model. ``private`` is not read."""
        return self.parts.join(shared, self.sessions.current)

    def fit(self, request: FitRequest) -> Update:
        """Train a device's part and the rest in one session.

        Raises:
            DataError, TrainingError: as ``TorchTrainer.fit``. E-TRAIN for terms of a strategy in the gradient.
            EdgewiseError: as ``RemoteRest.play``.
        """
        if request.correction.pull or request.correction.shift is not None or request.rank:
            what = "the strategy changes gradients of whole models, and a session has those of two parts."
            raise TrainingError("E-TRAIN", what, 'write strategy.kind = "fedavg".')
        text, flat, split = self._text, self._text.flat, self._split
        rest = self.rest_start if self._remote is not None else self.sessions.begin(request.round, request.device)
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
            crossed = Crossed()  # Of a remote rest, the server counts what crosses.
            if self._remote is not None:
                self._remote.play(self._wanted(request.round, steps), device.perform)
            else:
                server = ServerPart(
                    self._stages, text.loss, self.vocabulary, flat, self._rest_names, *rest_of_arguments,
                    optimizer=self._optimizers[1],
                )  # fmt: skip
                crossed = session(device, server, split.shape == "U", steps, split.window)
            shared, rest = self.parts.split(flat.read())
        if device.ended is not None and (refused := device.ended.refused) is not None:
            raise TrainingError("E-TRAIN", f"the session ended: {refused.code} {refused.reason}")
        if not (finite(shared) and finite(rest)):
            raise TrainingError("E-NAN", f"the update is not finite after local step {steps}.", LOWER)
        if self._remote is None:
            kept = rest if split.trains_rest else np.zeros(0, np.float32)
            result = SessionResult(kept, count, steps, crossed.up_bytes, crossed.down_bytes)
            self.sessions.end(request.round, request.device, result)
        first, last = quarters(device.seen)
        return Update(shared - request.params, {"loss_first": first, "loss_last": last}, count)

    def _wanted(self, round: int, steps: int) -> WantedSession:
        parts, split = self.parts, self._split
        return WantedSession(
            round, parts.shared.digest(), parts.own.digest(), split.shape == "U", steps, split.window,
            once=self._crossings.activation_noise is not None,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Describe the inner trainer, with both parts of the layout and the bytes of a token at the cut."""
        return {**self.inner.describe(), **split_facts(self._recipe, self.parts, self.token_bytes)}
