"""Both sides of split learning against training of the whole model: losses, weights, bytes, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch
from msgspec import structs

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.errors import DecodeError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.engine import split_states as events
from edgewise.engine.split_messages import Crossing
from edgewise.learn import split, split_labels
from edgewise.learn.flat import Flat
from edgewise.learn.models.cut import cut_model
from edgewise.learn.models.load import TextLoss
from edgewise.learn.models.modules import plain_parameter_name
from edgewise.learn.text.marks import BEGINS
from edgewise.learn.train import fit
from edgewise.plan.recipe.sections import TrainingSection
from edgewise.privacy.token_noise import TokenNoise

HIDDEN, VOCABULARY, ROWS, LENGTH = 16, 300, 2, 10
KEY, STEPS, MICROS = bytes(32), 4, 3


def batches():
    """Micro-batches of different numbers of predicted tokens, with documents that begin inside of rows."""
    torch.manual_seed(3)
    for _ in range(STEPS):
        micros = []
        for masked in range(MICROS):
            s_BS = torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1))
            s_BS[:, 6] |= BEGINS
            s_BS[0, 1 : 1 + masked] = ~s_BS[0, 1 : 1 + masked]
            micros.append((s_BS, ROWS * LENGTH - masked))
        yield micros


def made(kind):
    torch.manual_seed(0)
    return tiny_models.BUILDERS[kind]()


def training(**more):
    return TrainingSection(local_steps=STEPS, lr=1e-2, clip_grad=0.5, **more)


def flat_of(model):
    return Flat([(plain_parameter_name(n), p) for n, p in model.named_parameters() if p.requires_grad])


def whole(kind, isolated=True, **more):
    """Train the whole model. Returns update and losses."""
    model = made(kind)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    flat = flat_of(model)
    rule = LocalRule(steps=STEPS, lr=1e-2)
    return fit(model, TextLoss(torch.float32, isolated), batches(), flat, flat.read(), rule, training(**more), KEY)


def parted(kind, shape, block=1, activations="float32", gradients="float32", isolated=True, window=2, **more):
    """Train the parts. Returns update, losses and the bytes that crossed."""
    model = made(kind)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    flat, parts = flat_of(model.train()), cut_model(model, block, shape)
    start, loss = flat.read(), TextLoss(torch.float32, isolated)
    here, there = parts.sides(model)
    crossings = split.CutCrossings(TokenCodec(activations, HIDDEN), TokenCodec(gradients, HIDDEN))
    rest = (training(**more), 1e-2, crossings, KEY)
    device = split.DevicePart(parts, loss, batches(), VOCABULARY, flat, here, *rest)
    server = split.ServerPart(parts, loss, VOCABULARY, flat, there, *rest)
    crossed = split.train_split_session(device, server, shape == "U", STEPS, window)
    assert device.ended == events.End()
    return flat.minus(start), [total / terms for total, terms in device.seen], crossed


@pytest.mark.quick(sample=3)
@pytest.mark.parametrize(("kind", "shape"), [("llama", "U"), ("llama", "head"), ("gpt2", "U")])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_without_rounding_the_update_is_that_of_the_whole_model(kind, shape, optimizer):
    expected = whole(kind, optimizer=optimizer, weight_decay=0.1)
    x, losses, _ = parted(kind, shape, optimizer=optimizer, weight_decay=0.1)
    np.testing.assert_allclose(x, expected.x, rtol=1e-3, atol=2e-5)
    assert losses[0] == pytest.approx(expected.loss_first, rel=1e-6)
    assert losses[-1] == pytest.approx(expected.loss_last, rel=1e-5)


@pytest.mark.slow
def test_the_number_of_micro_batches_on_their_way_changes_no_bit():
    one, two = parted("llama", "U", window=1), parted("llama", "U", window=3)
    np.testing.assert_array_equal(one[0], two[0])


@pytest.mark.parametrize("shape", ["U", "head"])
def test_what_crosses_is_what_the_codec_computes(shape):
    """Headers and labels are beside it: some tens of bytes a message."""
    _, _, crossed = parted("llama", shape, activations="int8", gradients="int4")
    tokens, messages = STEPS * MICROS * ROWS * LENGTH, STEPS * MICROS
    activations, gradients = HIDDEN + 2, HIDDEN // 2 + 2
    up = activations + (gradients if shape == "U" else 0)
    down = gradients + (activations if shape == "U" else 0)
    labels = 0 if shape == "U" else 9 / 8
    assert tokens * (up + labels) < crossed.up_bytes < tokens * (up + labels) + 320 * messages
    assert tokens * down < crossed.down_bytes < tokens * down + 320 * messages


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["bf16", "int8"])
@pytest.mark.parametrize("shape", ["U", "head"])
def test_rounding_moves_the_losses_little(shape, rounding):
    expected = parted("llama", shape)[1]
    assert parted("llama", shape, activations=rounding, gradients=rounding)[1] == pytest.approx(expected, rel=5e-3)


def noised(z, secret=KEY):
    """A device's side whose activations and output gradients are noised."""
    model = made("llama").train()
    flat, parts = flat_of(model), cut_model(model, 1, "U")
    codec, noise = TokenCodec("int8", HIDDEN), TokenNoise(1.0, z, HIDDEN)
    crossings = split.CutCrossings(codec, codec, noise, noise)
    rest = (training(), 1e-2, crossings, KEY)
    here = parts.sides(model)[0]
    return split.DevicePart(
        parts, TextLoss(torch.float32, True), batches(), VOCABULARY, flat, here, *rest, secret=secret
    )


