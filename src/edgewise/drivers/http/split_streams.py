"""Sessions of split learning over WebSockets and TLS: a listener beside a server, and the device's side.

    GET /v1/split        with the headers of a signed request (``drivers.http.signatures``): device, run and round
    -> 101               that device's session in that round. Each binary message is one of ``engine.split_messages``
    -> 403               {"code", "what", "fix"}

    with SplitListener("0.0.0.0", 9443, tls, identity.name, key_of, session_of):      # beside a server
        ...
    address = SplitAddress("fed.example", 9443, client_context(authority), server_name)    # on a device
    state = DeviceStream(address, identity, run, round, state, part.perform, os.urandom).play()

The listener has its own port and no route in the server's application. Each connection has a thread of its own, in
which the rest of the model computes, so the event loop of a server goes on meanwhile.

Rules:
    Who may speak: a key that ``key_of`` knows, for a session that ``session_of`` gives to it. Both are asked again
        before each message, so the connection ends with the next message of a device that is revoked, or of a round
        that has closed.
    Bounds: ``StreamLimits`` has those of one message, of all messages of a session and of the connections, also of
        those that are not admitted yet (``drivers.http.openings``).
    A signed request opens one connection. Its nonce is remembered as long as its signature holds.
    A session has one connection. A newer one of the same device ends the older one.
    A lost connection ends an attempt. The device connects again and begins the step again that neither side has taken
        (``engine.split``).
"""

from __future__ import annotations

import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from edgewise.core.errors import REGISTRY, DecodeError, EdgewiseError, TransportError
from edgewise.drivers.http import signatures
from edgewise.drivers.http.identity import Identity
from edgewise.drivers.http.openings import OpeningLimits, Openings
from edgewise.drivers.http.signatures import NONE, Proof, Request
from edgewise.engine import split_messages as wire
from edgewise.engine import split_states as events
from edgewise.engine.split import step_device, step_server

PATH = "/v1/split"
NONCE_BYTES = signatures.NONCE_BYTES
REFUSED, TOO_LONG = 1008, 1009  # close codes of RFC 6455
CLOSE_S = 2.0  # An older connection may be dead, and the newer one waits for its end.
BUSY = "E-BUSY"  # reason of a close after which a device may return
_SIGNED = ("content-digest", "edgewise-run", "edgewise-round", "signature-input", "signature")
_NO_SESSION = "this device has no session of split learning in this round."


@dataclass(frozen=True)
class StreamLimits:
    """Bounds of sessions.

    Attributes:
        message_bytes: longest message in either direction.
        session_bytes: all messages of a device in one session, of all its connections.
        connections: admitted connections at once. opening: the others.
        answer_s: the device repeats what has no answer after this time.
        silences: repetitions without any answer, after which a connection counts as lost.
        attempts: connections in a row that take no step, after which a device gives up.
        pause_s: pause before a new connection.
    """

    message_bytes: int = 1 << 26
    session_bytes: int = 1 << 36
    connections: int = 256
    opening: OpeningLimits = field(default_factory=OpeningLimits)
    answer_s: float = 30.0
    silences: int = 4
    attempts: int = 10
    pause_s: float = 1.0


DEFAULT_LIMITS = StreamLimits()


