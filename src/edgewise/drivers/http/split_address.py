"""The port of a server's listener for split learning, signed by the server for one run, and sessions of a device there.

    statement = made_split_address(server, run, port)                       the server
    port = checked_split_address(statement, run, name)                      a device
    RemoteSessions(link, run, port, folder, leaving).play(wanted, perform)

The listener is on the host of the server, with its certificate.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from edgewise.core.errors import BudgetError, DecodeError, RecipeError
from edgewise.crypto import sign
from edgewise.drivers.http import certificates
from edgewise.drivers.http.identity import Identity, key_fingerprint
from edgewise.drivers.http.link import Link
from edgewise.drivers.http.split_streams import DeviceStream, SplitAddress, StreamLimits
from edgewise.drivers.storage.split_attempts import SplitAttempts
from edgewise.engine import split_states as states
from edgewise.engine.split_names import parts_name, session_name
from edgewise.engine.split_rest import WantedSession

CONTEXT = b"edgewise split port 1\0"  # purpose of the signature; no other signed message of a server begins so
PATIENT = StreamLimits(attempts=120, pause_s=1.0)  # A server starts its process for split models again in seconds.


class SplitPort(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A signed statement of a port. ``server``: Ed25519 key; ``signature``: on ``statement``; in hexadecimal."""

    server: str
    port: int
    signature: str


def statement(run: str, port: int) -> bytes:
    """Return the bytes that a server signs."""
    return CONTEXT + f"{run}\0{port}".encode()


def made_split_address(server: Identity, run: str, port: int) -> SplitPort:
    """Make the statement of a server for a run."""
    return SplitPort(server=server.public.hex(), port=port, signature=server.sign(statement(run, port)).hex())


def checked_split_address(document: Any, run: str, name: str) -> int:
    """Check a statement as it came, as JSON, and return its port.

    Args:
        name: fingerprint of the server's key.
    Raises:
        DecodeError: E-SERVER-KEY for a statement that this server did not sign for this run.
    """
    public = signature = b""
    port = 0
    try:
        found = msgspec.convert(document, SplitPort)
        public, signature, port = bytes.fromhex(found.server), bytes.fromhex(found.signature), found.port
    except (msgspec.ValidationError, ValueError):
        pass
    signed = sign.verify(public, signature, statement(run, port))
    if key_fingerprint(public) != name or not signed or not 0 < port < 2**16:
        what = f"the port for sessions of split learning in this run is not signed by the server {name}."
        raise DecodeError("E-SERVER-KEY", what, "ask the operator whether the server listens for such sessions.")
    return port


class RemoteSessions:
    """Plays a device's sessions with the rest of a split model on its server (``engine.split_rest.RemoteRest``).

    Args:
        folder: of the run, on the device.
        leaving: called with round and bytes of each message before it leaves. Its errors end the session.
    Raises:
        RecipeError: E-COMBO for a device behind a gateway, or without TLS.
    """

    def __init__(
        self, link: Link, run: str, port: int, folder: Path, leaving: Callable[[int, int], None] = lambda r, n: None
    ) -> None:
        home = link.home
        if home.gateway is not None or not home.secure:
            how = "through a gateway, which does not carry sessions" if home.gateway is not None else "without TLS"
            what = f"the run splits its model between devices and the server, and this device is joined {how}."
            raise RecipeError("E-COMBO", what, "join the server itself, by https://, with a new token.")
        context = certificates.client_context(home.authority.encode())
        self._address = SplitAddress(urlsplit(home.url).hostname or "", port, context, home.server)
        self._link, self._run, self._attempts, self._leaving = link, run, SplitAttempts(folder), leaving

    def play(self, wanted: WantedSession, perform: Callable[[states.DeviceEffect], states.DeviceEvent | None]) -> None:
        """Play a session to its end.

        Raises:
            EdgewiseError: as ``DeviceStream.play``. StoreError: E-DISK.
            BudgetError: E-BUDGET where noise hides what crosses, and this round's session has begun before. Its noise
                would be drawn once more than the stated epsilon counts.
        """
        if wanted.once and self._attempts.begun(wanted.round):
            what = f"the session of round {wanted.round} has begun before, and its noise is drawn once only."
            raise BudgetError("E-BUDGET", what, "take part in the next round.")

        def durably(effect: states.DeviceEffect) -> states.DeviceEvent | None:
            if isinstance(effect, states.SaveAttempt):
                self._attempts.save(wanted.round, effect.attempt)
            return perform(effect)

        state = states.DeviceSide(
            session=session_name(self._run, wanted.round, self._link.name),
            parts=parts_name(self._run, wanted.device_part, wanted.rest),
            u_shape=wanted.u_shape, steps=wanted.steps, window=wanted.window,
            attempt=self._attempts.last(wanted.round),
        )  # fmt: skip
        DeviceStream(
            self._address, self._link.identity, self._run, wanted.round, state, durably, os.urandom, PATIENT,
            leaving=partial(self._leaving, wanted.round),
        ).play()  # fmt: skip
