"""Trainers of a split model whose activations go up once: with a frozen device part, and with a local loss.

    frozen   every round trains the rest on the activations that the gateway of a device keeps
    local    first rounds: the device trains its part by a head of its own (``learn.models.local_head``)
             other rounds: its part stays as it is, and they train the rest as with a frozen one

Activations cross as the messages of a session (``engine.split_messages``), one for each block of text, with the next
tokens. A gateway that has those of the same device part asks for none.

Shape suffixes: B = batch, T = block length, C = width between blocks, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core import vector
from edgewise.core.errors import DataError, TrainingError
from edgewise.core.keys import Key, derive
from edgewise.core.parts import ModelParts
from edgewise.core.training import DeviceId, FitRequest, Update
from edgewise.core.vector import Vector
from edgewise.engine import split_messages as wire
from edgewise.engine.split_rest import SessionResult, Sessions
from edgewise.engine.trainer import Registered
from edgewise.learn.computing import computing
from edgewise.learn.joined_trainer import JoinedTrainer
from edgewise.learn.models.architecture import embeddings, text_config
from edgewise.learn.models.cut import CutModel, check_cut, cut_model
from edgewise.learn.models.load import TextLoss, token_positions
from edgewise.learn.models.local_head import LocalHead
from edgewise.learn.shards import row_order
from edgewise.learn.split import read_split_labels, read_split_positions, written_split_labels
from edgewise.learn.text.trainer import TextTrainer
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.split_part import check_split_sides, planned_rest_names, split_token_bytes

PROBE = 16  # tokens of the forward pass that compares the stages with the model
NO_PART = np.zeros(0, np.float32)
Cached = tuple[Tensor, Tensor, Tensor | None]  # activations [B, T, C], next tokens [B, T], positions [B, T]


class LocalHeadLoss(TextLoss):
    """The next-token loss of the device's part, by the head of its own."""

    def __init__(self, like: TextLoss, stages: CutModel, head: LocalHead) -> None:
        super().__init__(like.autocast, like.isolated)
        self._stages, self._head = stages, head

    def _predicted(self, model: nn.Module, s_BS: Tensor) -> tuple[Tensor, Tensor]:
        x_BT, y_BT, positions_BT = self.inputs(s_BS)
        with self.arithmetic(s_BS.device.type):
            logits_BTV = self._head(self._stages.device(x_BT, positions_BT), embeddings(model).weight)
        return F.log_softmax(logits_BTV.flatten(0, 1), -1, dtype=torch.float32), y_BT.flatten()


class RestOfModelLoss(TextLoss):
    """The next-token loss of the rest of a model on activations: ``batch`` is (``Cached``, predictions)."""

    def __init__(self, like: TextLoss, stages: CutModel) -> None:
        super().__init__(like.autocast, like.isolated)
        self._stages = stages

    def __call__(self, model: nn.Module, batch: tuple[Any, int]) -> tuple[Tensor, float]:
        """Return the mean negative log-likelihood in nats over a batch's n predictions, and n."""
        (h_BTC, y_BT, positions_BT), n = batch
        with self.arithmetic(h_BTC.device.type):
            logits_BTV = self._stages.server(h_BTC, positions_BT)
        logp = F.log_softmax(logits_BTV.flatten(0, 1), -1, dtype=torch.float32)
        return F.nll_loss(logp, y_BT.flatten(), ignore_index=-1, reduction="sum") / n, n


def cached_between(trainer: Registered, parts: ModelParts, recipe: Recipe, sessions: Sessions) -> Registered:
    """Wrap the text trainer of a whole model into one of a split model whose activations go up once.

    Raises:
        ModelError: E-CUT and E-MEMORY as ``learn.split_trainer.split_between``.
    """
    inner = trainer.trainer
    assert isinstance(inner, TextTrainer)
    made = CachedTrainer(trainer, inner, parts, recipe, sessions)
    return replace(trainer, trainer=made, describes=made, continues=made, together=None, keeps=made, splits=made)


