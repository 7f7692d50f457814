"""Sessions of split learning under loss, delay, duplicates, reordering and crashes, with states saved at every step.

Both sides train a toy of three numbers: loss = (c b a x - t)^2 / 2. Device: a, and with the U shape c. Server: b, and
otherwise c.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from long import examples

from edgewise.core.errors import DecodeError
from edgewise.engine import split as machines
from edgewise.engine import split_messages as wire
from edgewise.engine import split_states as split
from edgewise.engine.split import step_device, step_server

LR, STEPS, MICROS = 0.1, 3, (3, 1, 4)  # micro-batches of each step
SESSION, PARTS = bytes(32), bytes([1]) * 32


def sample(step, micro):
    return 1.0 + 0.1 * step + 0.01 * micro, 2.0 - 0.3 * micro


def written(x):
    return msgspec.msgpack.encode(x)


def read(raw):
    return msgspec.msgpack.decode(raw)


class Side:
    """State and durable memory of one side. Each state is written and read again before it is used."""

    kind, step = None, None

    def __init__(self, state):
        self.state, self.out = state, []

    def feed(self, event):
        waiting = [event]
        while waiting:
            self.state = msgspec.msgpack.decode(msgspec.msgpack.encode(self.state), type=self.kind)
            self.state, effects = type(self).step(self.state, waiting.pop(0))
            for effect in effects:
                if isinstance(effect, split.SendToPeer):
                    self.out.append(wire.dump(effect.message))
                elif (event := self.perform(effect)) is not None:
                    waiting.append(event)


class Device(Side):
    kind, step = split.DeviceSide, staticmethod(step_device)

    def __init__(self, u):
        super().__init__(split.DeviceSide(SESSION, PARTS, u, STEPS))
        self.u, self.durable, self.end = u, (0, 0, (0.5, 1.5)), None
        self.load()

    def load(self):
        step, attempt, self.weights = self.durable
        self.state = replace(split.DeviceSide(SESSION, PARTS, self.u, STEPS), step=step, attempt=attempt)

    def perform(self, effect):
        step, attempt, weights = self.durable
        match effect:
            case split.SaveAttempt(number):
                self.durable = step, number, weights
            case split.Prepare(number):
                self.at, self.grads, self.losses, self.kept = number, [0.0, 0.0], [], {}
                return split.MicrosRead(MICROS[number])
            case split.Forward(micro):
                x, t = sample(self.at, micro)
                self.kept[micro] = x, t
                return split.MicroEncoded(micro, "activations", written(self.weights[0] * x), labels=written(t))
            case split.Head(micro, body):
                y, c, t = read(body), self.weights[1], self.kept[micro][1]
                self.grads[1] += (c * y - t) * y
                self.losses.append((c * y - t) ** 2 / 2)
                return split.MicroEncoded(micro, "output_gradients", written((c * y - t) * c))
            case split.Backward(micro, body, loss):
                self.grads[0] += read(body) * self.kept.pop(micro)[0]
                self.losses += [] if self.u else [loss]
            case split.Reduce():
                return split.Reduced(float(MICROS[self.at]), sum(g * g for g in self.grads))
            case split.Apply(number, norm2):
                scale = LR / (1 + norm2)
                self.weights = tuple(w - scale * g for w, g in zip(self.weights, self.grads, strict=True))
                self.durable = number + 1, attempt, self.weights
                return split.Applied()
            case split.End():
                self.end = effect
        return None


class Server(Side):
    kind, step = split.ServerSide, staticmethod(step_server)

    def __init__(self, u):
        super().__init__(split.ServerSide(SESSION, PARTS, u))
        self.u, self.durable, self.runs = u, (0, 0, {0: (0.8, 1.5)}), []

    def load(self):
        attempt, used, versions = self.durable
        base = split.ServerSide(SESSION, PARTS, self.u)
        self.state = replace(base, version=used, ahead=used + 1 in versions, attempt=attempt)

    def perform(self, effect):
        attempt, used, versions = self.durable
        match effect:
            case split.SaveAttempt(number):
                self.durable = number, used, versions
            case split.Use(number):
                self.durable = attempt, number, {0: versions[0], number: versions[number]}
                self.weights, self.grads, self.kept = versions[number], [0.0, 0.0], {}
            case split.RunMicro(crossing):
                micro, (b, c) = crossing.micro, self.weights
                if crossing.kind == "output_gradients":
                    h, g = self.kept.pop(micro), read(crossing.body)
                    self.grads[0] += g * h
                    return split.Ran(micro, "gradients", written(g * b))
                h = read(crossing.body)
                if self.u:
                    self.kept[micro] = h
                    return split.Ran(micro, "outputs", written(b * h))
                error = c * b * h - read(crossing.labels)
                self.grads[0] += error * c * h
                self.grads[1] += error * b * h
                return split.Ran(micro, "gradients", written(error * c * b), error**2 / 2)
            case split.TakeStep(finish):
                own = sum(g * g for g in self.grads)
                scale = LR / (1 + finish.norm2 + own)
                after = tuple(w - scale * g for w, g in zip(self.weights, self.grads, strict=True))
                self.durable = attempt, used, {**versions, finish.step + 1: after}
                return split.Stepped(own)
        return None


def deliver(device, server, upward, at, keep=False):
    source, target = (device, server) if upward else (server, device)
    if source.out:
        raw = source.out[at % len(source.out)] if keep else source.out.pop(at % len(source.out))
        target.feed((wire.from_device if upward else wire.from_server)(raw, 1 << 20))


def play(u, script=()):
    """Take the script's faults, then play fairly to the end. Returns the parts after the last step."""
    device, server = Device(u), Server(u)
    device.feed(split.Connected())
    for action, at in script:
        match action:
            case "go":
                for _ in range(at):
                    deliver(device, server, True, 0)
                    deliver(device, server, False, 0)
            case "up" | "down":
                deliver(device, server, action == "up", at)
            case "repeat up" | "repeat down":
                deliver(device, server, action == "repeat up", at, keep=True)
            case "lose":
                (device if at % 2 else server).out[:1] = []
            case "deadline":
                device.feed(split.NoAnswer())
            case "cut":
                device.feed(split.Disconnected())
                if at % 2:  # Otherwise the server notices nothing before the next Hello.
                    server.feed(split.Disconnected())
            case "device dies":
                device.load()
                server.feed(split.Disconnected())
            case "device forgets":  # Nothing is left but the number of its last attempt.
                device.durable, device.end = (0, device.durable[1], (0.5, 1.5)), None
                device.load()
            case "server dies":
                server.load()
                device.feed(split.Disconnected())
        if device.state.phase == "away":
            device.feed(split.Connected())
    for _ in range(400):
        if device.end is not None:
            break
        if not (device.out or server.out):
            device.feed(split.NoAnswer())
        deliver(device, server, True, 0)
        deliver(device, server, False, 0)
    assert device.end.refused is None
    return device.durable[2], server.durable[2][STEPS]


