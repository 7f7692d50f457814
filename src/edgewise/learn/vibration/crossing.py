"""What crosses from a node to the edge server of its factory, as the messages of split learning.

    messages = written(encoder, windows, codec)       # activations and labels, once
    h_BTC, label = read(messages, codec, classes)

Shape suffixes: B = windows, T = tokens, C = channels of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.errors import DecodeError, TrainingError
from edgewise.core.keys import Key, derive, word
from edgewise.core.vector import Array
from edgewise.engine import split_messages as wire
from edgewise.learn.split import read_split_labels, written_split_labels
from edgewise.learn.vibration.network import CHANNELS
from edgewise.learn.vibration.windows import Windows

AT_ONCE = 256  # windows of a message


def written(encoder: nn.Module, windows: Windows, codec: TokenCodec, classes: int) -> list[bytes]:
    """Compute the activations of all windows. Returns their messages, with labels.

    Raises TrainingError(E-NAN) for activations that are not finite.
    """
    out = []
    with torch.no_grad():
        for number, at in enumerate(range(0, len(windows.label), AT_ONCE)):
            h_BTC = encoder(torch.from_numpy(windows.x[at : at + AT_ONCE]))
            label = torch.from_numpy(windows.label[at : at + AT_ONCE])
            out.append(_up(h_BTC, codec, number, written_split_labels(label, classes)))
    return out


def _up(h_BTC: Tensor, codec: TokenCodec, micro: int, labels: bytes, step: int = 0) -> bytes:
    """Write the message of a batch's activations."""
    try:
        body = codec.encode(h_BTC.detach().flatten(0, 1).numpy())
    except ValueError as e:
        raise TrainingError("E-NAN", f"activations cannot be sent: {e}.", "lower training.lr.") from None
    return wire.dump(
        wire.Crossing(
            attempt=1, step=step, micro=micro, kind="activations", body=body,
            rows=h_BTC.shape[0], length=h_BTC.shape[1], labels=labels,
        )
    )  # fmt: skip


def read(messages: Sequence[bytes], codec: TokenCodec, classes: int) -> tuple[Array, Array]:
    """Read activations float32[B, T, C] and labels int64[B]. Raises DecodeError for anything but ``written``'s."""
    found, labels = [], []
    for raw in messages:
        message = wire.from_device(raw, len(raw))
        if not isinstance(message, wire.Crossing) or not (message.rows and message.length and message.labels):
            raise DecodeError("E-FRAME", "the message holds no activations with labels.")
        h_NC = codec.decode(message.body, message.rows * message.length)
        found.append(h_NC.reshape(message.rows, message.length, CHANNELS))
        labels.append(read_split_labels(message.labels, (message.rows, 1), classes)[:, 0].numpy())
    return np.concatenate(found), np.concatenate(labels)


class VibrationLink:
    """The link of a node that trains end to end: activations cross up and gradients down, in each step.

    Attributes:
        up, down: bytes of all messages so far.
    """

    def __init__(self, activations: TokenCodec, gradients: TokenCodec, classes: int) -> None:
        self.activations, self.gradients, self.classes = activations, gradients, classes
        self.up = self.down = 0
        self._step, self._key = 0, bytes(32)

    def begin(self, key: Key) -> None:
        """Begin the steps of a round. ``key`` decides how gradients are rounded."""
        self.up = self.down = self._step = 0
        self._key = key

    def cross(self, h_BTC: Tensor, label: Tensor) -> Tensor:
        """Return the activations that the server decodes. Their gradient crosses back."""
        crossed: Tensor = _Crossed.apply(h_BTC, label, self)
        return crossed

    def send_up(self, h_BTC: Tensor, label: Tensor) -> Tensor:
        """Carry activations to the server."""
        self._step += 1
        raw = _up(h_BTC, self.activations, 0, written_split_labels(label, self.classes), self._step)
        self.up += len(raw)
        return torch.from_numpy(read([raw], self.activations, self.classes)[0])

    def send_down(self, g_BTC: Tensor) -> Tensor:
        """Carry gradients to the node."""
        body = self.gradients.encode(g_BTC.flatten(0, 1).numpy(), word(derive(self._key, "gradients", self._step)))
        raw = wire.dump(wire.Returned(attempt=1, step=self._step, micro=0, kind="gradients", body=body))
        self.down += len(raw)
        message = wire.from_server(raw, len(raw))
        assert isinstance(message, wire.Returned)
        n = g_BTC.shape[0] * g_BTC.shape[1]
        return torch.from_numpy(self.gradients.decode(message.body, n)).view(g_BTC.shape)


class _Crossed(torch.autograd.Function):
    """The identity, but for rounding, whose two directions are messages."""

    @staticmethod
    def forward(ctx: Any, h_BTC: Tensor, label: Tensor, link: VibrationLink) -> Tensor:
        ctx.link = link
        return link.send_up(h_BTC, label)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.link.send_down(grads[0]), None, None
