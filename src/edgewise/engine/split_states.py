"""Events, effects and states of split learning's machines (``engine.split``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgewise.engine.split_messages import (
    Crossing,
    Downward,
    Finish,
    FromDevice,
    FromServer,
    Hello,
    Returned,
    SessionRefused,
    StepTaken,
    Upward,
)

Phase = Literal["away", "greeting", "working", "finishing", "over", "stopped"]


@dataclass(frozen=True, slots=True)
class Connected:
    """Event of both sides' drivers: a connection is open. Nothing that was under way on an earlier one counts."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Event: the connection is lost."""


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Event on the device: no answer came for a while."""


@dataclass(frozen=True, slots=True)
class MicrosRead:
    """Event on the device, after ``Prepare``: the step has so many micro-batches."""

    micros: int


@dataclass(frozen=True, slots=True)
class MicroEncoded:
    """Event on the device, after ``Forward`` or ``Head``: the bytes of a micro-batch that go up."""

    micro: int
    kind: Upward
    body: bytes = field(repr=False)
    rows: int | None = None
    length: int | None = None
    labels: bytes | None = field(default=None, repr=False)
    begins: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Reduced:
    """Event on the device, after ``Reduce``: terms and squared norm as in ``Finish``."""

    terms: float
    norm2: float


@dataclass(frozen=True, slots=True)
class Applied:
    """Event on the device, after ``Apply``: the part after the step is durable."""


@dataclass(frozen=True, slots=True)
class Ran:
    """Event on the server, after ``RunMicro``: the bytes of a micro-batch that go down."""

    micro: int
    kind: Downward
    body: bytes = field(repr=False)
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Stepped:
    """Event on the server, after ``TakeStep``: the part after the step is durable, beside the one before it."""

    norm2: float


@dataclass(frozen=True, slots=True)
class SendToPeer:
    """Effect: send a message."""

    message: FromDevice | FromServer


@dataclass(frozen=True, slots=True)
class SaveAttempt:
    """Effect: make the number of the attempt durable before the next message leaves."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """Effect on the device: forget unfinished gradients, and read the micro-batches of this step."""

    step: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Effect on the device: compute the activations of a micro-batch."""

    micro: int


@dataclass(frozen=True, slots=True)
class Head:
    """Effect on the device: compute loss and gradients from the server's outputs."""

    micro: int
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Backward:
    """Effect on the device: add the gradients of its first part. ``loss`` is the server's, where it has the head."""

    micro: int
    body: bytes = field(repr=False)
    loss: float | None


@dataclass(frozen=True, slots=True)
class Reduce:
    """Effect on the device: all gradients of the step are there. Compute their norm."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Effect on the device: take the optimizer's step, make it durable. ``norm2``: of the whole gradient."""

    step: int
    norm2: float


@dataclass(frozen=True, slots=True)
class End:
    """Effect on the device: all steps are taken, or ``refused`` says why the session cannot go on."""

    refused: SessionRefused | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """Effect on the server: train on from the part after ``step`` steps, and forget all gradients.

    Only that part and the one before the first step may be asked for again.
    """

    step: int


@dataclass(frozen=True, slots=True)
class RunMicro:
    """Effect on the server: compute a micro-batch forward, or backward from the gradients of its outputs."""

    crossing: Crossing


@dataclass(frozen=True, slots=True)
class TakeStep:
    """Effect on the server: take the optimizer's step, make it durable beside the part before it."""

    finish: Finish


DeviceEvent = Connected | Disconnected | NoAnswer | MicrosRead | MicroEncoded | Reduced | Applied | FromServer
DeviceEffect = SendToPeer | SaveAttempt | Prepare | Forward | Head | Backward | Reduce | Apply | End
ServerEvent = Disconnected | Ran | Stepped | FromDevice
ServerEffect = SendToPeer | SaveAttempt | Use | RunMicro | TakeStep


@dataclass(frozen=True)
class DeviceSide:
    """State of a session on the device. ``step`` and ``attempt`` are durable, all else ends with the connection.

    Attributes:
        steps: number of steps to take. window: largest number of micro-batches on their way.
        micros: micro-batches of this step. started, headed, backed: so many of them are through ``Forward``, ``Head``
            and ``Backward``.
        unanswered: messages that wait for an answer, in the order in which they were sent.
    """

    session: bytes = field(repr=False)
    parts: bytes = field(repr=False)
    u_shape: bool
    steps: int
    window: int = 2
    step: int = 0
    attempt: int = 0
    phase: Phase = "away"
    micros: int = 0
    started: int = 0
    headed: int = 0
    backed: int = 0
    unanswered: tuple[Hello | Crossing | Finish, ...] = ()


@dataclass(frozen=True)
class ServerSide:
    """State of a session on the server. ``version``, ``ahead`` and ``attempt`` are durable.

    Attributes:
        version: steps of the part that the device is known to have taken too. ahead: True where the part after the
            next step is kept beside it.
        frozen: True where the part does not train, so that it is the same after every step, and a server that lost
            this state can go on with a device at any step.
        open: True between Hello and the end of the connection.
        started, backed: micro-batches of this step that are through the forward and the backward pass.
        answers: answers that the device may not have yet.
    """

    session: bytes = field(repr=False)
    parts: bytes = field(repr=False)
    u_shape: bool
    version: int = 0
    ahead: bool = False
    attempt: int = 0
    frozen: bool = False
    open: bool = False
    started: int = 0
    backed: int = 0
    answers: tuple[Returned | StepTaken, ...] = ()