class CachedTrainer(JoinedTrainer):
    """The ``Trainer`` port over the rest of another trainer's model, or over both parts in turn.

    Args:
        parts: with a frozen device part ``parts.shared`` is the rest. With a local loss it is the whole layout, and the
            request names the segments of the round.
        sessions: keeps the activations of devices, as their gateways do.
    """

    def __init__(
        self, inner: Registered, text: TextTrainer, parts: ModelParts, recipe: Recipe, sessions: Sessions
    ) -> None:
        super().__init__(inner, text, parts, recipe, sessions)
        model = text.model
        self._stages = cut_model(model, recipe.split.cut, "head", shared=True)
        ids = torch.arange(PROBE).view(1, PROBE)
        check_cut(model, self._stages, ids.to(text.processor), recipe.data.packing == "isolated")
        names = [s.name for s in parts.whole.segments]
        rest = planned_rest_names(recipe, parts.whole)
        check_split_sides(names, set(self._stages.sides(model)[1]), rest, type(model).__name__)
        fixed = text.flat.fixed
        self._rest = tuple(name for name in names if name in rest and name not in fixed)
        self._device = ModelParts(parts.whole, rest)  # ``shared`` is the device's part.
        self._codec = TokenCodec(recipe.split.activations, text_config(model.config).hidden_size)
        self.vocabulary = int(embeddings(model).weight.shape[0])
        self.token_bytes = split_token_bytes(recipe, self._codec.hidden, self.vocabulary)

    def whole(self, shared: Vector, private: Mapping[str, Vector] | None = None) -> Vector:
        """Join the run's vector with the frozen part. ``private`` is not read."""
        return self.parts.join(shared, self.sessions.current)

    def fit(self, request: FitRequest) -> Update:
        """Train a device's part by its own head, or the rest on the activations that its gateway keeps.

        Raises:
            DataError, TrainingError, StoreError: as ``TorchTrainer.fit``.
        """
        params, text = self.whole(request.params), self._text
        if request.correction.shift is not None:
            shift = self.parts.join(request.correction.shift, np.zeros(self.parts.own.dim, np.float32))
            request = replace(request, correction=replace(request.correction, shift=shift))
        own = text.loss
        try:
            if self._split.local and not set(self._rest) & set(request.rule.segments):
                assert text.local_head is not None
                text.loss = LocalHeadLoss(own, self._stages, text.local_head)
                return text.fit(replace(request, params=params))
            messages, count = self._messages(request, params)
            text.loss = RestOfModelLoss(own, self._stages)
            names = tuple(n for n in self._rest if not request.rule.segments or n in request.rule.segments)
            rule = msgspec.structs.replace(request.rule, segments=names)
            batches = self._batches(messages, rule.steps, derive(request.key, "batches"))
            update = text.fitted(replace(request, params=params, rule=rule), batches, count)
            return replace(update, x=self.parts.split(update.x)[0])
        finally:
            text.loss = own

    def _messages(self, request: FitRequest, params: Vector) -> tuple[list[bytes], float]:
        """Return the messages of all blocks of a device, and its weight. They cross where the gateway has none."""
        device, round = request.device, request.round
        version = bytes.fromhex(vector.digest(vector.to_bytes(self._device.split(params)[0])))
        count = float(self._text.text(device).count)
        if not count:
            raise DataError("E-DEVICE-DATA", f"device {device!r:.60} has no token to predict.", "give it more text.")
        found, crossed = self.sessions.cached(device, version), 0
        if found is None:
            with computing(device):
                found = list(self._encoded(device, params))
            crossed = sum(map(len, found))
        if not self.sessions.ended(round, device):  # A session that is repeated after a stop has its bytes already.
            self.sessions.end(round, device, SessionResult(NO_PART, count, request.rule.steps, crossed, 0))
        if crossed:
            self.sessions.cache(device, version, found)
        return found, count

    def _encoded(self, device: DeviceId, params: Vector) -> Iterator[bytes]:
        """Compute the activations of each block without dropout. Yields a message for each."""
        text = self._text
        text.flat.write(params)
        text.model.eval()
        shard = text.text(device)
        for row in range(shard.size):
            (s_1S, _) = shard.records(np.array([row]))[0]
            x_1T, y_1T, positions_1T = text.loss.inputs(s_1S.to(text.processor))
            with torch.no_grad(), text.loss.arithmetic(text.processor.type):
                h_1TC = self._stages.device(x_1T, positions_1T)
            try:
                body = self._codec.encode(h_1TC.float().cpu().flatten(0, 1).numpy())
            except ValueError as e:
                raise TrainingError("E-NAN", f"activations cannot be sent: {e}.", "lower training.lr.") from None
            begins = None if positions_1T is None else np.packbits((positions_1T == 0).cpu().numpy()).tobytes()
            yield wire.dump(
                wire.Crossing(
                    attempt=1, step=0, micro=row, kind="activations", body=body, rows=1, length=x_1T.shape[1],
                    labels=written_split_labels(y_1T, self.vocabulary), begins=begins,
                )
            )  # fmt: skip

    def _batches(self, messages: Sequence[bytes], steps: int, key: Key) -> Iterator[list[tuple[Cached, int]]]:
        """Iterate over the micro-batches of each step, in the order in which a device would draw its blocks."""
        training = self._training
        size = training.batch // training.accumulate
        for rows in row_order(len(messages), steps, training.batch, key):
            yield [self._batch([messages[int(r)] for r in rows[i : i + size]]) for i in range(0, len(rows), size)]

    def _batch(self, messages: Sequence[bytes]) -> tuple[Cached, int]:
        """Decode a micro-batch. Shorter blocks are padded behind, where nothing is predicted."""
        rows = [wire.from_device(raw, len(raw)) for raw in messages]
        crossings = [row for row in rows if isinstance(row, wire.Crossing)]
        longest = max(row.length for row in crossings)
        h_BTC = torch.zeros(len(rows), longest, self._codec.hidden)
        y_BT = torch.full((len(rows), longest), -1)
        begins_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(crossings):
            h_BTC[i, : row.length] = torch.from_numpy(self._codec.decode(row.body, row.length))
            y_BT[i, : row.length] = read_split_labels(row.labels, (1, row.length), self.vocabulary)[0]
            if row.begins is not None:
                begins_BT[i, : row.length] = read_split_positions(row.begins, (1, row.length))[0] == 0
        at = self._text.processor
        packed = any(row.begins is not None for row in crossings)
        placed = token_positions(begins_BT).to(at) if packed else None
        return (h_BTC.to(at), y_BT.to(at), placed), max(1, int((y_BT >= 0).sum()))

    def describe(self) -> dict[str, Any]:
        """Describe the inner trainer, with both parts of the layout and the bytes of a token at the cut."""
        split = {
            "cut": self._split.cut,
            "shape": self._split.shape,
            "once": True,
            "device_parameters": self._device.shared.dim,
            "rest_parameters": self._device.own.dim,
            "token_bytes": self.token_bytes,
        }
        return {**self.inner.describe(), "split": split, "whole_spec": self.parts.whole.to_list()}