FAULTS = [
    "up", "down", "repeat up", "repeat down", "lose", "deadline", "cut", "device dies", "device forgets", "server dies",
]  # fmt: skip
ACTIONS = st.sampled_from(["go"] * len(FAULTS) + FAULTS)
UNDISTURBED = {u: play(u) for u in (False, True)}


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("u", [False, True], ids=["head", "U"])
@settings(max_examples=examples(40, 400), deadline=None)
@given(script=st.lists(st.tuples(ACTIONS, st.integers(0, 7)), min_size=20, max_size=80))
def test_any_order_of_faults_gives_the_parts_of_an_undisturbed_session(u, script):
    assert play(u, script) == UNDISTURBED[u]


def test_parts_are_those_of_training_the_whole_model():
    """Three numbers, one optimizer step after the other, with the gradient of all micro-batches."""
    a, b, c = 0.5, 0.8, 1.5
    for step in range(STEPS):
        grads = [0.0, 0.0, 0.0]
        for micro in range(MICROS[step]):
            x, t = sample(step, micro)
            error = a * b * c * x - t
            grads = [g + error * more for g, more in zip(grads, (b * c * x, a * c * x, a * b * x), strict=True)]
        scale = LR / (1 + sum(g * g for g in grads))
        a, b, c = a - scale * grads[0], b - scale * grads[1], c - scale * grads[2]
    (top_a, top_c), (top_b, _) = UNDISTURBED[True]
    (head_a, _), (head_b, head_c) = UNDISTURBED[False]
    assert [top_a, top_b, top_c] == pytest.approx([a, b, c], rel=1e-12)
    assert [head_a, head_b, head_c] == pytest.approx([a, b, c], rel=1e-12)


@pytest.mark.parametrize("change", [{"parts": bytes(32)}, {"step": 2}, {"session": bytes([9]) * 32}])
def test_parts_that_do_not_belong_together_are_refused(change):
    hello = wire.Hello(**{"session": SESSION, "parts": PARTS, "step": 0, "attempt": 1, **change})
    state, (sent,) = step_server(split.ServerSide(SESSION, PARTS, True), hello)
    assert sent.message.code == "E-PARTS"
    assert not state.open
    device = Device(True)
    device.feed(split.Connected())
    device.feed(sent.message)
    assert device.end.refused.code == "E-PARTS"


