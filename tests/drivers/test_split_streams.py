"""Sessions of split learning over TLS: results of the session in one process, lost connections, and strangers."""

from __future__ import annotations

import datetime
import os
import select
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import tiny_models
import torch
from proxy import Proxy, Way

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.errors import TransportError
from edgewise.drivers.http import certificates, identity
from edgewise.drivers.http.openings import OpeningLimits, Openings
from edgewise.drivers.http.split_streams import DeviceStream, HostedSession, SplitAddress, SplitListener, StreamLimits
from edgewise.engine import split_states as events
from edgewise.learn import split
from edgewise.learn.flat import Flat
from edgewise.learn.models.cut import cut_model
from edgewise.learn.models.load import TextLoss
from edgewise.learn.models.modules import plain_parameter_name
from edgewise.plan.recipe.sections import TrainingSection

pytestmark = pytest.mark.slow  # every test makes certificates and models
HIDDEN, VOCABULARY, ROWS, LENGTH, STEPS, MICROS = 16, 300, 2, 10, 4, 3
KEY, NAME = bytes(32), bytes(32)
LIMITS = StreamLimits(attempts=60, pause_s=0.0)
UNSIGNED = (
    b"GET /v1/split HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batches():
    torch.manual_seed(3)
    for _ in range(STEPS):
        yield [(torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1)), ROWS * LENGTH) for _ in range(MICROS)]


def parts(shape):
    """Make both sides, each on a model of its own."""
    made = []
    for side in (0, 1):
        torch.manual_seed(0)
        model = tiny_models.BUILDERS["llama"]().train()
        flat, stages = (
            Flat([(plain_parameter_name(n), p) for n, p in model.named_parameters()]),
            cut_model(model, 1, shape),
        )
        codec = TokenCodec("int8", HIDDEN)
        training = TrainingSection(local_steps=STEPS, lr=1e-1, optimizer="sgd", clip_grad=0.5)
        rest = (flat, stages.sides(model)[side], training, 1e-1, split.CutCrossings(codec, codec), KEY)
        loss = TextLoss(torch.float32)
        if side:
            versions = {0: flat.read()}

            def save(what, number, flat=flat, versions=versions):
                if what == "step":
                    versions[number] = flat.read()
                elif what == "use":
                    flat.write(versions[number])

            made.append((split.ServerPart(stages, loss, VOCABULARY, *rest, save=save), flat))
        else:
            made.append((split.DevicePart(stages, loss, batches(), VOCABULARY, *rest), flat))
    return made


@dataclass
class Place:
    """A listener, the keys that it knows, and the session of one device in round 3."""

    folder: object
    shape: str = "U"
    known: dict = field(default_factory=dict)

    def __post_init__(self):
        self.identity, self.server = (identity.make(self.folder / name) for name in ("device.key", "server.key"))
        self.known[self.identity.name] = self.identity.public
        authority, certificate, key = certificates.authority_and_certificate(
            self.folder, (), datetime.datetime.now(datetime.UTC)
        )
        self.trusted = authority.read_bytes()
        self.tls = certificates.server_context(certificate, key)
        (self.device, self.here), (self.rest, self.there) = parts(self.shape)
        self.session = HostedSession(events.ServerSide(NAME, NAME, self.shape == "U"), self.rest.perform)

    def listen(self, limits=LIMITS):
        return SplitListener("127.0.0.1", 0, self.tls, self.server.name, self.known.get, self._session, limits)

    def _session(self, proof):
        asked = proof.sender, proof.run, proof.round
        return self.session if asked == (self.identity.name, "run", 3) else None

    def stream(self, port, who=None, round=3, server="", perform=None, limits=LIMITS, entropy=os.urandom, attempt=0):
        address = SplitAddress("127.0.0.1", port, certificates.client_context(self.trusted), server or self.server.name)
        state = events.DeviceSide(NAME, NAME, self.shape == "U", STEPS, attempt=attempt)
        perform = perform or self.device.perform
        return DeviceStream(address, who or self.identity, "run", round, state, perform, entropy, limits)

    def weights(self):
        """The device's part of one model, and the rest of the other."""
        return self.here.read(), self.there.read()


