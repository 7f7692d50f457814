"""The second server of ``shared_sum`` in this process: the gateway's machine behind the engine's ``Helper`` port."""

from __future__ import annotations

from collections.abc import Collection

from edgewise.core.append_map import AppendMap
from edgewise.core.errors import DecodeError
from edgewise.engine.ports import DeviceId
from edgewise.secagg import two_server
from edgewise.secagg.client import Registry
from edgewise.secagg.params import Params
from edgewise.secagg.secrets import Hidden
from edgewise.secagg.two_server import Ticket


class LocalGateway:
    """A helper in the server's own process: right for a simulation, and no protection by itself."""

    def __init__(self, secret: bytes, registry: Registry) -> None:
        self._secret, self._registry = secret, registry
        self._seen: AppendMap[bytes, None] = AppendMap()
        self._helper: two_server.Helper
        self._round, self._opened = -1, -1  # this one, and the last one whose batch was opened

    def begin(self, round: int, params: Params, context: bytes) -> None:
        """See Helper."""
        self._round, opened = round, round <= self._opened
        self._helper = two_server.Helper(params, context, self._secret, self._registry, self._seen, opened=opened)

    def admit(self, ticket: Ticket) -> str:
        """See Helper."""
        try:
            self._helper = two_server.admit(self._helper, ticket)
        except DecodeError as e:
            return e.code
        self._seen = self._helper.seen
        return ""

    def open(self, devices: Collection[DeviceId]) -> Hidden:
        """See Helper."""
        self._helper, share = two_server.open_batch(self._helper, devices)
        self._opened = self._round
        return share
