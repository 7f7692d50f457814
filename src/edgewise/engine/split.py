"""Split learning as two pure machines, ``step(state, event) -> (state, effects)``, on the device and on the server.

A session trains some optimizer steps, each over some micro-batches. Activations go up, and gradients come down:

    device                                       server
    Away ──Connected──► Greeting    Hello ────►  parts and steps are compared, Welcome or SessionRefused
    Working: Forward b              activations ──►  forward b      (head: and backward b)
             Head b          U: ◄── outputs
                             U: output gradients ──► backward b
             Backward b         ◄── gradients
    Finishing: Reduce               Finish ──►  the step, kept beside the version before it
             Apply              ◄── StepTaken
    ... next step, or Over

At most ``window`` micro-batches are on their way at once, so the device computes the next one while the server works.
Gradients are added in the order of micro-batches on both sides, so results do not depend on delays.

Rules:
    Everything that the device sends is answered, and is sent again at a deadline until it is. The server answers a
        repeated message from memory and computes nothing twice.
    A connection that is lost ends the attempt. The next one starts at the device's last durable step. Messages of
        earlier attempts are ignored.
    The server's part is never behind the device's and at most one step ahead. It keeps the version before the last
        step until the device has taken that step too.
    A device that was killed may have lost its part. It begins the session anew, and the server goes back to the part
        before the first step, which it keeps until the round ends.
    A server's part that is frozen has one version. A server that was killed goes on at the device's step.
    Two parts of different models, cuts or steps are never trained together (E-PARTS).
    A device has at most ``MOST_OPEN`` micro-batches open and ``MOST_MICROS`` in a step (E-QUOTA). The server forgets an
        answer once the device has begun a micro-batch that it begins only after that answer.

All states are plain frozen values, so that they can be saved and loaded at any moment.
"""

from __future__ import annotations

from dataclasses import replace

from edgewise.core.frame import legible
from edgewise.engine.split_messages import Crossing, Finish, Hello, Returned, SessionRefused, StepTaken, Upward, Welcome
from edgewise.engine.split_states import (
    Applied,
    Apply,
    Backward,
    Connected,
    DeviceEffect,
    DeviceEvent,
    DeviceSide,
    Disconnected,
    End,
    Forward,
    Head,
    MicroEncoded,
    MicrosRead,
    NoAnswer,
    Prepare,
    Ran,
    Reduce,
    Reduced,
    RunMicro,
    SaveAttempt,
    SendToPeer,
    ServerEffect,
    ServerEvent,
    ServerSide,
    Stepped,
    TakeStep,
    Use,
)
from edgewise.plan.recipe.split import MOST_WINDOW

MOST_MICROS = 1 << 16  # micro-batches of a step
MOST_OPEN = MOST_WINDOW  # micro-batches of a device whose backward pass the server has not run

DeviceOut = tuple[DeviceSide, tuple[DeviceEffect, ...]]
ServerOut = tuple[ServerSide, tuple[ServerEffect, ...]]


def step_device(state: DeviceSide, event: DeviceEvent) -> DeviceOut:
    """Take one event on the device. Returns the next state and the effects, to be performed in their order."""
    match state.phase, event:
        case (("over" | "stopped"), _):
            return state, ()
        case _, Connected():
            state = replace(_idle(state), attempt=state.attempt + 1, phase="greeting")
            hello = Hello(session=state.session, parts=state.parts, step=state.step, attempt=state.attempt)
            return replace(state, unanswered=(hello,)), (SaveAttempt(state.attempt), SendToPeer(hello))
        case _, Disconnected():
            return _idle(state), ()
        case _, SessionRefused(code=code, reason=reason):
            return replace(_idle(state), phase="stopped"), (End(SessionRefused(code=code, reason=legible(reason))),)
        case (("greeting" | "working" | "finishing"), NoAnswer()):
            return state, tuple(map(SendToPeer, state.unanswered))
        case "greeting", Welcome(attempt=attempt) if attempt == state.attempt:
            return _next_step(state)
        case "working", MicrosRead(micros):
            return _filled(replace(state, micros=micros))
        case "working", MicroEncoded():
            return _sent(state, event)
        case "working", Returned() if _is_next(state, event):
            return _returned(state, event)
        case "finishing", Reduced(terms, norm2):
            finish = Finish(
                attempt=state.attempt, step=state.step, micros=state.micros, terms=terms, norm2=norm2
            )  # fmt: skip
            return replace(state, unanswered=(finish,)), (SendToPeer(finish),)
        case "finishing", StepTaken(attempt=attempt, step=number, norm2=norm2):
            if (attempt, number) != (state.attempt, state.step) or not state.unanswered:
                return state, ()
            own = state.unanswered[0]
            assert isinstance(own, Finish)
            return replace(state, unanswered=()), (Apply(state.step, own.norm2 + norm2),)
        case "finishing", Applied():
            return _next_step(replace(state, step=state.step + 1))
    return state, ()


