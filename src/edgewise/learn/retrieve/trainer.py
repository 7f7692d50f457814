"""The trainer of a retriever: a text trainer whose blocks are pairs, and whose loss tells passages apart.

trainer = make(recipe, recipe_dir, cache_dir)      # with [retriever] in the recipe
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from edgewise.core.errors import DataError, ModelError, TrainingError
from edgewise.core.keys import derive, root
from edgewise.core.training import DeviceId, FitRequest, RecordSums, StepNoise
from edgewise.learn.contrast import lacks_representation
from edgewise.learn.models.architecture import embeddings
from edgewise.learn.retrieve.loss import PairLoss
from edgewise.learn.retrieve.pairs import PairStore
from edgewise.learn.text import corpus as corpora
from edgewise.learn.text.corpus import Corpus
from edgewise.learn.text.prepared import Prepared, prepare
from edgewise.learn.text.shards import TextShard
from edgewise.learn.text.trainer import TextTrainer
from edgewise.learn.torch_task import TorchTrainer
from edgewise.learn.train import Loss
from edgewise.plan.recipe.recipe import Recipe

EVAL_PAIRS = 32  # A held-out question is told apart from so many passages, whatever training.batch is.


class PairShard(TextShard):
    """One device's pairs, as memory maps. Its weight is the tokens of its passages."""

    def apart(self) -> PairShard:
        """See ``TorchTrainer.holding_back``."""
        return PairShard(self.blocks.apart(), self._eval_tokens, self._pass_tokens)

    def held_out(self) -> Iterator[tuple[Tensor, int]]:
        """Iterate over batches of ``EVAL_PAIRS`` held-out pairs, the last one smaller, up to the limit of tokens.

        One pair alone is left out, because its loss is 0 for any model.
        """
        held_NS = self.blocks.held_NS
        tokens_N = (held_NS >= 0).sum(1)
        n = int(np.searchsorted(np.cumsum(tokens_N), self._eval_tokens, side="right"))
        for at in range(0, n, EVAL_PAIRS):
            rows_BS = np.array(held_NS[at : min(n, at + EVAL_PAIRS)], np.int64)
            if len(rows_BS) > 1:
                yield torch.from_numpy(rows_BS), len(rows_BS)


def make(
    recipe: Recipe,
    recipe_dir: Path,
    cache_dir: Path,
    device: DeviceId | None = None,
    worker: int = 0,
    copies: Path | None = None,
) -> RetrieverTrainer:
    """Make the trainer of a recipe with pairs. Arguments and errors are those of ``learn.text.trainer.make``."""
    corpus = corpora.load(recipe.data, recipe_dir, cache_dir, derive(root(recipe.seed), "data"))
    if device is not None:
        corpus = corpus.of(device)
    prepared = prepare(recipe, recipe_dir, copies or cache_dir, worker)
    store = PairStore(corpus, prepared.loaded.tokens, recipe.data, cache_dir, recipe.retriever.pairs)
    return RetrieverTrainer(recipe, prepared, corpus, store)


class RetrieverTrainer(TextTrainer):
    """The trainer of a retriever on pairs from each device's own documents.

    Raises:
        ModelError: E-TARGETS where ``pool = "tokens"`` would not read some of the trained parameters, E-MODEL for a
            model without an output head to read the states before.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared, corpus: Corpus, store: PairStore) -> None:
        super().__init__(recipe, prepared, corpus, store)
        section = recipe.retriever
        self.loss = PairLoss(section.pool, section.temperature, prepared.arithmetic)
        self.passes = None  # Each device is trained by itself: its questions see its own passages only.
        if section.pool == "tokens":
            self._check_read()
        elif reason := lacks_representation(self.model, None):
            raise ModelError("E-MODEL", f'retriever.pool = "states": {reason}.', "take a causal language model.")

    def _check_read(self) -> None:
        """Refuse trained parameters that no vector depends on."""
        read = {id(p) for p in embeddings(self.model).parameters()}
        unread = [s.name for s, p in self.flat.pairs() if id(p) not in read]
        if unread:
            name = next((n for n, m in self.model.named_modules() if m is embeddings(self.model)), "embed_tokens")
            what = f'retriever.pool = "tokens" reads token embeddings only, and {len(unread)} trained tensors are not '
            fix = f'write trainable.kind = "lora" and targets = ["{name.rsplit(".", 1)[-1]}"], or pool = "states".'
            raise ModelError("E-TARGETS", f"{what}among them ({unread[0]}).", fix)

    def _device_shard(self, device: DeviceId) -> PairShard:
        """Make the shard of a device's pairs."""
        return PairShard(self._store.open(device), self._eval_tokens, self._pass_tokens)

    def loss_of(self, request: FitRequest) -> Loss:
        """Return the loss of pairs. Raises TrainingError(E-TRAIN) for a contrast of models."""
        return TorchTrainer.loss_of(self, request)

    def contrasts(self) -> str | None:
        """Return the reason why no contrast of models is added (``engine.trainer.ContrastsModels``)."""
        return "[retriever] trains by a contrast of its own"

    def noise_steps(self, noise: StepNoise) -> NoReturn:
        """Refuse noise on every step: a pair's gradient depends on the others of its step."""
        what = "the loss of a retriever mixes the pairs of a step, so no noise on a step hides one of them."
        raise TrainingError("E-BN", what, 'write dp.unit = "device".')

    def sum_records(self, sums: RecordSums) -> NoReturn:
        """Refuse sums of records, as ``noise_steps`` does."""
        what = "the loss of a retriever mixes the pairs of a step, so no clip bounds what one of them adds."
        raise TrainingError("E-BN", what, 'write dp.unit = "device".')

    def work(self, request: FitRequest) -> Any:
        """Return steps and weight as ``TextTrainer.work``. Its error names pairs."""
        try:
            return super().work(request)
        except DataError as e:
            if e.code != "E-DEVICE-DATA" or self._open(request.device).count:
                raise
            what = f"device {request.device!r:.60} has fewer than two pairs of a question and a passage to train on."
            raise DataError(e.code, what, "give it more documents, make other pairs, or leave it out.") from None

    def _bytes_per_token(self, devices: Sequence[DeviceId]) -> float:
        """Return 0: the loss is of pairs, and no bits of text follow from it."""
        return 0.0
