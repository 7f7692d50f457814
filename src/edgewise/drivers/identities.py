"""Who is who in a simulation: every device's keys come from the run's seed, so nothing needs to be enrolled.

That makes a run repeat, and hides nothing from whoever knows the seed: all devices are on this machine anyway.
"""

from __future__ import annotations

from functools import lru_cache

from edgewise.core.keys import Key, derive
from edgewise.crypto import sign
from edgewise.crypto.agree import Pair
from edgewise.engine.ports import DeviceId, Trust
from edgewise.secagg import two_server


@lru_cache(maxsize=1 << 16)
def _identity(key: Key, device: DeviceId) -> Pair:
    return sign.pair(derive(key, "identity", device))


def simulated_servers(key: Key) -> tuple[Pair, Pair]:
    """The HPKE pairs of leader and helper."""
    return two_server.server_pair(derive(key, "leader")), two_server.server_pair(derive(key, "helper"))


def simulated_trust(key: Key) -> Trust:
    """Everybody's keys, from the run's key. All devices count as enrolled."""
    leader, helper = simulated_servers(key)
    return Trust(
        registry=lambda device: _identity(key, device).public,
        identity=lambda device: _identity(key, device).secret,
        leader=leader.public,
        helper=helper.public,
    )
