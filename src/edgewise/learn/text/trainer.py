"""Make the text trainer of a recipe from its model, corpus and blocks. It has the engine's ``Trainer`` port.

    trainer = make(recipe, recipe_dir, cache_dir)
    update = trainer.fit(request)

Shape suffixes: N = blocks, B = blocks of a micro-batch, S = tokens per block (sequence_len + 1).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from edgewise.core.errors import DataError, ModelError, RecipeError
from edgewise.core.keys import Key, derive, root, word
from edgewise.core.metric import IN_ALARM
from edgewise.core.training import POOLED, DeviceId, FitRequest, HeldOut, StepNoise, Update
from edgewise.core.vector import Vector
from edgewise.learn.batched import OnePass
from edgewise.learn.computing import computing
from edgewise.learn.contrast import lacks_representation, loss_for
from edgewise.learn.models import quantized
from edgewise.learn.models.adapters import without_adapter
from edgewise.learn.models.architecture import shares, sizes, unread
from edgewise.learn.models.fingerprint import frozen_digest
from edgewise.learn.models.load import TextLoss, checkpointing
from edgewise.learn.models.memory import evaluated_at_once, forecast, forward_bytes_per_token
from edgewise.learn.models.memory_picks import MemoryPick, with_choice
from edgewise.learn.shards import Shard
from edgewise.learn.text import corpus as corpora
from edgewise.learn.text import openings
from edgewise.learn.text.blocks import BlockStore
from edgewise.learn.text.corpus import Corpus
from edgewise.learn.text.counts import Counts
from edgewise.learn.text.drift import DriftWork
from edgewise.learn.text.marks import unmarked
from edgewise.learn.text.prepared import Prepared, prepare
from edgewise.learn.text.reading import MOST_DEVICES, reading
from edgewise.learn.text.redealt import RedealtStore, Skew
from edgewise.learn.text.shards import PooledShard, TextShard
from edgewise.learn.text.stream import StreamShard, StreamStore, unreached
from edgewise.learn.torch_task import TorchTrainer
from edgewise.learn.train import Batch, Loss, Penalty
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.recipe.sections import TrainingSection

OPEN_DEVICES = 256  # The blocks of so many devices stay open as memory maps.
SAMPLED_DEVICES, SAMPLED_BLOCKS = 16, 32  # Devices, and blocks of each, that estimate the bytes of a token.


def make(
    recipe: Recipe,
    recipe_dir: Path,
    cache_dir: Path,
    device: DeviceId | None = None,
    worker: int = 0,
    copies: Path | None = None,
    skew: Skew = "own",
) -> TextTrainer:
    """Make the trainer of a recipe's text and model.

    Args:
        recipe_dir: the folder where relative paths in the recipe start.
        cache_dir: folder for tokenized blocks. Processes and runs may share it. It may be deleted between runs.
        device: an enrolled device, which owns all of the text. None shares the text out by the recipe.
        worker: number of this worker process, which decides its GPU.
        copies: folder for a quantized copy of the base. None is ``cache_dir``.
        skew: how all blocks are dealt out to the devices anew (``learn.text.redealt``). Simulations only.
    Raises:
        ModelError: E-MODEL, E-MODEL-REMOTE, E-QUANTIZE, E-TARGETS.
        DataError: E-DATA-*.
        RecipeError: E-HARDWARE. E-COMBO for a skew of a stream, and for [retriever].
    """
    if recipe.retriever.active:
        what = "[retriever] trains on pairs, and what was asked for needs a model that learns text by the next token."
        raise RecipeError("E-COMBO", what, "leave out [retriever].")
    key = root(recipe.seed)
    records = recipe.dp.example  # With records as the unit, a document may influence its own blocks only.
    corpus = corpora.load(recipe.data, recipe_dir, cache_dir, derive(key, "data"), lenient=records)
    if device is not None:
        corpus = corpus.of(device)
    prepared = prepare(recipe, recipe_dir, copies or cache_dir, worker, corpus.devices if recipe.engine.limits else ())
    if skew != "own" and recipe.data.stream:
        what = f'the blocks of a stream (data.stream) cannot be dealt out anew ("{skew}"): each belongs to its window.'
        raise RecipeError("E-COMBO", what, "leave out data.stream, or the skew.")
    kind = StreamStore if recipe.data.stream else BlockStore
    store = kind(corpus, prepared.loaded.tokens, recipe.data, cache_dir, apart=records)
    dealt = store if skew == "own" else RedealtStore(store, corpus.devices, skew, derive(key, "data"))
    return TextTrainer(recipe, prepared, corpus, dealt)


class TextTrainer(TorchTrainer):
    """The trainer of a causal language model over the devices' text. An update's weight is its training tokens."""

    def __init__(self, recipe: Recipe, prepared: Prepared, corpus: Corpus, store: BlockStore | RedealtStore) -> None:
        loaded, loss = prepared.loaded, TextLoss(prepared.arithmetic, recipe.data.packing == "isolated")
        self.loaded, self.corpus, self._store = loaded, corpus, store
        self.local_head = prepared.local_head
        self._drift = DriftWork(recipe.drift)
        self._eval_tokens, self._data, self._rounds = recipe.eval.max_tokens, recipe.data, recipe.round.rounds
        self._trainable, self._adapts = recipe.trainable, recipe.trainable.adapts
        self._quantize, self._own = recipe.model.quantize, recipe.personal.own_adapter
        self._picks, self._recipe_checkpoints = prepared.picks, recipe.training.checkpointing
        self._open = lru_cache(OPEN_DEVICES)(self._device_shard)
        found = sizes(loaded.model)
        self._pass_tokens = evaluated_at_once(found.vocabulary)
        micro = recipe.training.batch // recipe.training.accumulate * recipe.data.sequence_len
        super().__init__(
            loaded.model, loss, self._pooled_or_device, recipe.training, corpus.devices, prepared.flat,
            arithmetic=loss.autocast, forward_bytes=float(micro * forward_bytes_per_token(found)),
            processor=prepared.processor,
        )  # fmt: skip
        if not self._own:  # Devices with an adapter of their own train one by one.
            self.passes = OnePass(self.model, loss, self.flat)

    def _device_shard(self, device: DeviceId) -> TextShard:
        """Make the shard of a device's blocks."""
        at_once = self._picks.pass_tokens(device, self._pass_tokens)
        if self._data.stream:
            return StreamShard(self._store.open(device), self._eval_tokens, at_once, self._data)
        return TextShard(self._store.open(device), self._eval_tokens, at_once)

    def _shard_of(self, request: FitRequest) -> Shard:
        """Return the text that a request trains on: of a stream the current window, and earlier text to replay."""
        shard = self._pooled_or_device(request.device)
        if isinstance(shard, StreamShard):
            return shard.at(request.device, request.round, derive(request.secret, "replay"))
        return shard

    def _training_of(self, device: DeviceId) -> TrainingSection:
        pick = self._picks.of(device)
        return self.training if pick is None else self.training.model_copy(update={"accumulate": pick.accumulate})

    @contextmanager
    def _as_picked(self, pick: MemoryPick | None) -> Iterator[None]:
        """Compute inside with the settings of a device with a limit."""
        if pick is None:
            yield
            return
        own, self.loss.autocast = self.loss.autocast, pick.arithmetic
        try:
            with checkpointing(self.model, pick.checkpointing and not self._recipe_checkpoints):
                yield
        finally:
            self.loss.autocast = own

    def fit(self, request: FitRequest) -> Update:
        """Train as ``TorchTrainer.fit``, with the settings of a device with a limit."""
        pick = self._picks.of(request.device)
        with self._as_picked(pick):
            (trained,) = with_choice(
                pick, self._trainable, [request], lambda some: [super(TextTrainer, self).fit(some[0])]
            )
        if isinstance(trained, Exception):
            raise trained
        return trained

    def fit_many(self, requests: Sequence[FitRequest]) -> list[Update | Exception]:
        """Train as ``TorchTrainer.fit_many``. Devices with other settings are in a pass of their own."""
        groups: dict[MemoryPick | None, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(self._picks.of(request.device), []).append(i)
        found: dict[int, Update | Exception] = {}
        for pick, group in groups.items():
            with self._as_picked(pick):
                trained = with_choice(pick, self._trainable, [requests[i] for i in group], super().fit_many)
            found |= zip(group, trained, strict=True)
        return [found[i] for i in range(len(requests))]

    def fitted(
        self,
        request: FitRequest,
        batches: Iterable[Sequence[Batch]],
        count: float,
        dp: StepNoise | None = None,
        expected: float = 0.0,
        penalty: Penalty | None = None,
    ) -> Update:
        """Train as ``TorchTrainer.fitted``, with the work of [drift] before."""
        shard = self._pooled_or_device(request.device)
        if not isinstance(shard, StreamShard):
            return super().fitted(request, batches, count, dp, expected, penalty)
        with computing(request.device, self.smaller):
            work = self._drift.before(self, shard, request)
        update = super().fitted(request, batches, count, dp, expected, work.penalty)
        return replace(update, personal=work.memory, head={**update.head, **work.head})

    def metrics(self) -> Sequence[str]:
        """List the metrics beside losses (``engine.trainer.ReportsMetrics``)."""
        return [IN_ALARM] if self._drift.alarms else []

    def contrasts(self) -> str | None:
        """Return the reason why its model gives no representations (``engine.trainer.ContrastsModels``)."""
        return lacks_representation(self.model, self.own)

    def loss_of(self, request: FitRequest) -> Loss:
        """Return the text loss, with a contrast of representations where the request has one."""
        return loss_for(self.loss, self.flat, request)

    def blocks_that_fit(self, device: DeviceId) -> int:
        """Return the number of last blocks that fit a device's limit of memory (``engine.trainer.FitsBlocks``)."""
        pick = self._picks.of(device)
        return 0 if pick is None else pick.blocks

    def _pooled_or_device(self, device: DeviceId) -> TextShard | PooledShard:
        return self._pooled_shard if device == POOLED else self._open(device)

    @cached_property
    def _pooled_shard(self) -> PooledShard:
        """Make the shard of all devices' blocks."""
        return PooledShard(self._open, self.devices())

    def work(self, request: FitRequest) -> tuple[Iterable[Sequence[Batch]], float]:
        """Return steps and weight as ``TorchTrainer.work``. Errors name ``data.max_tokens`` if that is the cause."""
        with self._explained_errors(request.device):
            return super().work(request)

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Evaluate as ``TorchTrainer.evaluate``. Its error names ``data.max_tokens`` if that is the cause."""
        with self._explained_errors(device), self._as_picked(self._picks.of(device)):
            return super().evaluate(device, params)

    @contextmanager
    def _explained_errors(self, device: DeviceId) -> Iterator[None]:
        """Add to an error of a device without blocks how much of its text was left out."""
        try:
            yield
        except DataError as e:
            limit = self._data.max_tokens
            if e.code != "E-DEVICE-DATA" or not limit or not (beyond := self._counts_beyond_limit(device)):
                raise
            prompts = ", since a prompt alone is as long" if beyond.prompts_over else ""
            what = f"{e.what} data.max_tokens = {limit} leaves out texts of it{prompts}."
            raise DataError(e.code, what, "raise data.max_tokens.") from None

    def _counts_beyond_limit(self, device: DeviceId) -> Counts | None:
        """Count the text beyond data.max_tokens. None where there is none."""
        if device == POOLED:
            return None
        with suppress(DataError):
            counts = Counts(*map(int, self._open(device).blocks.counts))
            return counts if counts.beyond else None
        return None

    def sizes(self) -> Mapping[str, float]:
        """Return sizes as ``TorchTrainer.sizes``, with the memory forecast of the model's configuration."""
        return {**super().sizes(), "memory_bytes": self._picks.largest or self._memory_forecast()}

    def smaller(self) -> str:
        """Describe training that needs less memory, with forecasts."""
        ways = {
            "training.accumulate": self.training.batch,
            "training.checkpointing": True,
        }
        settings: dict[str, Any] = {}
        said = [f"this recipe needs about {self._memory_forecast() / 1e6:,.0f} MB beside Python and torch"]
        for key, value in ways.items():
            settings[key.removeprefix("training.")] = value
            try:
                less = self._memory_forecast(**settings) / 1e6
            except ModelError:  # This architecture cannot compute its activations again.
                break
            also = " also" if len(settings) > 1 else ""
            said.append(f"with {key} = {str(value).lower()}{also} {less:,.0f} MB")
        return f"{', '.join(said)}."

    def _memory_forecast(self, **changes: Any) -> float:
        """Forecast the memory of training with other settings."""
        training = self.training.model_copy(update=changes)
        length, arithmetic = self._data.sequence_len, self.loss.autocast
        section, quantize = self._trainable, self._quantize
        return forecast(self.loaded.folder, section, training, length, arithmetic, quantize, own=self._own).total

    def text(self, device: DeviceId) -> TextShard:
        """Return one device's blocks. Raises DataError(E-DEVICE-DATA, E-DATA-*) where they cannot be made."""
        return self._open(device)

    @property
    def autocast(self) -> torch.dtype:
        """The dtype of the model's arithmetic."""
        return self.loss.autocast

    def fingerprint(self) -> str:
        """Return the SHA-256 of all documents' names, lengths and contents. It reads all text once."""
        return self.corpus.fingerprint()

    def sample(self, device: DeviceId, params: Vector, key: Key) -> tuple[str, str, str]:
        """Continue the beginning of a device's held-out text with a model.

        Args:
            params: float32[d], the model.
            key: decides the draws.
        Returns:
            The beginning, its true continuation, and the model's.
        Raises:
            DataError: E-DEVICE-DATA where the device's hold-out is too short.
        """
        held_NS = self._open(device).blocks.held_NS
        found = openings.opening(unmarked(held_NS[0])) if len(held_NS) else None
        if found is None:
            what = f"device {device!r:.60} has too little text for a hold-out."
            raise DataError("E-DEVICE-DATA", what, "give it more text, or raise data.holdout.")
        from edgewise.learn.models.streaming import Decoding, stream  # transformers' generation takes a second to load.

        tokens, context = self.loaded.tokens, sizes(self.model).context
        prompt = found.prompt if context is None else found.prompt[-max(1, context // 2) :]
        decoding = Decoding(max_tokens=openings.NEW, seed=word(key))
        half = torch.autocast(self.processor.type, torch.bfloat16, enabled=self.loss.autocast is torch.bfloat16)
        with computing(device), half:
            self.flat.write(params)
            answer = stream(self.model, tokens, prompt, decoding, lambda _: None)
        return tokens.decode(found.prompt), tokens.decode(found.actual), answer.text

    def describe(self) -> dict[str, Any]:
        """Describe model, vocabulary, arithmetic, data and text of a run, as plain JSON.

        Each device's training tokens and the bytes of a token are counted for up to 1,000 devices. Of more devices only
        those that take part, and a sample, are ever tokenized.
        """
        sizes, listed = super().sizes(), self.devices() if len(self.devices()) <= MOST_DEVICES else ()
        # Workers share the cache. Half of them begin at the other end, so that they meet in the middle.
        tokens = {d: self._train_tokens(d) for d in (listed if os.getpid() % 2 else reversed(listed))}
        return {
            "model": self.loaded.name,
            "parameters": int(sizes["parameters"]),
            "trainable": int(sizes["trainable"]),
            "vocabulary": self.loaded.tokens.size,
            "hardware": self.processor.type,
            "precision": str(self.loss.autocast).removeprefix("torch."),
            "fingerprint": self.fingerprint(),
            "model_fingerprint": frozen_digest(self.model),
            **({"model_commit": self.loaded.commit} if self.loaded.commit else {}),
            **({"notes": list(self.notes())} if self.notes() else {}),
            "devices": {d: tokens[d] for d in listed},
            "bytes_per_token": self._bytes_per_token(listed),
            "reading": self.reading(),
        }

    def _bytes_per_token(self, devices: Sequence[DeviceId]) -> float:
        """Estimate the bytes of UTF-8 text per predicted token, from the beginnings of some devices' text.

        Edge cases: 0 where there is no text.
        """
        size, count = 0, 0
        for device in devices[:: -(-len(devices) // SAMPLED_DEVICES) or 1]:
            try:
                blocks_NS = unmarked(self._open(device).blocks.train_NS[:SAMPLED_BLOCKS, 1:])
            except DataError:
                continue
            ids = blocks_NS[blocks_NS >= 0]
            size, count = size + len(self.loaded.tokens.decode(ids).encode()), count + len(ids)
        return round(size / count, 4) if count else 0.0

    def reading(self, most_bytes: int = 0) -> dict[str, Any]:
        """Count the text that was read and left out (``learn.text.reading``)."""
        return reading(self.corpus, self._data, lambda device: self._open(device).blocks, most_bytes)

    def notes(self) -> tuple[str, ...]:
        """Return sentences that a person should know before a run.

        They name settings of the model's files that edgewise overrides, parts of the model that are never trained, and
        settings that limits of memory picked.
        """
        sentences = (*self.loaded.tokens.notes, *self._picks.notes())
        sentences += unreached(self._data, self._rounds, self.corpus.last_window)
        bare = without_adapter(self.model) if self._adapts else {}
        if idle := {} if self._adapts else unread(self.model):
            share = 100 * sum(idle.values()) / self.spec.dim
            parts = ", ".join(sorted(idle))
            sentences += (
                f"{share:.0f} % of the trained weights are where no text runs through ({parts}) and never move.",
            )
        if bare:
            weights = sum(quantized.count(p) for p in self.model.parameters() if not p.requires_grad)
            share = 100 * sum(bare.values()) / weights
            sentences += (
                f"{share:.0f} % of the model's weights have no adapter and are never trained: {shares(bare)}.",
            )
        return sentences

    def _train_tokens(self, device: DeviceId) -> int:
        try:
            return int(self._open(device).count)
        except DataError:  # A device with unreadable text cannot train, and ``fit`` says why.
            return 0
