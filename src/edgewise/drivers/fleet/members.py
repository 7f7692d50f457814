"""Enrolment: tokens, and the members that they admit. Functions of a connection; see ``database``.

    pending ──approve──► approved ──revoke──► revoked          a pre-approved token skips the first state
       └────────────────revoke─────────────────▲

A revoked member stays in the table, so its key cannot enrol again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from edgewise.core.errors import TransportError
from edgewise.drivers.fleet.tables import MEMBERS, TOKENS
from edgewise.drivers.http import tokens
from edgewise.drivers.http.identity import key_fingerprint
from edgewise.drivers.storage.dialects import upsert

ROLES = ("device", "viewer", "operator", "admin", "gateway")
PENDING, APPROVED, REVOKED = "pending", "approved", "revoked"
LONGEST_S = 90 * 86400.0  # the longest life of a token
_TAG = re.compile(r"[a-z0-9][a-z0-9._=-]{0,63}")
LABEL_CHARACTERS = 100
_ASK = "ask the operator for a new token."


@dataclass(frozen=True, slots=True)
class Member:
    """A device, or an operator of the fleet. ``id``: fingerprint of ``public``. ``token``: id of its token."""

    id: str
    public: bytes = field(repr=False)
    role: str
    status: str
    tags: tuple[str, ...]
    label: str
    token: str
    joined_s: float


@dataclass(frozen=True, slots=True)
class Grant:
    """The rights that a token gives: a role and tags, for a number of uses, until it expires.

    ``approved``: without approval.
    """

    role: str = "device"
    tags: tuple[str, ...] = ()
    uses: int = 1
    approved: bool = False
    expires_in_s: float = 3600.0


def check_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Sort the tags of a member and remove duplicates.

    Raises:
        TransportError: E-REQUEST for a tag or a number of tags that is not allowed.
    """
    if len(tags) > 32 or any(not _TAG.fullmatch(tag) for tag in tags):
        what = "a tag has 1 to 64 of the characters a-z 0-9 . _ = -, and nobody has more than 32."
        raise TransportError("E-REQUEST", what, "use other tags.")
    return tuple(sorted(set(tags)))


def make_token(c: sa.Connection, token: tokens.Token, grant: Grant, made_by: str, now_s: float) -> None:
    """Store the hash of an enrolment token.

    Raises:
        TransportError: E-REQUEST for a grant outside the limits.
    """
    if grant.role not in ROLES or not 1 <= grant.uses <= 1_000_000 or not 1.0 <= grant.expires_in_s <= LONGEST_S:
        what = f"a token gives one of the roles {', '.join(ROLES)}, 1 to 1,000,000 times, for 1 s to 90 days."
        raise TransportError("E-REQUEST", what, "ask for one within these limits.")
    c.execute(
        TOKENS.insert().values(
            id=token.id, digest=token.digest, role=grant.role, tags=json.dumps(check_tags(grant.tags)),
            uses=grant.uses, used=0, approved=grant.approved, expires_s=now_s + grant.expires_in_s, revoked=False,
            made_by=made_by, made_s=now_s,
        )
    )  # fmt: skip


def revoke_token(c: sa.Connection, id: str) -> str:
    """Revoke a token, so that nobody enrols by it any more. Members who did stay. Return the role that the token gave.

    Raises:
        TransportError: E-UNKNOWN-ID.
    """
    role = c.execute(TOKENS.update().where(TOKENS.c.id == id).values(revoked=True).returning(TOKENS.c.role)).scalar()
    if role is None:
        raise TransportError("E-UNKNOWN-ID", f"there is no token {id:.40}.", "`edgewise token ls` lists them.")
    return str(role)


def list_tokens(c: sa.Connection) -> list[dict[str, Any]]:
    """List all tokens without their hashes, the oldest first."""
    columns = [column for column in TOKENS.c if column.name != "digest"]
    rows = c.execute(sa.select(*columns).order_by(TOKENS.c.made_s, TOKENS.c.id))
    return [{**row._asdict(), "tags": json.loads(row.tags)} for row in rows]


