"""Admission of invitations by a device: only those of its own plan, and no more than its privacy budget counted.

A device computes every value that an epsilon or another promise rests on from its own plan. The invitation repeats
these values. So the device detects a server with another recipe or version, and refuses a server that lies. It never
trains by the server's values alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from edgewise.codecs.wire import pack
from edgewise.core import vector
from edgewise.core.digests import is_digest
from edgewise.core.frame import Invite, LocalRule
from edgewise.core.keys import KEY_BYTES
from edgewise.core.vector import Array, Vector
from edgewise.plan.plan import Plan

_ALIKE = 1e-9  # relative tolerance: two processors differ by less in the learning rate of a schedule
_CLIPS = 1e-6  # relative tolerance: they differ by less in a clip after many rounds


class No(NamedTuple):
    """Refusal of an invitation: a registered code, and a reason for people."""

    code: str
    reason: str


def invitation_refusal(plan: Plan, invite: Invite, answered: int | None) -> No | None:
    """Find the reason to refuse an invitation. None: the device takes part, unless ``unfit`` refuses.

    Args:
        answered: the last round for which an update of the device has left. None: there is none. It counts where
        ``counts_rounds``.
    Guarantees: no value of any field raises.
    """
    if reason := _difference_from_plan(plan, invite) or _impossible_invitation(plan, invite):
        return No("E-INVITE", reason)
    if answered is None or not counts_rounds(plan):
        return None
    once, buffered = plan.promise.leaves_once, plan.sampling.buffer is not None
    if invite.round == answered and not once:
        return None  # The same bytes leave again, because the server may not have them.
    # The accountant counts a device once per cycle of the cohorts that take turns, so its rounds lie a cycle apart.
    apart = plan.sampling.groups if plan.spend is not None or buffered else 1
    if invite.round < (first := answered + apart):
        why = f"this device's update of round {answered} has left, the next may in round {first}"
        return No("E-REST" if buffered and invite.round != answered else "E-SECAGG-ORDER", why)
    return None


def counts_rounds(plan: Plan) -> bool:
    """Tell whether a device remembers the last round that it answered, and refuses the invitations to some others.

    It does where an update may leave once. It does in asynchronous rounds too, where ``buffer.rest`` or an epsilon
    bounds how often a device contributes: its rounds lie ``buffer.rest`` apart, whichever rounds the server names.
    """
    rule = plan.sampling.buffer
    return plan.promise.leaves_once or (rule is not None and (rule.rest > 1 or plan.spend is not None))


def blob_refusal(plan: Plan, invite: Invite, params: Vector, support: Array | None) -> No | None:
    """Find the reason to refuse the blobs of an invitation. None: they fit.

    Args:
        params: the model with the strategy's vectors beside it (``Layout.given``), float32. support: positions of the
        last release, int64[].
    The session of secure aggregation is bound to both digests. A device that did not compare them might train, unseen
    by the others, from a model that was made for it alone.
    """
    layout = params.dtype == np.float32 and params.shape == (plan.layout.given.dim,)
    if not layout or vector.digest(vector.to_bytes(params)) != invite.model:
        return No("E-BLOB", "the model is not the one that the invitation names")
    if not vector.finite(params):
        return No("E-NAN", "the round's model has values that are not finite")
    most = plan.at(invite.round).encoded.announced
    if not most or support is None:
        fits = not most and support is None and invite.support is None
    elif support.size:
        named = vector.digest(pack.pack_support(support, plan.layout.sent.dim))
        fits = support.size <= most and named == invite.support
    else:
        fits = invite.support is None
    return None if fits else No("E-BLOB", "the positions of the last release are not those that the invitation names")


def _difference_from_plan(plan: Plan, invite: Invite) -> str | None:
    """Find how an invitation differs from the plan. None where it does not."""
    if invite.run != plan.run or invite.spec != plan.spec.digest():
        return "the invitation is for another run or another model layout"
    if not 0 <= invite.round < plan.rounds:
        return f"the run has the rounds 0 to {plan.rounds - 1}"
    if not _is_same_rule(invite.rule, plan.rule(invite.round)):
        return "the invitation asks for other local training than the recipe: steps, epochs, rate or segments"
    if invite.public != plan.public(invite.round):  # Otherwise a server would choose the supports and rotations.
        return "the round's public key is not the plan's"
    if (clips := plan.clips(invite.round)) is None:
        return None if invite.clip is None else "the recipe fixes the clip, and the invitation names one"
    least, most = clips
    if invite.clip is None or not least * (1.0 - _CLIPS) <= invite.clip <= most * (1.0 + _CLIPS):  # also for NaN
        return f"the clip of this round is between {least:.6g} and {most:.6g}"
    return None


def _impossible_invitation(plan: Plan, invite: Invite) -> str | None:
    """Find why no server of this version writes such an invitation. None where one does."""
    if invite.accepted is not None and not 0 <= invite.accepted < invite.round:
        return "the last accepted round is not before this one"
    if not 0.0 < invite.deadline_s < math.inf:
        return "the deadline is no positive number of seconds"
    if (None if invite.nonce is None else len(invite.nonce)) != (None if plan.hides is None else KEY_BYTES):
        return "the nonce has the wrong length, and without one a session could be played twice"
    if (invite.base is not None) != bool(invite.deltas) or (invite.base is not None and plan.downlink is None):
        return "the invitation names deltas without a base, a base without deltas, or either where there are none"
    if (invite.draw is not None) != bool(plan.contributors):
        return "the invitation says nothing of how its cohort was drawn, or more than there is to say"
    drawn = None if invite.draw is None else invite.draw.beacon
    named = (name for name in (invite.model, invite.base, invite.support, drawn, *invite.deltas) if name is not None)
    if not all(map(is_digest, named)):
        return "the name of a blob is not a digest"
    return None


def _is_same_rule(invited: LocalRule, rule: LocalRule) -> bool:
    """Tell whether two rules are the same but for the rounding of another processor."""
    same = (invited.steps, invited.segments, invited.epochs) == (rule.steps, rule.segments, rule.epochs)
    return same and math.isclose(invited.lr, rule.lr, rel_tol=_ALIKE)
