"""The rest of a split model on a server that trains nothing: it answers the sessions of many devices at once.

    rest = FrozenRest(recipe, recipe_dir, cache, values)
    part = rest.part(key)                # of one session: ``engine.split_states.ServerEffect`` -> event
    event = part.perform(effect)

All sessions share one model, whose parameters take no gradient. Only the gradients of activations are computed.
"""

from __future__ import annotations

from pathlib import Path

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.errors import ModelError
from edgewise.core.keys import Key, derive
from edgewise.core.parts import ModelParts
from edgewise.core.vector import Vector
from edgewise.learn.flat import Flat
from edgewise.learn.models.architecture import embeddings, text_config
from edgewise.learn.models.cut import cut_model
from edgewise.learn.models.load import TextLoss
from edgewise.learn.split import CutCrossings, ServerPart
from edgewise.learn.text.prepared import prepare
from edgewise.learn.train import LocalOptimizer
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.split_part import split_part


class FrozenRest:
    """The rest of one run's model.

    Args:
        recipe: of the run, with ``split.server_parts = "frozen"``.
        recipe_dir: the folder where ``model.base`` starts.
        cache: folder for a quantized copy of the base.
        values: float32[s], the trained parameters of the recipe that are behind the cut, as the run began.
    Attributes:
        parts: the layouts of both parts.
    Raises:
        ModelError: as ``learn.text.prepared.prepare`` and ``learn.models.cut.cut_model``. E-LAYOUT for values of
            another length.
    """

    def __init__(self, recipe: Recipe, recipe_dir: Path, cache: Path, values: Vector) -> None:
        made, split = prepare(recipe, recipe_dir, cache), recipe.split
        self._model, self._flat, self._training = made.loaded.model, made.flat, recipe.training
        if made.processor.type != "cpu":
            self._model.to(made.processor)
            self._flat.move(made.processor)
        parts = split_part(recipe, self._flat.spec)
        assert parts is not None  # The recipe has a cut.
        self.parts: ModelParts = parts
        if values.size != parts.own.dim:
            what = f"the rest of the model has {parts.own.dim} trained parameters, and {values.size} were given."
            raise ModelError("E-LAYOUT", what, "submit the recipe again.")
        self._flat.write(parts.join(parts.split(self._flat.read())[0], values))
        self._stages = cut_model(self._model, split.cut, split.shape)
        for p in self._model.parameters():
            p.requires_grad_(False)
        self._model.train()
        hidden = text_config(self._model.config).hidden_size
        self._crossings = CutCrossings(*(TokenCodec(r, hidden) for r in (split.activations, split.gradients)))
        self._vocabulary = int(embeddings(self._model).weight.shape[0])
        self._loss = TextLoss(made.arithmetic, recipe.data.packing == "isolated")
        still = self._training.model_copy(update={"optimizer": "sgd", "momentum": 0.0})
        self._optimizer = LocalOptimizer(still, Flat([]))  # Nothing moves, so it has no state.

    def part(self, key: Key) -> ServerPart:
        """Make the server's side of one session. ``key``: of the device in the round (``Plan.batch_key``)."""
        return ServerPart(
            self._stages, self._loss, self._vocabulary, self._flat, [], self._training, 0.0, self._crossings,
            derive(key, "split"), optimizer=self._optimizer,
        )  # fmt: skip