@dataclass
class HostedSession:
    """The rest of a model for one device in one round.

    Attributes:
        state: of the machine. perform: performs its effects, as ``learn.split.ServerPart.perform``.
        received, sent: bytes from the device and to it in this session.
    """

    state: events.ServerSide
    perform: Callable[[events.ServerEffect], events.ServerEvent | None]
    received: int = 0
    sent: int = 0
    connection: Any = field(default=None, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def take(self, event: events.ServerEvent) -> list[bytes]:
        """Feed an event to the machine and perform its effects. Returns the messages for the device."""
        waiting, out = [event], list[bytes]()
        while waiting:
            self.state, effects = step_server(self.state, waiting.pop(0))
            for effect in effects:
                if isinstance(effect, events.SendToPeer):
                    out.append(wire.dump(effect.message))
                elif (after := self.perform(effect)) is not None:
                    waiting.append(after)
        return out


class SplitListener:
    """Listens for sessions of split learning. Use as a context manager.

    Args:
        host, port: the address. Port 0 takes a free one (``port``).
        tls: the server's context (``certificates.server_context``).
        server: fingerprint of the server's key, which devices sign.
        key_of: returns the public key of a member that may train now, and None for all others.
        session_of: returns the session of a request's sender in its run and round, and None where it has none.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext,
        server: str,
        key_of: Callable[[str], bytes | None],
        session_of: Callable[[Proof], HostedSession | None],
        limits: StreamLimits = DEFAULT_LIMITS,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        with _with_package():
            from websockets.sync.server import serve
        self._server, self._key_of, self._session_of = server, key_of, session_of
        self._limits, self._now_s = limits, now_s
        self._spent: dict[bytes, int] = {}  # nonce -> the sender's clock, of requests that may come again
        self._spending = threading.Lock()
        self._room = threading.BoundedSemaphore(limits.connections)
        self._openings = Openings(limits.opening)
        quiet = logging.getLogger("edgewise.websockets")
        quiet.setLevel(logging.CRITICAL)  # It would write addresses and headers of strangers.
        self._listening = serve(
            self._talk, host, port, ssl=tls, process_request=self._admit, max_size=limits.message_bytes,
            compression=None, max_queue=4, open_timeout=limits.opening.open_s, close_timeout=CLOSE_S,
            server_header=None, logger=quiet,
        )  # fmt: skip
        self._listening.handler = self._openings.bounded(self._listening.handler)
        self.port = int(self._listening.socket.getsockname()[1])
        self._thread = threading.Thread(target=self._listening.serve_forever, name="edgewise-split", daemon=True)

    def __enter__(self) -> SplitListener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown()
        self._thread.join()

    def _admit(self, connection: Any, request: Any) -> Any:
        """Answer a request that may not open a session. None opens it."""
        try:
            self._spend(self._found(request)[0])
        except EdgewiseError as e:
            body = json.dumps({"code": e.code, "what": e.what, "fix": e.fix})
            return connection.respond(HTTPStatus.FORBIDDEN, body)
        return None

    def _spend(self, proof: Proof) -> None:
        """Refuse a signed request that this listener has taken already. Raises TransportError(E-REPLAY)."""
        with self._spending:
            oldest_s = self._now_s() - 2 * signatures.TOLERANCE_S
            self._spent = {nonce: at_s for nonce, at_s in self._spent.items() if at_s > oldest_s}
            if proof.nonce in self._spent:
                raise TransportError("E-REPLAY", "this request has come before.", "sign a new one.")
            self._spent[proof.nonce] = proof.created_s

    def _found(self, request: Any) -> tuple[Proof, HostedSession]:
        """Return proof and session of a request. Raises TransportError(E-SIGNATURE, E-CLOCK, E-ROLE)."""
        path, _, query = request.path.partition("?")
        if path != PATH or query:
            raise TransportError("E-ROUTE", "there are sessions of split learning only.", f"ask for {PATH}.")
        headers: dict[str, str] = {}
        for name in _SIGNED:
            values = request.headers.get_all(name)
            if len(values) != 1:
                raise TransportError("E-SIGNATURE", f"the request has {len(values)} headers {name}.", "send each once.")
            headers[name] = values[0]
        proof = signatures.verify_request(("GET", PATH, ""), headers, self._server, self._now_s(), self._key_of)
        return proof, self._allowed(proof)

    def _allowed(self, proof: Proof) -> HostedSession:
        """Return the session of a sender that may still train. Raises TransportError(E-REVOKED, E-ROLE)."""
        if self._key_of(proof.sender) is None:
            raise TransportError("E-REVOKED", f"{proof.sender} may not train any more.", "ask the operator.")
        if (session := self._session_of(proof)) is None:
            raise TransportError("E-ROLE", _NO_SESSION, "wait for an invitation.")
        return session

    def _talk(self, connection: Any) -> None:
        """Carry one connection until it ends."""
        from websockets.exceptions import ConnectionClosed

        if not self._room.acquire(blocking=False):
            connection.close(REFUSED, BUSY)
            return
        self._openings.admitted()
        try:
            proof, session = self._found(connection.request)
            with session.lock:
                older, session.connection = session.connection, connection
            if older is not None:
                older.close(REFUSED, BUSY)
            with suppress(ConnectionClosed):
                self._carry(connection, proof, session)
        except EdgewiseError as e:
            connection.close(REFUSED, e.code)
        finally:
            self._room.release()

    def _carry(self, connection: Any, proof: Proof, session: HostedSession) -> None:
        begun = False
        while True:
            raw = connection.recv()
            if self._allowed(proof) is not session or not isinstance(raw, bytes):
                raise TransportError("E-ROLE", _NO_SESSION, "begin again.")
            with session.lock:
                if session.connection is not connection:
                    return
                session.received += len(raw)
                if session.received > self._limits.session_bytes:
                    raise TransportError("E-QUOTA", "the session has sent more than it may.", "send less.")
                out = [] if begun else session.take(events.Disconnected())
                begun = True
                out += session.take(wire.from_device(raw, self._limits.message_bytes))
            for message in out:
                connection.send(message)
                session.sent += len(message)


@dataclass(frozen=True)
class SplitAddress:
    """The place of a session, for a device.

    Attributes:
        tls: the device's context (``certificates.client_context``). server: fingerprint of the server's key.
    """

    host: str
    port: int
    tls: ssl.SSLContext
    server: str


class DeviceStream:
    """The device's side of a session over the network.

    Args:
        run, round: subject of the signed request.
        state: of the machine, with the last durable step and attempt.
        perform: performs its effects, as ``learn.split.DevicePart.perform``.
        entropy: returns so many fresh random bytes, for nonces.
        leaving: called with the bytes of each message before it leaves. Its errors end the session.
    Attributes:
        state: of the machine, after ``play`` with the phase "over" or "stopped".
        connections: number of connections so far.
        waited_s: seconds in which the device computed nothing, because it waited for the server.
    """

    def __init__(
        self,
        address: SplitAddress,
        identity: Identity,
        run: str,
        round: int,
        state: events.DeviceSide,
        perform: Callable[[events.DeviceEffect], events.DeviceEvent | None],
        entropy: Callable[[int], bytes],
        limits: StreamLimits = DEFAULT_LIMITS,
        now_s: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
        leaving: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._leaving = leaving
        self._address, self._identity, self._run, self._round = address, identity, run, round
        self.state, self._perform, self._entropy, self._limits = state, perform, entropy, limits
        self._now_s, self._pause, self.connections, self.waited_s = now_s, pause, 0, 0.0

    def play(self) -> events.DeviceSide:
        """Train all steps, over as many connections as it takes. Returns the last state.

        Raises:
            TransportError: the code that the server refuses with. E-CONNECT where ``attempts`` connections in a row
                take no step.
            DecodeError: E-FRAME for bytes that no server sends. TrainingError, DecodeError: as ``perform``.
        """
        with _with_package():
            from websockets.exceptions import InvalidStatus, WebSocketException
        failures, last = 0, self.state.step
        while self.state.phase not in ("over", "stopped"):
            try:
                self._connection()
            except (WebSocketException, OSError, TimeoutError) as e:
                if isinstance(e, InvalidStatus) and (refused := _refusal(e)).code != BUSY:
                    raise refused from None
                _raise_refused(e)
                failures, last = (0 if self.state.step > last else failures + 1), self.state.step
                if failures >= self._limits.attempts:
                    what = f"{failures} connections to {self._address.host} ended before a step: {type(e).__name__}."
                    raise TransportError("E-CONNECT", what, "check the link to the server, then join again.") from None
                self._pause(self._limits.pause_s)
            self.state, _ = step_device(self.state, events.Disconnected())
        return self.state

    def _connection(self) -> None:
        from websockets.sync.client import connect

        here = self._address
        request = Request("GET", PATH, "", signatures.sha256(b""), self._run or NONE, str(self._round))
        signed = signatures.headers(
            self._identity, request, here.server, int(self._now_s()), self._entropy(NONCE_BYTES)
        )  # fmt: skip
        host = f"[{here.host}]" if ":" in here.host else here.host
        self.connections += 1
        connection: Any = connect(
            f"wss://{host}:{here.port}{PATH}", ssl=here.tls, additional_headers=signed, compression=None, proxy=None,
            max_size=self._limits.message_bytes, user_agent_header=None,
        )  # fmt: skip
        with connection:
            self._feed(connection, events.Connected())
            silences = 0
            while self.state.phase not in ("over", "stopped"):
                began_s = time.monotonic()
                try:
                    raw = connection.recv(timeout=self._limits.answer_s)
                except TimeoutError:
                    silences += 1
                    if silences > self._limits.silences:
                        raise
                    self._feed(connection, events.NoAnswer())
                    continue
                finally:
                    self.waited_s += time.monotonic() - began_s
                if not isinstance(raw, bytes):
                    raise DecodeError("E-FRAME", "a message of split learning is not binary.")
                silences = 0
                self._feed(connection, wire.from_server(raw, self._limits.message_bytes))

    def _feed(self, connection: Any, event: events.DeviceEvent) -> None:
        """Feed an event to the machine and perform its effects in their order.

        What is sent is on its way while the device computes the next micro-batch.
        """
        waiting = [event]
        while waiting:
            self.state, effects = step_device(self.state, waiting.pop(0))
            for effect in effects:
                if isinstance(effect, events.SendToPeer):
                    self._leaving(len(message := wire.dump(effect.message)))
                    connection.send(message)
                elif (after := self._perform(effect)) is not None:
                    waiting.append(after)


@contextmanager
def _with_package() -> Iterator[None]:
    """Raise TransportError(E-DEPENDENCY) where the package websockets is missing."""
    try:
        yield
    except ModuleNotFoundError as e:
        what = f"sessions of split learning over a network need {e.name or e}."
        raise TransportError("E-DEPENDENCY", what, 'pip install "edgewise[split]".') from None


def _raise_refused(error: Any) -> None:
    """Raise TransportError where the server has closed a connection for good. Nothing for a lost one."""
    close = getattr(error, "rcvd", None)
    if close is not None and close.code == TOO_LONG:
        raise TransportError("E-QUOTA", "a message is longer than the server takes.", "send smaller micro-batches.")
    if close is not None and close.code == REFUSED and close.reason in REGISTRY and close.reason != BUSY:
        raise TransportError(close.reason, "the server has ended the session.", "ask its operator.")


def _refusal(error: Any) -> TransportError:
    """Make the error that a server's answer to a handshake names."""
    response = getattr(error, "response", None)
    body: Mapping[str, Any] = {}
    with suppress(ValueError, TypeError):
        found = json.loads(bytes(response.body or b"")) if response is not None else {}
        body = found if isinstance(found, dict) else {}
    code, what, fix = (str(body.get(key, "")) for key in ("code", "what", "fix"))
    return TransportError(
        code if code in REGISTRY else "E-CONNECT", what[:200] or "the server opens no session.", fix[:200]
    )
