"""Keys and secrets of a simulation's devices and servers, derived from the seed.

They follow from the seed and from the identity of the run. So a run repeats, and nothing needs to be enrolled. Runs
that differ in recipe, population, data or simulated world share no noise, even with one seed. A person with the recipe
and the data can derive all secrets; all devices are on that person's machine anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from edgewise.core.keys import Key, Secrets, derive
from edgewise.core.training import DeviceId
from edgewise.crypto import sign
from edgewise.crypto.agree import AgreementPair
from edgewise.engine.ports import Trust
from edgewise.plan.plan import Plan
from edgewise.plan.split_part import noises_crossings
from edgewise.secagg import two_server


def simulated_root(plan: Plan, world: str, facts: Mapping[str, Any]) -> Key:
    """Derive the root of all secrets of one simulated run.

    Args:
        world: digest of the simulated surroundings of the run (``plan.recipe.recipe.Recipe.world``).
        facts: the trainer's facts about itself (``describe``). Its ``fingerprint`` of the data is part of the identity:
            one recipe over two versions of the data is two runs with different noise.
    """
    return derive(plan.key, "run", plan.run, world, str(facts.get("fingerprint", "")))


def is_simulation_noised(plan: Plan) -> bool:
    """Return whether releases or messages carry noise, with an epsilon or without one."""
    return plan.spend is not None or any(pipe.total.noise_std > 0.0 for pipe in plan.pipelines)


@lru_cache(maxsize=1 << 16)
def _identity_key(key: Key, device: DeviceId) -> AgreementPair:
    """Signing key of a simulated device."""
    return sign.pair(derive(key, "identity", device))


def simulated_servers(key: Key) -> tuple[AgreementPair, AgreementPair]:
    """Derive the HPKE pairs of leader and helper."""
    return two_server.server_pair(derive(key, "leader")), two_server.server_pair(derive(key, "helper"))


def simulated_trust(key: Key, devices: Sequence[DeviceId] = ()) -> Trust:
    """Derive all public keys from the run's root. All ``devices`` of the run count as enrolled."""
    leader, helper = simulated_servers(key)
    return Trust(
        registry=lambda device: _identity_key(key, device).public,
        identity=lambda device: _identity_key(key, device).secret,
        leader=leader.public,
        helper=helper.public,
        roster=tuple(sorted(devices)),
    )


def simulated_secrets(plan: Plan, root: Key, device: DeviceId, round: int, nonce: bytes | None) -> Secrets:
    """Derive a simulated device's secrets.

    ``nonce``: of the invitation, None where it has none. Another attempt at a round that hides contributions has
    another nonce, so no noise is repeated. Without noise the rounding of updates is derived from the seed, as batches
    are.
    """
    session = derive(root, "session", device, round, nonce or b"")
    if not (is_simulation_noised(plan) or noises_crossings(plan)):
        return Secrets(plan.batch_key(device, round), derive(plan.key, "device", device, round), session)
    return Secrets(derive(session, "training"), derive(session, "private"), session)


def simulated_entropy(plan: Plan, root: Key, round: int) -> Key:
    """Derive the server's entropy of a round.

    Without noise it only decides the groups of hidden sums. It is then derived from the seed, because such runs are
    compared device by device. (A session's id contains its run, whatever its nonce is.)
    """
    return derive(root if is_simulation_noised(plan) else plan.key, "noise", round)


def simulated_sampling(plan: Plan, root: Key) -> Key:
    """Derive the key of all cohorts. Poisson cohorts that noise relies on are secret. Others follow from the seed."""
    return root if plan.sampling.kind == "poisson" and is_simulation_noised(plan) else plan.key