def test_a_server_with_a_frozen_part_that_lost_its_state_goes_on_at_the_step_of_the_device():
    hello = wire.Hello(session=SESSION, parts=PARTS, step=2, attempt=3)
    state, effects = step_server(split.ServerSide(SESSION, PARTS, True, frozen=True), hello)
    assert (state.version, state.ahead, state.attempt, state.open) == (2, False, 3, True)
    assert effects[-1].message == wire.Welcome(attempt=3)


def test_the_server_computes_in_order_and_each_thing_once():
    server = Server(False)
    server.feed(wire.Hello(session=SESSION, parts=PARTS, step=0, attempt=1))
    crossings = [
        wire.Crossing(attempt=1, step=0, micro=m, kind="activations", body=written(1.0), labels=written(2.0))
        for m in (1, 0, 0, 1, 2)
    ]
    finish = wire.Finish(attempt=1, step=0, micros=3, terms=3.0, norm2=1.0)
    answers = []
    for message in (*crossings, finish, finish, replace_micro(crossings[-1])):
        server.out.clear()
        server.feed(message)
        answers.append([wire.from_server(raw, 1 << 20) for raw in server.out])
    assert [[getattr(a, "micro", "finished") for a in some] for some in answers] == [
        [], [0], [0], [1], [2], ["finished"], ["finished"], [],
    ]  # fmt: skip
    assert server.durable[2].keys() == {0, 1}


def activations(micro, u):
    body, labels = written(1.0), None if u else written(2.0)
    return wire.Crossing(attempt=1, step=0, micro=micro, kind="activations", body=body, labels=labels)


@pytest.mark.parametrize(("u", "most", "reason"), [(True, "MOST_OPEN", "backward"), (False, "MOST_MICROS", "a step")])
def test_a_device_that_opens_too_many_micro_batches_is_refused_by_name(u, most, reason, monkeypatch):
    monkeypatch.setattr(machines, most, 3)
    server = Server(u)
    server.feed(wire.Hello(session=SESSION, parts=PARTS, step=0, attempt=1))
    for micro in range(5):
        server.feed(activations(micro, u))
    answers = [wire.from_server(raw, 1 << 20) for raw in server.out[1:]]
    assert [type(a).__name__ for a in answers] == ["Returned"] * 3 + ["SessionRefused"]
    assert answers[-1].code == "E-QUOTA"
    assert reason in answers[-1].reason
    assert (server.state.started, len(server.kept)) == (3, 3 if u else 0)


def test_a_server_keeps_the_answers_of_the_widest_window(monkeypatch):
    monkeypatch.setattr(machines, "MOST_OPEN", 3)
    server = Server(False)
    server.feed(wire.Hello(session=SESSION, parts=PARTS, step=0, attempt=1))
    for micro in range(9):
        server.feed(activations(micro, False))
    assert [a.micro for a in server.state.answers] == [6, 7, 8]


def replace_micro(crossing):
    return msgspec.structs.replace(crossing, micro=3)


def test_a_window_bounds_the_micro_batches_on_their_way():
    device = Device(False)
    device.feed(split.Connected())
    device.feed(wire.Welcome(attempt=1))
    assert [type(wire.from_device(raw, 1 << 20)).__name__ for raw in device.out] == ["Hello", "Crossing", "Crossing"]


@pytest.mark.parametrize(
    "raw", [b"", b"EWS\x01", b"EWS\x02" + bytes(9), b"EWF\x01" + bytes(9), wire.dump(wire.Welcome(attempt=1))]
)
def test_foreign_bytes_are_refused(raw):
    with pytest.raises(DecodeError):
        wire.from_device(raw, 1 << 20)


def test_what_a_message_does_not_have_is_left_out_of_its_bytes():
    gradients = wire.Crossing(attempt=1, step=0, micro=2, kind="output_gradients", body=b"x")
    plain = {"type": "crossing", "attempt": 1, "step": 0, "micro": 2, "kind": "output_gradients", "body": b"x"}
    head = wire.MAGIC + bytes([wire.VERSION])
    assert wire.dump(gradients) == head + written(plain)
    assert wire.from_device(head + written(plain), 1 << 20) == gradients
    for name in ("rows", "labels", "begins"):
        with pytest.raises(DecodeError, match="E-FRAME"):
            wire.from_device(head + written({**plain, name: None}), 1 << 20)
    outputs = wire.Returned(attempt=1, step=0, micro=2, kind="outputs", body=b"x")
    assert b"loss" not in wire.dump(outputs)
    assert b"loss" in wire.dump(msgspec.structs.replace(outputs, loss=0.0))