def _idle(state: DeviceSide) -> DeviceSide:
    return replace(state, phase="away", micros=0, started=0, headed=0, backed=0, unanswered=())


def _next_step(state: DeviceSide) -> DeviceOut:
    state = replace(_idle(state), phase="working")
    if state.step >= state.steps:
        return replace(state, phase="over"), (End(),)
    return state, (Prepare(state.step),)


def _filled(state: DeviceSide) -> DeviceOut:
    """Start the next micro-batch where the window has room."""
    if state.started < state.micros and state.started - state.backed < state.window:
        return replace(state, started=state.started + 1), (Forward(state.started),)
    return state, ()


def _sent(state: DeviceSide, event: MicroEncoded) -> DeviceOut:
    message = Crossing(
        attempt=state.attempt, step=state.step, micro=event.micro, kind=event.kind, body=event.body, rows=event.rows,
        length=event.length, labels=event.labels, begins=event.begins,
    )  # fmt: skip
    state, effects = _filled(replace(state, unanswered=(*state.unanswered, message)))
    return state, (SendToPeer(message), *effects)


def _is_next(state: DeviceSide, event: Returned) -> bool:
    """Tell whether this answer is the next of its kind. Later ones come again at a deadline."""
    expected = state.headed if event.kind == "outputs" else state.backed
    kind: Upward = "activations" if event.kind == "outputs" or not state.u_shape else "output_gradients"
    sent = any(isinstance(m, Crossing) and (m.kind, m.micro) == (kind, event.micro) for m in state.unanswered)
    return sent and (event.attempt, event.step, event.micro) == (state.attempt, state.step, expected)


def _returned(state: DeviceSide, event: Returned) -> DeviceOut:
    rest = tuple(m for m in state.unanswered if not (isinstance(m, Crossing) and m.micro == event.micro))
    if event.kind == "outputs":
        return replace(state, headed=state.headed + 1, unanswered=rest), (Head(event.micro, event.body),)
    state = replace(state, backed=state.backed + 1, unanswered=rest)
    backward = Backward(event.micro, event.body, event.loss)
    if state.backed == state.micros:
        return replace(state, phase="finishing"), (backward, Reduce())
    state, effects = _filled(state)
    return state, (backward, *effects)


def step_server(state: ServerSide, event: ServerEvent) -> ServerOut:
    """Take one event on the server. Returns the next state and the effects, to be performed in their order.

    Never raises for anything that a device sends.
    """
    if isinstance(event, Disconnected):
        return replace(state, open=False, started=0, backed=0, answers=()), ()
    if isinstance(event, Hello):
        return _greeted(state, event)
    if isinstance(event, Ran):
        return _answer_server_pass(state, event)
    if isinstance(event, Stepped):
        done = StepTaken(attempt=state.attempt, step=state.version, norm2=event.norm2)
        return replace(state, ahead=True, answers=(done,)), (SendToPeer(done),)
    if not state.open or event.attempt != state.attempt:
        return state, ()
    if isinstance(event, Crossing):
        return _crossed(state, event)
    return _finishing(state, event)


