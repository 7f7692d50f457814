"""Who is who in a simulation, and its devices' secrets: all from the run's seed, so nothing needs to be enrolled.

That makes a run repeat, and hides nothing from whoever knows the seed: all devices are on this machine anyway.
"""

from __future__ import annotations

from functools import lru_cache

from edgewise.core.keys import Key, Secrets, derive
from edgewise.crypto import sign
from edgewise.crypto.agree import Pair
from edgewise.engine.ports import DeviceId, Trust
from edgewise.plan.compile import Plan
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


def simulated_secrets(plan: Plan, device: DeviceId, round: int, nonce: bytes) -> Secrets:
    """A simulated device's secrets. ``nonce``: of the invitation; another attempt at a round that hides contributions
    has another one, so no noise is repeated."""
    session = derive(plan.key, "session", device, round, nonce)
    encoding = derive(plan.key, "device", device, round) if plan.spend is None else derive(session, "private")
    return Secrets(plan.batch_key(device, round), encoding, session)