def join_fleet(c: sa.Connection, token: tokens.Token, public: bytes, label: str, now_s: float) -> Member:
    """Enrol a key by a token, and count one use of the token, in one transaction.

    A key that has enrolled by this token before gets the same answer and costs no use, because its first answer may
    have been lost.

    Raises:
        TransportError: E-TOKEN where the token is unknown, used up, expired or revoked. E-REVOKED for a key that was
            revoked.
    """
    row = c.execute(sa.select(TOKENS).where(TOKENS.c.id == token.id)).first()
    if row is None or row.digest != token.digest:
        raise TransportError("E-TOKEN", "this server has no such enrolment token.", _ASK)
    known = find(c, name := key_fingerprint(public))
    if known is not None:
        if known.status == REVOKED:
            raise revoked_member_error(name)
        if known.token == token.id:
            return known
        what = f"{name} is enrolled already, by another token."
        raise TransportError("E-TOKEN", what, "continue without a token. For another role use another key.")
    if row.revoked or row.expires_s <= now_s or row.used >= row.uses:
        why = "revoked" if row.revoked else "expired" if row.expires_s <= now_s else "used as often as it may be"
        raise TransportError("E-TOKEN", f"the enrolment token was {why}.", _ASK)
    c.execute(TOKENS.update().where(TOKENS.c.id == token.id).values(used=row.used + 1))
    status = APPROVED if row.approved else PENDING
    label = "".join(x for x in label if x.isprintable())[:LABEL_CHARACTERS]
    values = {"role": row.role, "status": status, "label": label, "token": token.id, "joined_s": now_s}
    c.execute(MEMBERS.insert().values(id=name, public=public, tags=row.tags, changed_s=now_s, **values))
    return Member(name, public, row.role, status, tuple(json.loads(row.tags)), label, token.id, now_s)


def admit_member(c: sa.Connection, public: bytes, role: str, now_s: float) -> None:
    """Admit a key that this machine's operator vouches for, without a token. A known key stays as it is."""
    row = {
        "id": key_fingerprint(public), "public": public, "role": role, "status": APPROVED, "tags": "[]", "label": "",
        "token": "", "joined_s": now_s, "changed_s": now_s,
    }  # fmt: skip
    c.execute(upsert(c, MEMBERS).values(row).on_conflict_do_nothing())


def revoked_member_error(name: str) -> TransportError:
    """Make the error for a member that was revoked."""
    return TransportError("E-REVOKED", f"{name} was revoked, or has left.", "make a new key and ask for a token.")


def find(c: sa.Connection, name: str) -> Member | None:
    """Find a member of the fleet by its id."""
    row = c.execute(sa.select(MEMBERS).where(MEMBERS.c.id == name)).first()
    return _member(row) if row else None


def listed(c: sa.Connection, status: str | None = None, after: str = "", limit: int = 1000) -> list[Member]:
    """List members in the order of their ids, of one status or all, a page at a time."""
    query = sa.select(MEMBERS).where(MEMBERS.c.id > after).order_by(MEMBERS.c.id).limit(limit)
    return [_member(row) for row in c.execute(query.where(MEMBERS.c.status == status) if status is not None else query)]


def count(c: sa.Connection) -> int:
    """Count the approved devices of the fleet."""
    some = (MEMBERS.c.role == "device") & (MEMBERS.c.status == APPROVED)
    return int(c.execute(sa.select(sa.func.count()).where(some)).scalar() or 0)


def approve_member(c: sa.Connection, name: str, now_s: float) -> Member:
    """Approve a pending member of the fleet. An approved one stays approved.

    Raises:
        TransportError: E-UNKNOWN-ID, E-REVOKED.
    """
    return _change(c, name, APPROVED, now_s)


def revoke(c: sa.Connection, name: str, now_s: float) -> Member:
    """Revoke a member of the fleet for ever.

    Raises:
        TransportError: E-UNKNOWN-ID.
    """
    return _change(c, name, REVOKED, now_s)


def _change(c: sa.Connection, name: str, status: str, now_s: float) -> Member:
    member = find(c, name)
    if member is None:
        raise TransportError("E-UNKNOWN-ID", f"there is no member {name:.40}.", "`edgewise fleet ls` lists them.")
    if member.status == REVOKED and status != REVOKED:
        raise revoked_member_error(name)
    if member.status != status:
        c.execute(MEMBERS.update().where(MEMBERS.c.id == name).values(status=status, changed_s=now_s))
    return Member(
        member.id, member.public, member.role, status, member.tags, member.label, member.token, member.joined_s
    )


def _member(row: Any) -> Member:
    tags = tuple(json.loads(row.tags))
    return Member(row.id, row.public, row.role, row.status, tags, row.label, row.token, row.joined_s)
