"""Decisions of operators about members and tokens, each with its row of the audit log. Functions of a connection.

The signed routes and the dashboard make the same ones.
"""

from __future__ import annotations

import sqlalchemy as sa

from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import audit, members
from edgewise.drivers.fleet.members import Grant, Member
from edgewise.drivers.http.tokens import Token


def may_decide(member: Member, role: str) -> None:
    """Check that a member may decide about a role. Raises TransportError(E-ROLE) if it may not."""
    if member.role != "admin" and role != "device":
        what = f"an {member.role} decides about devices, not about a {role:.20}."
        raise TransportError("E-ROLE", what, "ask an administrator.")


def decided(c: sa.Connection, by: Member, name: str, verb: str, now_s: float) -> Member:
    """Approve or revoke a member. ``verb``: ``approve`` or ``revoke``. Raises TransportError: E-ROLE, and as these."""
    other = members.find(c, name)
    if other is not None:
        may_decide(by, other.role)
    member = (members.approve if verb == "approve" else members.revoke)(c, name, now_s)
    audit.note(c, by.id, verb, name, now_s)
    return member


def token_made(c: sa.Connection, token: Token, grant: Grant, by: Member, now_s: float) -> None:
    """Make an enrolment token. Operators make tokens for devices; administrators for all roles."""
    may_decide(by, grant.role)
    members.make_token(c, token, grant, by.id, now_s)
    audit.note(c, by.id, "make token", token.id, now_s)
