"""A session of secure aggregation on a fake wire: devices, a server, and whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from edgewise.core.keys import derive, root
from edgewise.crypto import sign
from edgewise.secagg import client, events, messages, secrets, server
from edgewise.secagg.params import Params, TrustPolicy

ROOT = root(1)
IDENTITIES = {f"d{i:03d}": sign.pair(derive(ROOT, "id", i)) for i in range(120)}
FOREIGN = ("\N{FULLWIDTH TILDE}", "\N{DOLPHIN}")  # in the order of code points, which is not that of UTF-16 code units
IDENTITIES |= {name: sign.pair(derive(ROOT, "id", name)) for name in FOREIGN}
SID = messages.secagg_session_id("run", 3, "model", "config", bytes(32))


def fresh(device: str) -> list[bytes]:
    """The secrets that a device of a ``Session`` draws at its start."""
    entropy = derive(ROOT, "entropy", device)
    return [secrets.fresh_secret(entropy, SID, role, device) for role in ("seal", "mask", "seed", "shares")]


def signed(device: str, roster: bytes, message: Any) -> Any:
    """Shares, or what was revealed, changed after its device had said it, with its good signature."""
    if isinstance(message, messages.SharesMessage):
        said = messages.shares_digest(roster, device, messages.boxes_digest(message.boxes))
    else:
        said = messages.revealed_digest(roster, device, message.seeds, message.keys)
    return msgspec.structs.replace(message, signature=sign.sign(IDENTITIES[device].secret, said))


def registry(device: str) -> bytes | None:
    return IDENTITIES[device].public if device in IDENTITIES else None


@dataclass
class Session:
    """``n`` devices with known updates, around a server."""

    n: int
    n_min: int = 2
    dim: int = 5
    heads: int = 1
    bits: int = 20
    sid: Callable[[str], bytes] = lambda _: SID
    policy: TrustPolicy = field(default_factory=TrustPolicy)
    rung: int | None = None
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.params = Params(self.policy, self.n_min, self.bits, self.dim, self.heads, self.rung)
        self.devices = list(self.names or IDENTITIES)[: self.n]
        rng = np.random.default_rng(self.n)
        self.xs = {d: rng.integers(0, 1 << self.bits, self.dim, dtype=np.uint32) for d in self.devices}
        self.hs = {d: rng.integers(0, 1 << 63, self.heads, dtype=np.uint64) for d in self.devices}
        self.clients: dict[str, client.State] = {}
        self.server: server.State = server.start(server.SecAggSession(self.params, SID, registry))
        self.refused: list[tuple[str, str]] = []
        self.sent: list[bytes] = []  # everything that crossed the wire

    def advertise(self, devices: Sequence[str] = ()) -> list[tuple[str, bytes]]:
        """Start the devices; their first messages."""
        out = []
        for d in devices or self.devices:
            state, raw = client.start(
                self.params, self.sid(d), d, IDENTITIES[d].secret, self.xs[d], self.hs[d], derive(ROOT, "entropy", d)
            )
            self.clients[d] = state
            out.append((d, raw))
        return out

    def give(self, device: str, raw: bytes) -> list[tuple[str, bytes]]:
        """A message to the server; what it sends."""
        self.sent.append(raw)
        return self._out(events.SecAggReceived(device, raw))

    def close(self) -> list[tuple[str, bytes]]:
        """The step's deadline."""
        return self._out(events.SecAggStepClosed())

    def _out(self, event: events.Event) -> list[tuple[str, bytes]]:
        self.server, effects = server.step_secagg_server(self.server, event)
        self.refused += [(e.device, e.code) for e in effects if isinstance(e, events.SecAggRefused)]
        return [(e.device, e.raw) for e in effects if isinstance(e, events.SecAggSend)]

    def answer(self, device: str, raw: bytes) -> bytes:
        """A message to a device; its answer."""
        self.sent.append(raw)
        # Through bytes and back: a session may be kept outside the process between two messages.
        state = client.restore(client.save(self.clients[device]))
        self.clients[device], answer = client.step(self.params, state, raw, registry)
        return answer

    @property
    def over(self) -> bool:
        return isinstance(self.server, server.Released | server.Aborted)

    def play(self, drop: Callable[[int, str], bool] = lambda *_: False) -> server.State:
        """To the end; ``drop(step, device)`` says who does not answer message ``step`` (1 to 4) any more."""
        for device, raw in self.advertise():
            self.give(device, raw)
        mail, number, gone = self.close(), 0, set()
        while not self.over:
            number += 1
            answers = []
            for device, raw in mail:
                gone |= {device} if drop(number, device) else set()
                if device not in gone:
                    answers.append((device, self.answer(device, raw)))
            mail = [letter for device, raw in answers for letter in self.give(device, raw)]
            if not mail and not self.over:
                mail = self.close()
        self.check()
        return self.server

    def copy(self) -> Session:
        """This session as it stands; what happens to the one does not happen to the other."""
        other = copy(self)
        other.server = deepcopy(self.server)  # its sum is folded in place
        other.clients, other.refused, other.sent = dict(self.clients), list(self.refused), list(self.sent)
        return other

    def check(self) -> None:
        """A released sum is the survivors', exactly."""
        if isinstance(self.server, server.Released):
            body = sum(self.xs[d].astype(np.uint64) for d in self.server.survivors) % (1 << self.bits)
            np.testing.assert_array_equal(self.server.body, body)
            np.testing.assert_array_equal(self.server.head, np.sum([self.hs[d] for d in self.server.survivors], axis=0))
            assert len(self.server.survivors) >= self.n_min
        else:
            assert isinstance(self.server, server.Aborted)
            assert self.server.code.startswith("E-")
