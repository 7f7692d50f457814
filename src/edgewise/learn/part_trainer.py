"""A trainer of an enrolled device that has its own part of a split model, and trains it with the rest on a server.

    trainer = part_trainer(recipe, recipe_dir, cache_dir, "phone-1", 0, remote)     # spec: the device's part

The weights behind the cut are neither on the device's disk nor in its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgewise.core.errors import TrainingError
from edgewise.core.keys import derive, root
from edgewise.core.training import DeviceId, FitRequest, HeldOut, Update
from edgewise.core.vector import Spec, Vector
from edgewise.engine.split_rest import RemoteRest, WantedSession
from edgewise.engine.trainer import Registered, registered
from edgewise.learn.computing import computing
from edgewise.learn.models.architecture import embeddings, text_config
from edgewise.learn.models.part_memory import forecast_part_memory
from edgewise.learn.seeded import seeded
from edgewise.learn.split import DevicePart
from edgewise.learn.split_trainer import check_split_request, cut_crossings, split_training_update
from edgewise.learn.text import corpus as corpora
from edgewise.learn.text.blocks import BlockStore
from edgewise.learn.text.prepared import PreparedPart, prepare_part
from edgewise.learn.text.trainer import TextTrainer
from edgewise.learn.train import LocalOptimizer
from edgewise.plan.recipe.recipe import Recipe


def part_trainer(
    recipe: Recipe, recipe_dir: Path, cache_dir: Path, device: DeviceId, worker: int, remote: RemoteRest
) -> Registered:
    """Make the trainer of a device's part, on all of its text.

    Args:
        recipe, recipe_dir, cache_dir, device, worker: as in ``learn.text.trainer.make``.
        remote: plays sessions with the rest.
    Raises:
        ModelError: as ``learn.text.prepared.prepare_part``. DataError, RecipeError: as ``learn.text.trainer.make``.
    """
    corpus = corpora.load(recipe.data, recipe_dir, cache_dir, derive(root(recipe.seed), "data")).of(device)
    part = prepare_part(recipe, recipe_dir, device, worker)
    store = BlockStore(corpus, part.prepared.loaded.tokens, recipe.data, cache_dir)
    text = TextTrainer(recipe, part.prepared, corpus, store)
    found = registered(text)
    return Registered(PartTrainer(text, part, recipe, remote), counts=found.counts, reports=found.reports)


class PartTrainer:
    """The ``Trainer`` port over the device's part of a split model.

    ``fit`` trains the part in one session with the rest (``engine.split_rest.RemoteRest``), and returns its change. It
    is that of ``learn.split_trainer``, bit for bit, where the rest is the same.
    """

    def __init__(self, text: TextTrainer, part: PreparedPart, recipe: Recipe, remote: RemoteRest) -> None:
        self._text, self._stages, self._recipe, self._remote = text, part.stages, recipe, remote
        self.parts = part.parts
        model = text.model
        self._vocabulary = int(embeddings(model).weight.shape[0])
        self._crossings = cut_crossings(recipe, text_config(model.config).hidden_size)
        self._optimizer = LocalOptimizer(recipe.training, text.flat)

    @property
    def spec(self) -> Spec:
        """The layout of the device's part."""
        return self.parts.shared

    def initial(self) -> Vector:
        """Return the device's part of the base model. A run begins with that of its submission."""
        return self._text.initial()

    def devices(self) -> Sequence[DeviceId]:
        """Return the one device."""
        return self._text.devices()

    def fit(self, request: FitRequest) -> Update:
        """Train the device's part in one session with the rest.

        Raises:
            DataError, TrainingError: as ``TorchTrainer.fit``. E-TRAIN for terms of a strategy in the gradient.
            EdgewiseError: as ``RemoteRest.play``.
        """
        check_split_request(request)
        text, flat, recipe = self._text, self._text.flat, self._recipe
        batches, count = text.work(request)
        segments = request.rule.segments
        names = [s.name for s in self.spec.segments if not segments or s.name in segments]
        key, rest_of_arguments = derive(request.key, "split"), (recipe.training, request.rule.lr, self._crossings)
        with computing(request.device), seeded(request.key), flat.only(names):
            flat.write(request.params)
            flat.zero_grad()
            text.model.train()
            device = DevicePart(
                self._stages, text.loss, iter(batches), self._vocabulary, flat, names, *rest_of_arguments, key,
                optimizer=self._optimizer, secret=derive(request.secret, "split"),
            )  # fmt: skip
            self._remote.play(self._wanted(request), device.perform)
            shared = flat.read()
        return split_training_update(device, request, shared, count)

    def _wanted(self, request: FitRequest) -> WantedSession:
        parts, split = self.parts, self._recipe.split
        return WantedSession(
            request.round, parts.shared.digest(), parts.own.digest(), split.shape == "U", request.rule.steps,
            split.window, once=self._crossings.activation_noise is not None,
        )  # fmt: skip

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Refuse a measurement, which needs the whole model. Raises TrainingError(E-TRAIN)."""
        what = "a device with a part of a split model cannot measure the model."
        raise TrainingError("E-TRAIN", what, "leave out eval.on_devices.")

    def sizes(self) -> Mapping[str, float]:
        """Forecast sizes as the text trainer. Memory is that of the device's part in a session."""
        needed = forecast_part_memory(self._recipe, self._text.loaded.folder, self._text.autocast).total
        found: dict[str, Any] = {**self._text.sizes(), "memory_bytes": needed}
        return found
