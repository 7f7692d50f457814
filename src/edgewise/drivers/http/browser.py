"""Requests of people in a browser: the cookie of a session, the token of a form, and the headers of a page.

A form carries a token that is derived from the session's secret. A page holds the token and never the secret, which
scripts cannot read either (HttpOnly). A browser that names another origin is refused, whatever the form holds.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from edgewise.core.errors import TransportError
from edgewise.drivers.fleet.sessions import SESSION_S

if TYPE_CHECKING:  # A device shows its page without the extra `server`.
    from starlette.types import Scope

COOKIE = "__Host-edgewise"  # a browser takes this prefix only from a secure origin, for the whole host
FIELD = "form_token"
FIELDS = 64
_PORTS = {"http": 80, "https": 443}
HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer a browser hides the origin of its own forms
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_FOREIGN = TransportError("E-SESSION", "the form was not made in this session.", "open the page again, and send it.")


def session_secret(scope: Scope) -> str | None:
    """Return the secret in the cookie of a request. None: there is none."""
    return cookie_value("; ".join(v.decode("latin-1") for name, v in scope["headers"] if name == b"cookie"), COOKIE)


def cookie_value(header: str, name: str) -> str | None:
    """Return the value of a cookie in the header ``cookie``, whatever other programs of this host put beside it.

    None: it has none, or several of the name. Values of edgewise need no quotes.
    """
    pairs = [part.strip().partition("=") for part in header.split(";")]
    found = [value for key, _, value in pairs if key == name]
    return found[0] if len(found) == 1 else None


def cookie(secret: str) -> str:
    """Write the header ``set-cookie`` of a session. An empty secret removes the cookie."""
    lasts = int(SESSION_S) if secret else 0
    return f"{COOKIE}={secret}; Path=/; Max-Age={lasts}; HttpOnly; Secure; SameSite=Strict"


def form_token(secret: str) -> str:
    """Derive the token of the forms of a session."""
    return hmac.new(secret.encode(), b"edgewise/form/v1", hashlib.sha256).hexdigest()


def form_fields(body: bytes) -> dict[str, str]:
    """Read a form. Raises TransportError(E-REQUEST) for other bytes, and for a field that stands twice."""
    try:
        pairs = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=FIELDS, errors="strict")
    except ValueError:
        raise TransportError("E-REQUEST", "the body is not a form.", "send the page's own form.") from None
    if any(len(values) != 1 for values in pairs.values()):
        raise TransportError("E-REQUEST", "the form has a field twice.", "send the page's own form.")
    return {name: values[0] for name, values in pairs.items()}


def check_origin(scope: Scope, public_url: str = "") -> None:
    """Refuse a form that a page of another origin sends. Raises TransportError(E-SESSION).

    An origin is a scheme, a host and a port: a page of http may not send a form to https of the same host and port.
    Browsers send these headers with every form. A program that sends neither has no session of a person to misuse.

    Args:
        public_url: the server's URL for browsers, where a reverse proxy ends TLS. Its origin is the server's own too,
            whatever host the proxy names. Empty: the scheme and host of the request alone count.
    """
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    if headers.get(b"sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise _FOREIGN
    origin = headers.get(b"origin")
    if origin is None:
        return
    here = _origin(f"{scope['scheme']}://{headers.get(b'host', '')}")
    known = {here}
    if public_url:
        public = _origin(public_url)
        known = {public} if here[1] == public[1] else {here, public}  # A proxy may pass the public host on.
    if _origin(origin) not in known:
        raise _FOREIGN


def checked_url(url: str) -> str:
    """Return a server's public URL as it is. Raises TransportError(E-REQUEST) for another text than a URL of HTTPS.

    Empty: it has none. Browsers take the cookie of a session over TLS only.
    """
    if url:
        try:
            parts = urlsplit(url)
            usable = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
            usable = usable and parts.path in ("", "/") and not parts.query and not parts.fragment and "@" not in url
        except ValueError:
            usable = False
        if not usable:
            what = f"{url:.200} is no public URL of a server."
            raise TransportError("E-REQUEST", what, "write https://HOST or https://HOST:PORT, without a path.")
    return url


def _origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port, the port also where it is the scheme's own. Raises TransportError(E-SESSION)."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        raise _FOREIGN from None
    if not host or port is None:
        raise _FOREIGN
    return parts.scheme, host, port


def check_form(body: bytes, secret: str) -> None:
    """Refuse a form without the token of its session. Raises TransportError: E-SESSION, E-REQUEST."""
    if not hmac.compare_digest(form_fields(body).get(FIELD, "").encode(), form_token(secret).encode()):
        raise _FOREIGN