def test_a_vector_gets_one_draw_of_noise_however_often_its_step_begins_again():
    """A server that ends connections or answers with other outputs gets the same bytes, and no second draw."""
    device, sent = noised(0.5), []
    for number, scale in ((0, 1), (0, 2), (1, 1)):
        device.perform(events.Prepare(number))
        up = device.perform(events.Forward(0)).body
        other = TokenCodec("int8", HIDDEN).encode(np.full((ROWS * LENGTH, HIDDEN), scale, np.float32))
        sent.append((up, device.perform(events.Head(0, other)).body))
    assert sent[0] == sent[1]
    assert sent[0][0] != sent[2][0]
    assert sent[0][1] != sent[2][1]
    plain = noised(1e-4)
    plain.perform(events.Prepare(0))
    assert plain.perform(events.Forward(0)).body != sent[0][0]


def test_a_process_that_restarts_draws_other_noise():
    """With the same noise on other outputs of the server, their difference would show both without any."""
    sent = []
    for attempt in (1, 2):
        device = noised(0.5)
        device.perform(events.SaveAttempt(attempt))
        device.perform(events.Prepare(0))
        sent.append(device.perform(events.Forward(0)).body)
    assert sent[0] != sent[1]


@pytest.mark.parametrize(("z", "crosses"), [(0.5, False), (None, True)])
def test_the_norm_of_gradients_crosses_only_without_noise(z, crosses):
    device = noised(z or 0.5)
    if z is None:
        device._hides = False
    device.perform(events.Prepare(0))
    device.perform(events.Forward(0))
    outputs = TokenCodec("int8", HIDDEN).encode(np.ones((ROWS * LENGTH, HIDDEN), np.float32))
    device.perform(events.Head(0, outputs))
    reduced = device.perform(events.Reduce())
    assert (reduced.norm2 > 0.0) == crosses


def test_noise_without_a_secret_is_refused():
    with pytest.raises(ValueError, match="secret"):
        noised(0.5, secret=None)


def test_labels_and_positions_come_back():
    y_BT = torch.tensor([[-1, 0, 299], [7, 300 - 1, -1]])
    assert torch.equal(split_labels.read_split_labels(split_labels.written_split_labels(y_BT, 300), (2, 3), 300), y_BT)
    for raw in (b"", b"\xff" * 7, split_labels.written_split_labels(y_BT, 300) + b"\0"):
        with pytest.raises(DecodeError):
            split_labels.read_split_labels(raw, (2, 3), 300)
    with pytest.raises(DecodeError):
        split_labels.read_split_positions(b"\0\0", (2, 3))


def headed():
    """The two sides with the head on the server, and the crossing of the first micro-batch."""
    model = made("llama").train()
    flat, parts = flat_of(model), cut_model(model, 1, "head")
    codec = TokenCodec("float32", HIDDEN)
    here, there = parts.sides(model)
    rest = (training(), 1e-2, split.CutCrossings(codec, codec), KEY)
    device = split.DevicePart(parts, TextLoss(torch.float32, True), batches(), VOCABULARY, flat, here, *rest)
    server = split.ServerPart(parts, TextLoss(torch.float32, True), VOCABULARY, flat, there, *rest)
    device.perform(events.Prepare(0))
    up = device.perform(events.Forward(0))
    fields = {name: getattr(up, name) for name in ("micro", "kind", "body", "rows", "length", "labels", "begins")}
    return device, server, Crossing(attempt=1, step=0, **fields)


@pytest.mark.parametrize("lacks", ["labels", "rows", "length"])
def test_a_server_with_the_head_refuses_activations_that_lack_a_part(lacks):
    _, server, crossing = headed()
    with pytest.raises(DecodeError, match=r"E-PAYLOAD.*(without labels|without tokens)"):
        server.perform(events.RunMicro(structs.replace(crossing, **{lacks: None})))


def test_a_device_refuses_gradients_that_lack_the_loss_of_the_servers_head():
    device, server, crossing = headed()
    ran = server.perform(events.RunMicro(crossing))
    with pytest.raises(DecodeError, match=r"E-PAYLOAD.*without the loss"):
        device.perform(events.Backward(0, ran.body, None))


def test_a_loss_that_is_not_finite_ends_the_session_by_name(monkeypatch):
    monkeypatch.setattr(split, "summed_loss", lambda *given: given[2].sum() * float("nan"))
    for shape in ("U", "head"):
        with pytest.raises(TrainingError) as refused:
            parted("llama", shape)
        assert refused.value.code == "E-NAN"
