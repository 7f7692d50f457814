"""Sessions of people in a browser: one-time login tokens, and the cookies that they are exchanged for.

    text = sessions.invite(c, member, now_s)       # for a member who signed the request
    secret = sessions.enter(c, text, now_s)        # once, within ``LOGIN_S``
    sessions.find(c, secret, now_s)                # the member's id, for ``SESSION_S``

Only hashes are stored. The secrets have 256 random bits, so a fast hash suffices. A session has no rights of its own:
whoever uses it has the standing and the role that its member has at that moment.

A session that was once seen past its time is deleted (``sweep_sessions``), so a clock that is set back does not revive
it. A server also looks for sessions that nobody uses (``Service``).
"""

from __future__ import annotations

import hashlib
import secrets

import sqlalchemy as sa

from edgewise.core.errors import TransportError
from edgewise.drivers.fleet.tables import SESSIONS

LOGIN_S, SESSION_S = 300.0, 12 * 3600.0
PREFIX = "fedlogin1_"
_LOGIN, _SESSION = "login", "session"
_CHARACTERS = 43  # of 32 bytes in URL-safe base64


def invite_to_session(c: sa.Connection, member: str, now_s: float) -> str:
    """Make a login token for a member. Its text is not stored."""
    return PREFIX + _add(c, _LOGIN, member, now_s, LOGIN_S)


def enter_session(c: sa.Connection, text: str, now_s: float) -> tuple[str, str]:
    """Exchange a login token for a session. Return the secret of the cookie and the member's id.

    Raises:
        TransportError: E-SESSION for a token that is unknown, expired, or used already.
    """
    text = text.strip()
    member = _find(c, _LOGIN, text.removeprefix(PREFIX), now_s) if text.startswith(PREFIX) else None
    if member is None:
        what = "this login token is unknown, expired, or used already."
        raise TransportError("E-SESSION", what, "ask for a new one: `edgewise fleet login`.")
    _remove(c, _LOGIN, text.removeprefix(PREFIX))
    return _add(c, _SESSION, member, now_s, SESSION_S), member


def session_member(c: sa.Connection, secret: str, now_s: float) -> str | None:
    """Return the id of the member whose session this is. None where there is no such session."""
    return _find(c, _SESSION, secret, now_s)


def is_session_expired(c: sa.Connection, secret: str, now_s: float) -> bool:
    """Tell whether the cookie is of a session whose time has passed, and that is stored still."""
    row = c.execute(sa.select(SESSIONS.c.expires_s).where(SESSIONS.c.digest == _digest(_SESSION, secret))).first()
    return row is not None and row.expires_s <= now_s


def any_expired(c: sa.Connection, now_s: float) -> bool:
    """Tell whether a session or a login token is stored whose time has passed."""
    return c.execute(sa.select(SESSIONS.c.digest).where(SESSIONS.c.expires_s <= now_s).limit(1)).first() is not None


def sweep_sessions(c: sa.Connection, now_s: float) -> None:
    """Delete all sessions and login tokens whose time has passed."""
    c.execute(SESSIONS.delete().where(SESSIONS.c.expires_s <= now_s))


def leave_session(c: sa.Connection, secret: str) -> None:
    """End a session. A session that has ended already stays so."""
    _remove(c, _SESSION, secret)


def _digest(kind: str, secret: str) -> bytes:
    return hashlib.sha256(f"edgewise/{kind}/v1 {secret}".encode()).digest()


def _add(c: sa.Connection, kind: str, member: str, now_s: float, lasts_s: float) -> str:
    secret = secrets.token_urlsafe(32)
    sweep_sessions(c, now_s)
    c.execute(SESSIONS.insert().values(digest=_digest(kind, secret), member=member, expires_s=now_s + lasts_s))
    return secret


def _find(c: sa.Connection, kind: str, secret: str, now_s: float) -> str | None:
    if len(secret) != _CHARACTERS:
        return None
    row = c.execute(sa.select(SESSIONS).where(SESSIONS.c.digest == _digest(kind, secret))).first()
    return None if row is None or row.expires_s <= now_s else str(row.member)


def _remove(c: sa.Connection, kind: str, secret: str) -> None:
    c.execute(SESSIONS.delete().where(SESSIONS.c.digest == _digest(kind, secret)))
