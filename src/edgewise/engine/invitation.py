"""Which invitations a device takes: those of its run, and no more of them than its privacy was counted for."""

from __future__ import annotations

from edgewise.core import keys
from edgewise.core.frame import Invite
from edgewise.plan.compile import Plan


def once(plan: Plan) -> bool:
    """Whether a device's update leaves once per round: where a sum hides it, since from two sums over devices that
    differ by one that one's update is read; and where its own noise does, since repeating would average that out."""
    return plan.hides is not None or (plan.spend is not None and plan.recipe.privacy in ("local", "record"))


def refused(plan: Plan, invite: Invite, answered: int) -> tuple[str, str]:
    """Code and reason of a refusal; without a reason the device takes part.

    ``answered``: the last round for which an update of the device has left that leaves ``once``; -1 for none.
    """
    if invite.run != plan.run or invite.spec != plan.spec.digest():
        return "E-FRAME", "the invitation is for another run or another model layout"
    if invite.round < 0:
        return "E-FRAME", "rounds are counted from 0"
    if not {s.name for s in plan.spec.segments}.issuperset(invite.rule.segments):
        return "E-FRAME", "the invitation asks to train segments that this model does not have"
    if plan.hides is not None and len(invite.nonce) != keys.KEY_BYTES:
        return "E-FRAME", "the invitation has no nonce, and without one a session could be played twice"
    if not once(plan):
        return "", ""
    # Noise is counted for a number of rounds, of which a device is in one of as many as there are cohorts in turn.
    first = answered + (plan.sampling.groups if plan.spend is not None else 1)
    if answered >= 0 and invite.round < first:
        return "E-SECAGG-ORDER", f"this device's update of round {answered} has left, the next may in round {first}"
    if plan.spend is not None and invite.round >= plan.spend.rounds:
        return "E-BUDGET", f"the privacy budget is enough for {plan.spend.rounds} rounds"
    return "", ""