def in_one_process(shape):
    (device, here), (rest, there) = parts(shape)
    split.train_split_session(device, rest, shape == "U", STEPS)
    assert device.ended == events.End()
    return here.read(), there.read()


def same(found, expected):
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("shape", ["U", "head"])
def test_a_session_over_tls_gives_the_bits_of_one_in_this_process(tmp_path, shape):
    place = Place(tmp_path, shape)
    with place.listen() as listener:
        stream = place.stream(listener.port)
        assert stream.play().phase == "over"
    assert stream.waited_s > 0
    same(place.weights(), in_one_process(shape))


@pytest.mark.parametrize("direction", ["cut_up", "cut_down"])
def test_a_connection_that_breaks_in_any_message_changes_no_bit(tmp_path, direction):
    """Each connection breaks some hundred bytes later than the one before it, in both handshakes at first."""
    place = Place(tmp_path)
    with place.listen() as listener:
        proxy = Proxy(listener.port, lambda n: Way(**{direction: 300 + 350 * n}))
        try:
            stream = place.stream(proxy.port)
            assert stream.play().phase == "over"
        finally:
            proxy.close()
    assert stream.connections > 8
    same(place.weights(), in_one_process("U"))


@pytest.mark.parametrize("kill_at", [events.Reduce, events.Apply])
def test_a_device_that_was_killed_begins_the_session_anew_to_the_same_bits(tmp_path, kill_at):
    """It is killed in its third step, before or after the server has taken that step, and keeps its attempt alone."""
    place, seen = Place(tmp_path), []

    def perform(effect):
        seen.extend([effect] * isinstance(effect, kill_at))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return place.device.perform(effect)

    with place.listen() as listener:
        killed = place.stream(listener.port, perform=perform)
        with pytest.raises(KeyboardInterrupt):
            killed.play()
        assert (place.session.state.version, place.session.state.ahead) == (2, kill_at is events.Apply)
        place.device, place.here = parts("U")[0]
        assert place.stream(listener.port, attempt=killed.state.attempt).play().phase == "over"
    same(place.weights(), in_one_process("U"))


def test_a_device_that_is_revoked_is_cut_off_in_the_middle(tmp_path):
    place = Place(tmp_path)

    def perform(effect):
        if isinstance(effect, events.Apply):
            place.known.clear()
        return place.device.perform(effect)

    with place.listen() as listener:
        stream = place.stream(listener.port, perform=perform)
        with pytest.raises(TransportError) as refused:
            stream.play()
    assert refused.value.code == "E-REVOKED"
    assert stream.state.step == 1
    assert place.session.state.version <= 1


@pytest.mark.parametrize(
    ("kind", "code"),
    [("stranger", "E-SIGNATURE"), ("other round", "E-ROLE"), ("other server", "E-SIGNATURE"), ("much", "E-QUOTA"),
     ("long", "E-QUOTA")],
)  # fmt: skip
def test_who_may_not_train_is_refused_by_name(tmp_path, kind, code):
    place = Place(tmp_path)
    limits = {"much": StreamLimits(session_bytes=3000), "long": StreamLimits(message_bytes=300)}.get(kind, LIMITS)
    with place.listen(limits) as listener:
        stranger = identity.make(tmp_path / "stranger.key")
        given = {"stranger": {"who": stranger}, "other round": {"round": 4}, "other server": {"server": stranger.name}}
        stream = place.stream(listener.port, **given.get(kind, {}))
        with pytest.raises(TransportError) as refused:
            stream.play()
    assert refused.value.code == code
    assert place.session.state.version == 0


def test_silent_strangers_hold_few_threads(tmp_path):
    place, before = Place(tmp_path), threading.active_count()
    limits = StreamLimits(opening=OpeningLimits(at_once=8, of_address=3, open_s=60.0))
    with place.listen(limits) as listener, ExitStack() as strangers:
        sockets = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(12)]
        for stranger in sockets:
            strangers.enter_context(closing(stranger))
        assert until(lambda: len(select.select(sockets, [], [], 0)[0]) == 9), "nine are closed at once"
        assert until(lambda: threading.active_count() == before + 1 + 3)  # the listener's thread, and those with room