def _greeted(state: ServerSide, hello: Hello) -> ServerOut:
    if (hello.session, hello.parts) != (state.session, state.parts):
        what = "the device's part is of another model, cut, shape, rounding or training than the server's."
        return state, (SendToPeer(SessionRefused(code="E-PARTS", reason=what)),)
    if hello.attempt < state.attempt:
        return state, ()
    if hello.attempt == state.attempt:
        same = state.open and hello.step == state.version and not (state.started or state.ahead)
        return state, (SendToPeer(Welcome(attempt=hello.attempt)),) if same else ()
    known = hello.step in (0, state.version) or (state.ahead and hello.step == state.version + 1)
    if not (known or state.frozen):
        ahead = f" or {state.version + 1}" if state.ahead else ""
        what = f"the device's part has taken {hello.step} steps, and the server's {state.version}{ahead}."
        return state, (SendToPeer(SessionRefused(code="E-PARTS", reason=what)),)
    state = replace(
        state, version=hello.step, ahead=False, attempt=hello.attempt, open=True, started=0, backed=0, answers=()
    )
    return state, (Use(hello.step), SaveAttempt(hello.attempt), SendToPeer(Welcome(attempt=hello.attempt)))


def _crossed(state: ServerSide, event: Crossing) -> ServerOut:
    effects: tuple[ServerEffect, ...] = ()
    if state.ahead and event.step == state.version + 1:  # The device has taken the step, so nothing goes back.
        state = replace(state, version=event.step, ahead=False, started=0, backed=0, answers=())
        effects = (Use(event.step),)
    if event.step != state.version or state.ahead:
        return state, ()
    for answer in state.answers:
        if isinstance(answer, Returned) and answer.micro == event.micro and _answers(state, answer, event):
            return state, (SendToPeer(answer),)
    if event.kind == "activations":
        if event.micro != state.started:
            return state, effects
        if (what := _too_much(state)) is not None:
            return state, (*effects, SendToPeer(SessionRefused(code="E-QUOTA", reason=what)))
        state = replace(state, started=state.started + 1, answers=_needed(state, event))
        return state, (*effects, RunMicro(event))
    if not state.u_shape or event.micro != state.backed or event.micro >= state.started:
        return state, effects
    return replace(state, backed=state.backed + 1), (*effects, RunMicro(event))


def _too_much(state: ServerSide) -> str | None:
    """Find the reason why the server begins no further micro-batch of this step. None where it may."""
    if state.started >= MOST_MICROS:
        return f"a step has at most {MOST_MICROS} micro-batches. Make them larger, or the step shorter."
    if state.started - state.backed >= MOST_OPEN:
        return f"{MOST_OPEN} micro-batches wait for their backward pass, and a device has no more on their way."
    return None


def _needed(state: ServerSide, event: Crossing) -> tuple[Returned | StepTaken, ...]:
    """Return the answers that a device may not have when it begins a micro-batch: those within the widest window."""
    oldest = event.micro - MOST_OPEN
    return tuple(a for a in state.answers if not isinstance(a, Returned) or a.micro > oldest)


def _answers(state: ServerSide, answer: Returned, event: Crossing) -> bool:
    direct = not state.u_shape or answer.kind == "outputs"
    return direct == (event.kind == "activations")


def _answer_server_pass(state: ServerSide, event: Ran) -> ServerOut:
    answer = Returned(
        attempt=state.attempt, step=state.version, micro=event.micro, kind=event.kind, body=event.body, loss=event.loss
    )
    others = tuple(a for a in state.answers if not (isinstance(a, Returned) and a.micro == event.micro))
    backed = state.backed if state.u_shape else event.micro + 1
    return replace(state, answers=(*others, answer), backed=backed), (SendToPeer(answer),)


def _finishing(state: ServerSide, event: Finish) -> ServerOut:
    if event.step != state.version:
        return state, ()
    if state.ahead:
        return state, tuple(SendToPeer(a) for a in state.answers if isinstance(a, StepTaken))
    if not event.micros or event.micros != state.started or event.micros != state.backed:
        what = f"the device ends a step of {event.micros} micro-batches, and the server has trained {state.backed}."
        return state, (SendToPeer(SessionRefused(code="E-PARTS", reason=what)),)
    return state, (TakeStep(event),)
