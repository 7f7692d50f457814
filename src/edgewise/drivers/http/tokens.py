"""Enrolment tokens, which an operator gives to the owners of devices.

    fedtok1_ + base32(id 8 bytes, secret 16, fingerprint of the server's key 16, checksum 4), lower case

The device uses the fingerprint to check the server before it sends anything, so nothing is trusted on first use. The
checksum (the first bytes of a SHA-256) finds typing errors before any request is sent. The server stores the SHA-256 of
the secret. 128 random bits need no slow hash.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass, field

from edgewise.core.errors import TransportError

PREFIX = "fedtok1_"
_ID, _SECRET, _SERVER, _CHECK = 8, 16, 16, 4
_BYTES = _ID + _SECRET + _SERVER + _CHECK
_CHARACTERS = (8 * _BYTES + 4) // 5
_FIX = "copy the whole token again, or ask the operator for a new one (`edgewise token create`)."


@dataclass(frozen=True, slots=True)
class Token:
    """An enrolment token.

    Attributes:
        id: 16 hexadecimal characters, shown in lists of tokens.
        secret: 16 bytes.
        server: the fingerprint of the server's key, as in ``identity``.
    """

    id: str
    secret: bytes = field(repr=False)
    server: str

    @property
    def digest(self) -> bytes:
        """The hash of the secret that the server stores, 32 bytes."""
        return hashlib.sha256(b"edgewise/token/v1" + self.secret).digest()

    @property
    def text(self) -> str:
        """The token as text. It is shown once, to the operator."""
        body = bytes.fromhex(self.id) + self.secret + bytes.fromhex(self.server)
        return PREFIX + base64.b32encode(body + _checksum(body)).decode().rstrip("=").lower()


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + body).digest()[:_CHECK]


def make_token_for_server(server: str) -> Token:
    """Make a fresh token for the server of this fingerprint."""
    return Token(secrets.token_hex(_ID), secrets.token_bytes(_SECRET), server)


def parse(text: str) -> Token:
    """Read a token. Spaces and line breaks around it do not matter. Everything else must be exact.

    Raises:
        TransportError: E-TOKEN for text that ``Token.text`` does not give.
    """
    text = text.strip()
    body = text.removeprefix(PREFIX)
    if body == text:
        raise TransportError("E-TOKEN", f"an enrolment token begins with {PREFIX}.", _FIX)
    if len(body) != _CHARACTERS:
        raise TransportError("E-TOKEN", f"an enrolment token has {_CHARACTERS} characters, not {len(body)}.", _FIX)
    try:
        raw = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
    except ValueError:
        raise TransportError("E-TOKEN", "the enrolment token has characters that no token has.", _FIX) from None
    token = Token(raw[:_ID].hex(), raw[_ID : _ID + _SECRET], raw[_ID + _SECRET : -_CHECK].hex())
    if token.text != text:
        raise TransportError("E-TOKEN", "the enrolment token has a typing error: its checksum is wrong.", _FIX)
    return token
