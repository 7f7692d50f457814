"""A gateway as the second server of a run: the port ``engine.ports.Helper`` over HTTPS.

    helper = RemoteHelper.connect(name, "https://gateway.example:9443", identity, plan, roster)
    Coordinator(plan, ..., trust=replace(trust, helper=helper.key), helper=helper)

A gateway that does not answer is asked again until patience ends. Then the run stops with E-CONNECT, and continues at
the same step when it is resumed. No device loses its place in the round, and no sum is opened without the gateway.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from edgewise.core.errors import DecodeError, TransportError
from edgewise.core.frame import Invite
from edgewise.core.training import DeviceId
from edgewise.drivers.fleet import helped
from edgewise.drivers.http import share_keys
from edgewise.drivers.http.home import Home
from edgewise.drivers.http.identity import Identity
from edgewise.drivers.http.link import Link
from edgewise.drivers.http.naming import named
from edgewise.plan import facts
from edgewise.plan.plan import Plan
from edgewise.secagg import two_server
from edgewise.secagg.secrets import Hidden

PATIENCE_S, PAUSE_S = 600.0, 1.0
REFUSALS = (
    "E-SECAGG-ORDER",
    "E-SECAGG-FEW",
    "E-INVITE",
    "E-BEACON",
)  # refusals of a batch, which are answers and not failures of the network


class RemoteHelper:
    """A gateway that helps with one run. It is a context manager.

    Attributes:
        key: HPKE key to which devices seal, signed by the gateway.
        statement: the signed statement of the key, for devices.
    """

    def __init__(self, link: Link, plan: Plan, statement: Mapping[str, Any]) -> None:
        self._link, self._plan, self.statement = link, plan, statement
        self.key = share_keys.checked_share_key(statement, share_keys.HELPER, plan.run, link.home.server)
        self._round = 0
        secagg = plan.secagg(0)
        self._limit_bytes = 2**16 + 8 * (secagg.dim + secagg.heads)  # more than any share of the run's sums has

    @classmethod
    def connect(
        cls,
        name: str,
        url: str,
        me: Identity,
        plan: Plan,
        roster: bytes,
        patience_s: float = PATIENCE_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> RemoteHelper:
        """Ask a gateway to help with a run.

        Args:
            name: fingerprint of the gateway's key, obtained from its operator.
            me: the server whose key the plan's facts name.
            roster: the keys of the run's devices (``fleet.roster``).
            patience_s: seconds of trying where the gateway does not answer.
            sleep: pauses for some seconds. An error that it raises ends a call.
        Raises:
            TransportError: E-SERVER-KEY where another gateway answers. E-CONNECT. E-SIGNATURE where the gateway belongs
                to another server. E-FACTS, E-FLOOR, E-SECAGG-FEW and other codes with which it refuses the run.
        """
        authority = _found(url, name, patience_s, sleep)
        link = Link((Home(url, name, authority, me.name), me), patience_s, sleep=sleep)
        raw = facts.canonical(plan.facts)
        document = {
            "facts": raw.decode(), "signature": facts.sign(me.secret, raw).hex(), "layout": plan.spec.to_list(),
            "roster": roster.hex(),
        }  # fmt: skip
        try:
            statement = link.call("POST", "/v1/shares/run", document=document, run=plan.run)
            return cls(link, plan, statement)
        except BaseException:
            link.close()
            raise

    def __enter__(self) -> RemoteHelper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def begin(self, invite: Invite, beacon: bytes | None = None) -> None:
        """See Helper."""
        self._round = invite.round
        self._call("round", helped.dump_helped_round(invite, beacon))

    def admit(self, ticket: bytes) -> str | None:
        """See Helper."""
        return str(self._call("ticket", ticket)["code"]) or None

    def open(self, devices: Collection[DeviceId]) -> Hidden:
        """See Helper.

        Raises:
            TransportError: E-CONNECT where the gateway does not answer.
        """
        body = json.dumps(sorted(devices)).encode()
        try:
            raw = self._link.fetch("POST", "/v1/shares/batch", body, self._plan.run, self._round, self._limit_bytes)
        except TransportError as e:
            if e.code in REFUSALS:
                raise DecodeError(e.code, e.what) from None
            raise
        return two_server.load_share(self._plan.secagg(self._round), raw)

    def _call(self, what: str, body: bytes) -> Mapping[str, object]:
        path = f"/v1/shares/{what}"
        reply: Mapping[str, object] = self._link.call("POST", path, body=body, run=self._plan.run, round=self._round)
        return reply


def _found(url: str, name: str, patience_s: float, sleep: Callable[[float], None]) -> str:
    """Get the certificate authority of a gateway that may still be starting."""
    give_up_s = time.monotonic() + patience_s
    while True:
        try:
            return named(url, name, patience_s, "/v1/gateway")[1]
        except TransportError as e:
            if e.code != "E-CONNECT" or time.monotonic() >= give_up_s:
                raise
            sleep(PAUSE_S)
