"""Identities: an Ed25519 key in a file for its owner only, and the fingerprint that names it.

    me = identity.make(home / "device.key")      # the secret is made here and never leaves this machine
    me.name                                      # 32 hexadecimal characters: the id of a device, or of a server

A fingerprint is the first half of the SHA-256 of the public key. With 128 bits, nobody finds a second key for it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from edgewise.core.errors import TransportError
from edgewise.crypto import sign
from edgewise.drivers.storage.files import FOLDER, write_first

NAME_CHARACTERS = 32


def key_fingerprint(public: bytes) -> str:
    """Return the name of a public key."""
    return hashlib.sha256(public).hexdigest()[:NAME_CHARACTERS]


@dataclass(frozen=True, slots=True)
class Identity:
    """A key pair. ``public``: 32 bytes. ``name``: its fingerprint."""

    public: bytes = field(repr=False)
    secret: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """The id of the holder of the secret."""
        return key_fingerprint(self.public)

    def sign(self, message: bytes) -> bytes:
        """Sign a message with 64 bytes.

        ``message`` must name its purpose, so that no other purpose can use the signature.
        """
        return sign.sign(self.secret, message)


def make(path: Path) -> Identity:
    """Make a key in a file that only its owner can read, and open it. An existing key is opened as it is.

    The key is on the disk before this returns. A process that is killed meanwhile leaves no part of a key.

    Raises:
        TransportError: E-IDENTITY where the file cannot be written, or as ``load``.
    """
    pair = sign.pair(secrets.token_bytes(32))
    pem = Ed25519PrivateKey.from_private_bytes(pair.secret).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    try:
        path.parent.mkdir(FOLDER, parents=True, exist_ok=True)
        if not path.exists():
            write_first(path, pem)
            return Identity(pair.public, pair.secret)
    except FileExistsError:  # another process was first
        pass
    except OSError as e:
        raise TransportError(
            "E-IDENTITY", f"the key {path} cannot be written: {e.strerror}.", "choose another folder."
        ) from None
    return load(path)


def load(path: Path) -> Identity:
    """Open a key.

    Raises:
        TransportError: E-IDENTITY where there is no key, where it is not an Ed25519 key, and where others than its
            owner may read or write it.
    """
    fix = "restore it from a backup, or delete the file and enrol again with a new token."
    try:
        if os.name != "nt" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            what = f"others than its owner may read or write the key {path}."
            raise TransportError("E-IDENTITY", what, f"if nobody else has read it, `chmod 600 {path}`; else {fix}")
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as e:
        raise TransportError("E-IDENTITY", f"the key {path} cannot be read: {e.strerror}.", fix) from None
    except (ValueError, TypeError):
        raise TransportError("E-IDENTITY", f"{path} is not a key.", fix) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise TransportError("E-IDENTITY", f"{path} is not an Ed25519 key.", fix)
    return Identity(key.public_key().public_bytes_raw(), key.private_bytes_raw())
