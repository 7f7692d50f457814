"""Decisions of operators about members and tokens, each with its row of the audit log. Functions of a connection.

The signed routes and the dashboard make the same ones.
"""

from __future__ import annotations

import sqlalchemy as sa

from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import audit, members
from edgewise.drivers.fleet.members import APPROVED, REVOKED, Grant, Member
from edgewise.drivers.http.rules import OPERATOR
from edgewise.drivers.http.tokens import Token

BY_SERVER = "server"  # instead of a member's id, where the server itself acts


def current_member(c: sa.Connection, by: str) -> Member:
    """Look a member up again in the transaction of its act, which may come long after the guard has let it pass.

    Raises:
        TransportError: E-REVOKED. E-ROLE where it is no approved operator or administrator (any more).
    """
    member = members.find(c, by)
    if member is not None and member.status == REVOKED:
        raise members.revoked_member_error(by)
    if member is None or member.status != APPROVED or member.role not in OPERATOR:
        raise TransportError("E-ROLE", f"{by:.40} is no operator of this server any more.", "ask an administrator.")
    return member


def may_decide(member: Member, role: str) -> None:
    """Check that a member may decide about a role. Raises TransportError(E-ROLE) if it may not."""
    if member.role != "admin" and role != "device":
        what = f"an {member.role} decides about devices, not about a {role:.20}."
        raise TransportError("E-ROLE", what, "ask an administrator.")


def decide_membership(c: sa.Connection, by: Member, name: str, verb: str, now_s: float) -> Member:
    """Approve or revoke a member. ``verb``: ``approve`` or ``revoke``. Raises TransportError: E-ROLE, and as these."""
    by, other = current_member(c, by.id), members.find(c, name)
    if other is not None:
        may_decide(by, other.role)
    member = (members.approve_member if verb == "approve" else members.revoke)(c, name, now_s)
    audit.note(c, by.id, verb, name, now_s)
    return member


def token_made(c: sa.Connection, token: Token, grant: Grant, by: Member, now_s: float) -> None:
    """Make an enrolment token. Operators make those of devices, administrators those of all roles."""
    may_decide(current_member(c, by.id), grant.role)
    members.make_token(c, token, grant, by.id, now_s)
    audit.note(c, by.id, "make token", token.id, now_s)


def token_revoked(c: sa.Connection, token: str, by: Member, now_s: float) -> None:
    """Revoke an enrolment token. Operators revoke those of devices, administrators all."""
    may_decide(current_member(c, by.id), members.revoke_token(c, token))
    audit.note(c, by.id, "revoke token", token, now_s)
