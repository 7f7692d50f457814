"""Both sides of split learning in torch. They perform the effects of the machines in ``engine.split``.

    device = DevicePart(cut(model, 2, "U"), loss, flat, names, ...)
    server = ServerPart(...)
    crossed = train_split_session(device, server, True, steps=10)   # both in this process, over the bytes of the wire

The step is that of training the whole model (``learn.train``). Gradients of summed losses over all micro-batches are
divided by the number of predicted tokens, and clipped by the norm over both parts.

Shape suffixes: B = batch, S = block length + 1, T = block length, C = width between blocks, V = vocabulary, N = B T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.errors import DecodeError, TrainingError
from edgewise.core.keys import Key, derive, word
from edgewise.engine import split_messages as wire
from edgewise.engine import split_states as events
from edgewise.engine.split import step_device, step_server
from edgewise.learn.flat import FlatStorage
from edgewise.learn.models.cut import CutModel
from edgewise.learn.models.load import TextLoss, summed_loss
from edgewise.learn.split_labels import given_split_part, read_split_labels, read_split_positions, written_split_labels
from edgewise.learn.train import LOWER, Batch, LocalOptimizer
from edgewise.plan.recipe.sections import TrainingSection
from edgewise.privacy.token_noise import TokenNoise

DEFAULT_WINDOW = 2


@dataclass(frozen=True)
class CutCrossings:
    """Rounding of what crosses the cut, and noise on what goes up.

    Attributes:
        activations: rounds to the nearest value. gradients: rounds at random without bias.
        activation_noise, gradient_noise: clip and noise of the device's activations and output gradients, before
            rounding. None adds none.
    """

    activations: TokenCodec
    gradients: TokenCodec
    activation_noise: TokenNoise | None = None
    gradient_noise: TokenNoise | None = None


class PartTraining:
    """One side's parameters, their gradients and their optimizer. Base of both sides.

    Args:
        flat: storage of the trained parameters, those of both sides or of one.
        names: the segments of this side.
        lr: learning rate of the session.
        key: decides random rounding.
    """

    def __init__(
        self,
        flat: FlatStorage,
        names: Sequence[str],
        training: TrainingSection,
        lr: float,
        crossings: CutCrossings,
        key: Key,
        optimizer: LocalOptimizer | None = None,
    ) -> None:
        self.names, self._clip, self._lr = list(names), training.clip_grad, lr
        self._crossings, self._key = crossings, key
        self._processor = flat.w_D.device
        self._pieces = flat.runs(flat.g_D, self.names) if self.names else []
        self._optimizer = optimizer or LocalOptimizer(training, flat)
        self._optimizer.reset(self.names)

    def zero(self) -> None:
        """Set the gradients of this side to zero."""
        for g in self._pieces:
            g.zero_()

    def divided(self, terms: float) -> float:
        """Divide the gradients of this side by the number of terms. Returns their squared norm."""
        for g in self._pieces:
            g.div_(terms)
        return float(sum(torch.linalg.vector_norm(g).double() ** 2 for g in self._pieces))

    def take_step(self, norm2: float) -> None:
        """Clip by the norm over both sides, and take the optimizer's step."""
        if self._clip:
            for g in self._pieces:
                g.mul_(min(1.0, self._clip / (math.sqrt(norm2) + 1e-6)))
        if self.names:
            self._optimizer.step(self._lr)

    def up(self, x_BTC: Tensor) -> bytes:
        """Encode activations. Raises TrainingError(E-NAN)."""
        return self._encoded(self._crossings.activations, x_BTC, None)

    def gradient(self, x_BTC: Tensor, *labels: str | int) -> bytes:
        """Encode gradients, at random by the labels. Raises TrainingError(E-NAN)."""
        return self._encoded(self._crossings.gradients, x_BTC, word(derive(self._key, *labels)))

    def _encoded(self, codec: TokenCodec, x_BTC: Tensor, seed: int | None) -> bytes:
        with _as_training_error():
            return codec.encode(_rows(x_BTC), seed)

    def decoded(self, codec: TokenCodec, body: bytes, like: tuple[int, int]) -> Tensor:
        """Decode float32[B, T, C], on the processor of this side. Raises DecodeError(E-PAYLOAD)."""
        return torch.from_numpy(codec.decode(body, like[0] * like[1])).view(*like, -1).to(self._processor)


