"""Invitations as an honest server sends them, and what a driver hands to the device machine with them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from edgewise.core import frame, vector
from edgewise.core.keys import Secrets
from edgewise.engine import device as machine
from edgewise.plan.compile import Plan

SECRETS = Secrets.of(bytes(range(32)))


def invitation(plan: Plan, round: int = 0, params: np.ndarray | None = None, **changes: Any) -> frame.Invite:
    """To train ``params`` (zeros where None); ``changes``: fields that are to be otherwise."""
    params = np.zeros(plan.spec.dim, np.float32) if params is None else params
    honest = frame.Invite(
        run=plan.run, round=round, spec=plan.spec.digest(), model=vector.digest(vector.to_bytes(params)),
        public=plan.public(round), accepted=-1, deadline_s=plan.sampling.deadline_s, rule=plan.rule(round),
        nonce=b"" if plan.hides is None else bytes(32),
    )  # fmt: skip
    return msgspec.structs.replace(honest, **changes)


def invited(
    plan: Plan,
    round: int = 0,
    params: np.ndarray | None = None,
    secrets: Secrets = SECRETS,
    support: np.ndarray | None = None,
    **changes: Any,
) -> machine.Invited:
    """The same with what it names, as a driver gives it to the machine."""
    params = np.zeros(plan.spec.dim, np.float32) if params is None else params
    return machine.Invited(invitation(plan, round, params, **changes), params, secrets, support)
