"""The process of a server that has the rests of split models, computes with torch, and listens for devices.

    python -m edgewise.drivers.workers.split_child         # started by ``drivers.workers.split_process``

It reads messages (``split_jobs``) from standard input and ends with it, so a killed server leaves no process behind.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.core import vector
from edgewise.core.errors import EdgewiseError, TransportError
from edgewise.core.keys import Key, derive, root
from edgewise.core.training import DeviceId
from edgewise.drivers.http import certificates
from edgewise.drivers.http.signatures import Proof
from edgewise.drivers.http.split_streams import BUSY, HostedSession, SplitListener
from edgewise.drivers.screen import guard_streams
from edgewise.drivers.workers import split_jobs as jobs
from edgewise.engine import split_states as states
from edgewise.engine.split_names import parts_name, session_name
from edgewise.plan.recipe.recipe import from_plain

if TYPE_CHECKING:
    from edgewise.learn.frozen_rest import FrozenRest

BUSY_PORT_S = 10.0  # The process before this one may still have the port.


@dataclass
class _HeldRun:
    """A run whose rest is here, and the sessions of its open round.

    ``begun``: rounds below this one have begun here. ``open``: the last of them takes sessions.
    """

    rest: FrozenRest
    name: str
    key: Key = field(repr=False)
    devices: dict[DeviceId, bytes] = field(repr=False)
    u_shape: bool
    begun: int = 0
    open: bool = False
    sessions: dict[DeviceId, HostedSession] = field(default_factory=dict)

    def session(self, device: DeviceId, round: int) -> HostedSession:
        """Return the session of a device in the open round. It begins with the first request."""
        if device not in self.sessions:
            parts = self.rest.parts
            state = states.ServerSide(
                session=session_name(self.name, round, device),
                parts=parts_name(self.name, parts.shared.digest(), parts.own.digest()),
                u_shape=self.u_shape, frozen=True,
            )  # fmt: skip
            part = self.rest.part(derive(self.key, "fit", device, round))

            def perform(effect: states.ServerEffect) -> states.ServerEvent | None:
                from edgewise.learn.computing import computing

                with computing(device):
                    return part.perform(effect)

            self.sessions[device] = HostedSession(state, perform)
        return self.sessions[device]

    def counted(self) -> tuple[jobs.SessionCount, ...]:
        """Count the sessions of the round."""
        return tuple(
            jobs.SessionCount(device, s.state.version + int(s.state.ahead), s.received, s.sent)
            for device, s in sorted(self.sessions.items())
        )


class SplitChild:
    """Does what the server asks, one message at a time. Threads of the listener look up keys and sessions meanwhile."""

    def __init__(self) -> None:
        self._revoked = frozenset[str]()
        self._runs: dict[str, _HeldRun] = {}
        self._lock, self._open = threading.Lock(), ExitStack()

    def do(self, message: jobs.Asked) -> jobs.Answer:
        """Do what one message asks. Errors of edgewise become an answer."""
        try:
            return self._do(message)
        except EdgewiseError as e:
            return jobs.SplitJobFailed(code=e.code, what=e.what, fix=e.fix)

    def _do(self, message: jobs.Asked) -> jobs.SplitJobDone:
        match message:
            case jobs.RevokeJob(names=names):
                self._revoked = names
            case jobs.HoldRestJob():
                held = _load(message)
                with self._lock:
                    self._runs[message.run] = held
            case jobs.BeginSessions(run=run, round=round):
                with self._lock:
                    held = self._runs[run]
                    if not (held.open and held.begun == round + 1):
                        held.begun, held.open, held.sessions = round + 1, True, {}
            case jobs.EndSessions(run=run):
                with self._lock:
                    self._runs[run].open = False
                    return jobs.SplitJobDone(sessions=self._runs[run].counted())
            case jobs.DropRestJob(run=run):
                with self._lock:
                    self._runs.pop(run, None)
            case jobs.ListenJob():
                return jobs.SplitJobDone(port=self._listen(message))
        return jobs.SplitJobDone()

    def _listen(self, message: jobs.ListenJob) -> int:
        tls = certificates.server_context(Path(message.certificate), Path(message.key))
        until_s = time.monotonic() + BUSY_PORT_S
        while True:
            try:
                listener = SplitListener(message.host, message.port, tls, message.server, self._key, self._session)
            except OSError as e:
                if time.monotonic() > until_s:
                    what = f"sessions of split learning cannot listen at {message.host}:{message.port}: {e.strerror}."
                    raise TransportError("E-LISTEN", what, "choose another port.") from None
                time.sleep(0.2)
                continue
            self._open.enter_context(listener)
            return listener.port

    def _key(self, name: str) -> bytes | None:
        """Return the key of a device of some run here that is not revoked."""
        with self._lock:
            found = next((held.devices[name] for held in self._runs.values() if name in held.devices), None)
        return None if name in self._revoked else found

    def _session(self, proof: Proof) -> HostedSession | None:
        """Return the session of a request's sender. None where it has none, or its round is over.

        Raises TransportError(E-BUSY) for a round that has not begun here, as after a restart.
        """
        with self._lock:
            held = self._runs.get(proof.run or "")
            if held is None or proof.round is None or proof.round >= held.begun:
                raise TransportError(BUSY, "the round has not begun here.", "ask again.")
            if not held.open or proof.round != held.begun - 1 or proof.sender not in held.devices:
                return None
            return held.session(proof.sender, proof.round)


def _load(message: jobs.HoldRestJob) -> _HeldRun:
    from edgewise.learn.frozen_rest import FrozenRest

    recipe = from_plain(json.loads(message.recipe), "the stored recipe")
    values = vector.from_bytes(message.values, len(message.values) // 4)
    rest = FrozenRest(recipe, Path(message.recipe_dir), Path(message.cache), values)
    return _HeldRun(rest, message.run, root(recipe.seed), message.devices, recipe.split.shape == "U")


def main() -> None:
    """Serve messages until the pipe closes. Output of libraries goes to standard error."""
    stream_in, stream_out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    guard_streams()
    child = SplitChild()
    while (message := jobs.read_asked(stream_in)) is not None:
        jobs.write_split_job(stream_out, child.do(message))
    os._exit(0)  # Threads of connections may compute, and nothing of them has to last.


if __name__ == "__main__":
    main()