class DevicePart(PartTraining):
    """The device's side: embedding and first blocks, with the U shape final norm and head too.

    Args:
        parts: the model's stages, of which only those of the device are called.
        batches: the micro-batches of each step. Each is (s_BS, n), n the number of predicted tokens.
        save: called with the number of steps taken, or of the attempt, before it counts (``engine.split``).
        secret: decides the noise. It is fresh for each session and known to the device alone.
    Guarantees: one draw of the noise for each vector. A new attempt at a step sends the same noised bytes again. A
        process that restarts draws anew, which counts as one more pass. With noise the norm of the gradients stays.
    Raises:
        ValueError: for noise without a secret.
    Attributes:
        seen: summed loss and terms of each step.
        ended: the end of the session, and why where it came before the last step. None while it goes on.
    """

    def __init__(
        self,
        parts: CutModel,
        loss: TextLoss,
        batches: Iterator[Sequence[Batch]],
        vocabulary: int,
        *part: Any,
        save: Callable[[str, int], None] = lambda what, number: None,
        secret: Key | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*part, **more)
        self._parts, self._loss, self._batches, self._save = parts, loss, batches, save
        self._vocabulary, self._secret = vocabulary, secret
        if secret is None and (self._crossings.activation_noise or self._crossings.gradient_noise):
            raise ValueError("noise on what crosses the cut needs a secret")
        self._hides = secret is not None and any((self._crossings.activation_noise, self._crossings.gradient_noise))
        self._noised, self._attempt, self._own_norm2 = dict[tuple[str, int], bytes](), 0, 0.0
        self.seen: list[tuple[float, float]] = []
        self.ended: events.End | None = None
        self._micros: Sequence[Batch] = ()
        self._at, self._losses = 0, 0.0
        self._attempt_step: int | None = None
        self._sent: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}

    def perform(self, effect: events.DeviceEffect) -> events.DeviceEvent | None:
        """Perform an effect other than ``Send``. Returns the event that follows.

        Raises:
            TrainingError: E-NAN where a loss or a value is not finite, E-TRAIN where the batches end too early.
            DecodeError: E-PAYLOAD for bytes that no server sends.
        """
        match effect:
            case events.SaveAttempt(attempt):
                self._save("attempt", attempt)
                self._attempt = attempt
            case events.Prepare(number):
                return self._prepared(number)
            case events.Forward(micro):
                return self._forward(micro)
            case events.Head(micro, body):
                return self._head(micro, body)
            case events.Backward(micro, body, loss):
                self._backward(micro, body, loss)
            case events.Reduce():
                terms = float(sum(n for _, n in self._micros))
                norm2 = self.divided(terms)
                self._own_norm2 = norm2 if self._hides else 0.0  # The norm is exact, and tells of each gradient.
                return events.Reduced(terms, norm2 - self._own_norm2)
            case events.Apply(number, norm2):
                self.take_step(norm2 + self._own_norm2)
                self.seen.append((self._losses, float(sum(n for _, n in self._micros))))
                self._save("step", number + 1)
                return events.Applied()
            case events.End():
                self.ended = effect
        return None

    def _prepared(self, number: int) -> events.MicrosRead:
        if self._attempt_step != number:  # A new attempt at the same step trains on the same micro-batches.
            micros = next(self._batches, None)
            if micros is None:
                raise TrainingError("E-TRAIN", f"the data ends after {number} steps.")
            self._micros, self._attempt_step = micros, number
            self._noised.clear()
        self._at, self._losses = number, 0.0
        self._sent.clear()
        self.zero()
        return events.MicrosRead(len(self._micros))

    def _forward(self, micro: int) -> events.MicroEncoded:
        x_BT, y_BT, positions_BT = self._loss.inputs(self._micros[micro][0])
        with self._loss.arithmetic(x_BT.device.type):
            h_BTC = self._parts.device(x_BT, positions_BT)
        self._sent[micro] = (h_BTC, y_BT, positions_BT)
        begins = None if positions_BT is None else np.packbits((positions_BT == 0).cpu().numpy()).tobytes()
        labels = None if self._parts.top is not None else written_split_labels(y_BT, self._vocabulary)
        body = self._noised_bytes("activations", micro, h_BTC) or self.up(h_BTC)
        return events.MicroEncoded(micro, "activations", body, *x_BT.shape, labels=labels, begins=begins)

    def _head(self, micro: int, body: bytes) -> events.MicroEncoded:
        h_BTC, y_BT, positions_BT = self._sent[micro]
        out_BTC = self.decoded(self._crossings.activations, body, y_BT.shape).to(h_BTC.device).requires_grad_()
        assert self._parts.top is not None
        loss = summed_loss(self._loss, self._parts.top, out_BTC, y_BT, positions_BT)
        loss.backward()
        self._add(loss.item())
        assert out_BTC.grad is not None
        body = self._noised_bytes("output_gradients", micro, out_BTC.grad)
        body = body or self.gradient(out_BTC.grad, "up", self._at, micro)
        return events.MicroEncoded(micro, "output_gradients", body)

    def _noised_bytes(self, kind: wire.Upward, micro: int, x_BTC: Tensor) -> bytes | None:
        """Clip, noise and encode what goes up. Returns the earlier bytes in a new attempt, and None without noise."""
        first = kind == "activations"
        noise = self._crossings.activation_noise if first else self._crossings.gradient_noise
        if noise is None:
            return None
        if (kind, micro) not in self._noised:
            assert self._secret is not None
            key = derive(self._secret, "token noise", kind, self._attempt, self._at, micro)
            with _as_training_error():
                hidden_NC = torch.from_numpy(noise.hide(_rows(x_BTC), key)).view(x_BTC.shape)
            sent = self.up(hidden_NC) if first else self.gradient(hidden_NC, "up", self._at, micro)
            self._noised[kind, micro] = sent
        return self._noised[kind, micro]

    def _backward(self, micro: int, body: bytes, loss: float | None) -> None:
        h_BTC, y_BT, _ = self._sent.pop(micro)
        if self._parts.top is None:
            self._add(given_split_part(loss, "gradients without the loss"))
        if h_BTC.requires_grad:
            h_BTC.backward(self.decoded(self._crossings.gradients, body, y_BT.shape).to(h_BTC))

    def _add(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError("E-NAN", f"the loss is {loss} at local step {self._at + 1}.", LOWER)
        self._losses += loss


class ServerPart(PartTraining):
    """The server's side: the other blocks, with the shape "head" final norm and head too.

    Args:
        parts: the model's stages, of which only the server's is called.
        vocabulary: V, for labels.
        save: called with a name and a number before it counts (``engine.split``): "attempt"; "use", the version to go
            on from, 0 again where a device has lost its part; "step", the version that is kept beside the one before.
    """

    def __init__(
        self,
        parts: CutModel,
        loss: TextLoss,
        vocabulary: int,
        *part: Any,
        save: Callable[[str, int], None] = lambda what, number: None,
        **more: Any,
    ) -> None:
        super().__init__(*part, **more)
        self._parts, self._loss, self._vocabulary, self._save = parts, loss, vocabulary, save
        self._ran: dict[int, tuple[Tensor, Tensor]] = {}

    def perform(self, effect: events.ServerEffect) -> events.ServerEvent | None:
        """Perform an effect other than ``Send``. Returns the event that follows.

        Raises:
            DecodeError: E-PAYLOAD for bytes that no device sends.
            TrainingError: E-NAN.
        """
        match effect:
            case events.SaveAttempt(attempt):
                self._save("attempt", attempt)
            case events.Use(step):
                self._save("use", step)
                self._ran.clear()
                self.zero()
            case events.RunMicro(crossing):
                return self._forward(crossing) if crossing.kind == "activations" else self._backward(crossing)
            case events.TakeStep(finish):
                if not (math.isfinite(finish.terms) and finish.terms > 0):
                    raise DecodeError("E-PAYLOAD", f"a step over {finish.terms} predicted tokens.")
                own = self.divided(finish.terms)
                self.take_step(own + finish.norm2)
                self._save("step", finish.step + 1)
                return events.Stepped(own)
        return None

    def _forward(self, c: wire.Crossing) -> events.Ran:
        if not c.rows or not c.length:
            raise DecodeError("E-PAYLOAD", "invalid payload: a micro-batch without tokens.")
        size = (c.rows, c.length)
        x_BTC = self.decoded(self._crossings.activations, c.body, size).requires_grad_()
        positions_BT = read_split_positions(c.begins, size).to(self._processor) if c.begins is not None else None
        if self._parts.top is None:
            y_BT = read_split_labels(
                given_split_part(c.labels, "activations without labels"), size, self._vocabulary
            ).to(self._processor)
            loss = summed_loss(self._loss, self._parts.server, x_BTC, y_BT, positions_BT)
            loss.backward()
            return events.Ran(c.micro, "gradients", self.gradient(x_BTC.grad, "down", c.step, c.micro), loss.item())
        with self._loss.arithmetic(x_BTC.device.type):
            out_BTC = self._parts.server(x_BTC, positions_BT)
        self._ran[c.micro] = (x_BTC, out_BTC)
        return events.Ran(c.micro, "outputs", self.up(out_BTC))

    def _backward(self, c: wire.Crossing) -> events.Ran:
        x_BTC, out_BTC = self._ran.pop(c.micro)
        gradient_BTC = self.decoded(self._crossings.gradients, c.body, out_BTC.shape[:2])
        out_BTC.backward(gradient_BTC.to(out_BTC))
        return events.Ran(c.micro, "gradients", self.gradient(x_BTC.grad, "down", c.step, c.micro))


@dataclass
class CrossedBytes:
    """Bytes of a session's messages, by direction."""

    up_bytes: int = 0
    down_bytes: int = 0


def train_split_session(
    device: DevicePart, server: ServerPart, u_shape: bool, steps: int, window: int = DEFAULT_WINDOW
) -> CrossedBytes:
    """Train both sides in this process, over the bytes that would cross a network. Raises as
    ``train_split_sessions``."""
    return [CrossedBytes(), *train_split_sessions(device, server, u_shape, steps, window)][-1]


def train_split_sessions(
    device: DevicePart, server: ServerPart, u_shape: bool, steps: int, window: int = DEFAULT_WINDOW
) -> Iterator[CrossedBytes]:
    """Train as ``train_split_session``, and yield the bytes so far after each step.

    Raises:
        TrainingError, DecodeError: as ``DevicePart.perform``.
    """
    name = bytes(32)
    up, down, crossed = list[bytes](), list[bytes](), CrossedBytes()
    states: list[Any] = [
        events.DeviceSide(name, name, u_shape, steps, window), events.ServerSide(name, name, u_shape)
    ]  # fmt: skip

    def feed(side: int, event: Any) -> None:
        waiting, (part, step, out) = [event], ((device, step_device, up), (server, step_server, down))[side]
        while waiting:
            states[side], effects = step(states[side], waiting.pop(0))
            for effect in effects:
                if isinstance(effect, events.SendToPeer):
                    out.append(wire.dump(effect.message))
                elif (after := part.perform(effect)) is not None:
                    waiting.append(after)

    feed(0, events.Connected())
    taken = 0
    while device.ended is None:
        if up:
            crossed.up_bytes += len(up[0])
            feed(1, wire.from_device(up[0], len(up.pop(0))))
        elif down:
            crossed.down_bytes += len(down[0])
            feed(0, wire.from_server(down[0], len(down.pop(0))))
        else:
            raise TrainingError("E-TRAIN", "both sides of a session wait for each other.")
        if len(device.seen) > taken:
            taken = len(device.seen)
            yield crossed


def _rows(x_BTC: Tensor) -> NDArray[np.float32]:
    """Return float32[N, C]."""
    found: NDArray[np.float32] = x_BTC.detach().float().cpu().flatten(0, 1).numpy()
    return found


@contextmanager
def _as_training_error() -> Iterator[None]:
    """Raise TrainingError(E-NAN) where a codec or a noise refuses a value."""
    try:
        yield
    except ValueError as e:
        raise TrainingError("E-NAN", f"what crosses the cut cannot be sent: {e}.", LOWER) from None
