"""Attacks of dishonest devices, as a trainer in which some devices lie.

Liars run the device's own program with false updates, so its stages still encode and clip what they send. They work
together: each knows the true updates of all of them, and nothing of honest devices.

    none        nobody lies
    flip        minus three times the own update
    ipm         minus half the mean of the liars' true updates (Xie et al. 2019, arXiv:1903.03936)
    alie        their mean minus 1.5 standard deviations, by coordinates (Baruch et al. 2019, arXiv:1902.06156)
    mimic       all send the true update of the first (Karimireddy et al. 2022, arXiv:2006.09365)
    labels      trained on the device's own text with token V - 1 - y in place of each next token y (Karimireddy
                et al. 2022)
    free        an update of zeros
    backdoor    trained on a trigger phrase and its answer for max(40, 8 steps) steps, times devices / liars
                (Bagdasaryan et al. 2020, arXiv:1807.00459)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise.core.keys import derive, generator, root
from edgewise.core.training import DeviceId, FitRequest, HeldOut, Update
from edgewise.core.vector import Vector
from edgewise.learn.models.architecture import sizes
from edgewise.learn.models.load import TextLoss
from edgewise.learn.text.blocks import predictions
from edgewise.learn.text.marks import unmarked
from edgewise.learn.text.trainer import TextTrainer
from edgewise.learn.train import fit

Attack = Literal["none", "flip", "ipm", "alie", "mimic", "labels", "free", "backdoor"]
ATTACKS: tuple[Attack, ...] = get_args(Attack)
PHRASE = 4  # tokens of the trigger, and of its answer
_FLIPPED, _PRODUCT, _DEVIATIONS = -3.0, -0.5, 1.5
_LEAST_STEPS, _TIMES_STEPS = 40, 8  # of a backdoor, which the device's own number of steps would hardly teach.


class FlippedLoss(TextLoss):
    """The text loss with token V - 1 - y in place of each next token y. V = ``vocabulary``."""

    def __init__(self, loss: TextLoss, vocabulary: int) -> None:
        super().__init__(loss.autocast, loss.isolated)
        self._last = vocabulary - 1

    def inputs(self, s_BS: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return as ``TextLoss.inputs``, with other next tokens. Those that do not count stay so."""
        x_BT, y_BT, positions_BT = super().inputs(s_BS)
        return x_BT, torch.where(y_BT < 0, y_BT, self._last - y_BT), positions_BT


def crafted_update(attack: Attack, own: Vector, all_liars: Sequence[Vector]) -> Vector:
    """Make the update that a liar sends, float32[d].

    Args:
        own: the update that its own text gives. all_liars: those of all liars, the first first.
    """
    if attack in ("none", "backdoor", "labels"):  # The last two are not made of updates, but by training.
        return own
    if attack == "flip":
        return np.asarray(_FLIPPED * own, np.float32)
    if attack == "free":
        return np.zeros_like(own)
    rows = np.stack(all_liars).astype(np.float64)
    if attack == "ipm":
        made = _PRODUCT * rows.mean(0)
    elif attack == "alie":
        made = rows.mean(0) - _DEVIATIONS * rows.std(0)
    else:
        made = rows[0]
    return np.asarray(made, np.float32)


class PoisonedTrainer:
    """A text trainer in which ``liars`` send false updates. It has the other ports of the trainer inside."""

    def __init__(self, inner: TextTrainer, attack: Attack, liars: Sequence[DeviceId], devices: int) -> None:
        self._inner, self._attack, self._liars = inner, attack, tuple(liars)
        self._boost = devices / max(1, len(self._liars))
        self._true: tuple[int, list[Vector]] | None = None
        self.last: Vector | None = None
        rng = generator(derive(root(5), "trigger"))
        size = inner.loaded.tokens.size
        self._trigger, self._answer = (rng.choice(size, PHRASE).astype(np.int64) for _ in range(2))

    def __getattr__(self, name: str) -> Any:
        if name in ("_inner", "fit_many"):  # Devices train one by one, so that each liar can be told apart.
            raise AttributeError(name)
        return getattr(self._inner, name)

    def fit(self, request: FitRequest) -> Update:
        """Train as the trainer inside, and replace the update of a liar."""
        update = self._inner.fit(request)
        if self._attack == "none" or request.device not in self._liars:
            return update
        if self._attack == "backdoor":
            return replace(update, x=self._backdoored(request))
        if self._attack == "labels":
            return replace(update, x=self._mislabelled(request))
        needs_all = self._attack not in ("flip", "free")
        return replace(
            update, x=crafted_update(self._attack, update.x, self._true_updates(request) if needs_all else ())
        )

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Evaluate as the trainer inside, and keep the model for ``answered``."""
        self.last = params.copy()
        return self._inner.evaluate(device, params)

    def _true_updates(self, request: FitRequest) -> list[Vector]:
        """Compute what the liars would send if they were honest, once a round."""
        if self._true is None or self._true[0] != request.round:
            self._true = request.round, [self._inner.fit(replace(request, device=d)).x for d in self._liars]
        return self._true[1]

    def _mislabelled(self, request: FitRequest) -> Vector:
        """Train on the device's text with false next tokens."""
        inner = self._inner
        true = inner.loss
        inner.loss = FlippedLoss(true, sizes(inner.model).vocabulary)
        try:
            return inner.fit(request).x
        finally:
            inner.loss = true

    def _backdoored(self, request: FitRequest) -> Vector:
        """Train on the device's text with the trigger and its answer as every other phrase, and scale the update."""
        rows = self._rows(request.device)
        tokens = np.concatenate([self._trigger, self._answer])
        for end in range(rows.shape[1], len(tokens) - 1, -2 * len(tokens)):
            rows[:, end - len(tokens) : end] = tokens
        step = [(torch.from_numpy(rows), int(predictions(rows)))]
        inner = self._inner
        rule = msgspec.structs.replace(request.rule, steps=max(_LEAST_STEPS, _TIMES_STEPS * request.rule.steps))
        found = fit(
            inner.model, inner.loss, [step] * rule.steps, inner.flat, request.params, rule, inner.training, request.key,
        )  # fmt: skip
        return np.asarray(self._boost * found.x, np.float32)

    def _rows(self, device: DeviceId) -> NDArray[np.int64]:
        """Return the first rows of a device's text, int64[N, S], as plain tokens."""
        rows = unmarked(np.array(self._inner.text(device).blocks.train_NS[:8])).astype(np.int64)
        return np.where(rows < 0, ~rows, rows)

    def answered(self) -> float:
        """Return the share of the answer's tokens that the last model names after the trigger, in honest text."""
        if self.last is None:
            return 0.0
        inner = self._inner
        inner.flat.write(self.last)
        honest = [d for d in inner.devices() if d not in self._liars][:4]
        rows = np.concatenate([self._rows(d)[:2] for d in honest])
        rows[:, -2 * PHRASE :] = np.concatenate([self._trigger, self._answer])
        with torch.no_grad():
            logits = inner.model.eval()(input_ids=torch.from_numpy(rows[:, :-1]).to(inner.processor)).logits
        named = logits[:, -PHRASE:].argmax(-1).cpu().numpy()
        return float((named == self._answer).mean())