def test_room_that_strangers_fill_comes_back_to_devices(tmp_path):
    place = Place(tmp_path)
    limits = StreamLimits(attempts=200, pause_s=0.05, opening=OpeningLimits(at_once=8, of_address=3, open_s=1.0))
    with place.listen(limits) as listener, ExitStack() as strangers:
        for _ in range(3):
            strangers.enter_context(closing(socket.create_connection(("127.0.0.1", listener.port))))
        stream = place.stream(listener.port, limits=limits)
        assert stream.play().phase == "over"
    assert stream.connections > 1, "the strangers had all the room of the address"


def test_a_refused_stranger_that_stays_holds_no_thread(tmp_path):
    place, before = Place(tmp_path), threading.active_count()
    with place.listen() as listener, ExitStack() as strangers:
        for _ in range(4):
            stranger = strangers.enter_context(closing(unsigned(place, listener.port)))
            assert stranger.recv(12) == b"HTTP/1.1 403"
        assert until(lambda: threading.active_count() == before + 1)


def test_an_admitted_device_takes_no_room_of_others(tmp_path):
    place, answers = Place(tmp_path), []
    limits = StreamLimits(attempts=1, opening=OpeningLimits(at_once=1))

    def perform(effect):
        if isinstance(effect, events.Prepare) and not answers:
            with closing(unsigned(place, listener.port)) as stranger:
                answers.append(stranger.recv(12))
        return place.device.perform(effect)

    with place.listen(limits) as listener:
        assert place.stream(listener.port, perform=perform, limits=limits).play().phase == "over"
    assert answers[0] == b"HTTP/1.1 403", "there was room for a stranger to be refused by name"


def unsigned(place, port):
    """Connect as a stranger, with a request that nobody has signed."""
    plain = socket.create_connection(("127.0.0.1", port))
    stranger = certificates.client_context(place.trusted).wrap_socket(plain, server_hostname="127.0.0.1")
    stranger.sendall(UNSIGNED)
    return stranger


@pytest.mark.parametrize(("limits", "room"), [((8, 3), {"a": 3, "b": 3, "c": 2}), ((2, 9), {"a": 2, "b": 0, "c": 0})])
def test_room_of_openings_is_counted_in_all_and_by_address(limits, room):
    openings = Openings(OpeningLimits(*limits))
    with ExitStack() as held:
        for address, count in room.items():
            handled = [held.enter_context(opened(openings, address)) for _ in range(4)]
            assert [sock.fileno() >= 0 for sock in handled] == [True] * count + [False] * (4 - count)
    with opened(openings, "c") as sock:
        assert sock.fileno() >= 0


@contextmanager
def opened(openings, address):
    """Hold a connection of an address in the handler of its thread, which no request has admitted."""
    begun, end = threading.Event(), threading.Event()
    with closing(socket.socket()) as sock:

        def handler(*_):
            begun.set()
            end.wait(10)

        thread = threading.Thread(target=openings.bounded(handler), args=(sock, (address, 1)))
        thread.start()
        assert begun.wait(10)
        yield sock
        end.set()
        thread.join()


def until(true, for_s=5.0):
    end_s = time.monotonic() + for_s
    while not true() and time.monotonic() < end_s:
        time.sleep(0.02)
    return true()


def test_a_signed_request_opens_one_connection(tmp_path):
    place = Place(tmp_path)
    with place.listen() as listener:
        assert place.stream(listener.port, entropy=bytes).play().phase == "over"
        with pytest.raises(TransportError) as refused:
            place.stream(listener.port, entropy=bytes).play()
    assert refused.value.code == "E-REPLAY"


def test_a_server_that_is_not_there_is_told_by_name(tmp_path):
    place = Place(tmp_path)
    with place.listen() as listener:
        port = listener.port
    with pytest.raises(TransportError) as refused:
        place.stream(port, limits=StreamLimits(attempts=2, pause_s=0.0)).play()
    assert refused.value.code == "E-CONNECT"
