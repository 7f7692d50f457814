"""The folder of an enrolled identity: its key, and the server that it belongs to.

HOME/device.key    Ed25519, for its owner only
HOME/server.json   address and fingerprint of the server, and the certificate authority that its key has signed
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from edgewise.core.errors import TransportError
from edgewise.drivers.storage.files import FOLDER, write_durably

KEY, SERVER = "device.key", "server.json"


class Home(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An enrolment.

    Attributes:
        url: address of the server, without a path.
        server: fingerprint of the server's key.
        name: fingerprint of the own key.
        authority: PEM of the only certificate authority that TLS trusts; empty: those of the system.
        secure: use TLS. False only for plain HTTP to this machine.
        gateway: fingerprint of the gateway whose address ``url`` is. None: the address is the server's own.
    """

    url: str
    server: str
    authority: str
    name: str
    secure: bool = True
    gateway: str | None = None

    def __post_init__(self) -> None:
        if self.gateway == "":  # in the folders of earlier versions
            msgspec.structs.force_setattr(self, "gateway", None)


def check_url(url: str, plain: bool) -> bool:
    """Check an address, and return whether it means TLS.

    Raises:
        TransportError: E-REQUEST for anything but https://HOST[:PORT]. Plain http:// is accepted where ``plain`` is set
            and it stays on this machine.
    """
    parts = urlsplit(url)
    bare_host = parts.hostname and not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
    if parts.scheme == "https" and bare_host:
        return True
    if parts.scheme == "http" and bare_host and plain and _is_loopback(parts.hostname or ""):
        return False
    what = f"{url:.200} is not an address https://HOST:PORT."
    raise TransportError("E-REQUEST", what, "plain http:// is for 127.0.0.1 alone, and only with --plain.")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load(folder: Path) -> Home:
    """Load an enrolment from the home folder of its identity.

    Raises:
        TransportError: E-IDENTITY where there is none, or where it is damaged.
    """
    path = folder / SERVER
    try:
        return msgspec.json.decode(path.read_bytes(), type=Home)
    except OSError:
        raise TransportError(
            "E-IDENTITY", f"{folder} is not enrolled at a server.", "run `edgewise join URL` first."
        ) from None
    except msgspec.DecodeError as e:
        fix = "restore it from a backup, or join again with a new token."
        raise TransportError("E-IDENTITY", f"{path} is damaged: {e}.", fix) from None


def check_free(folder: Path, server: str) -> None:
    """Refuse a folder that is enrolled at another server.

    Raises:
        TransportError: E-IDENTITY.
    """
    if (folder / SERVER).exists() and (found := load(folder)).server != server:
        what = f"{folder} is enrolled at another server, {found.url}."
        raise TransportError("E-IDENTITY", what, "name another folder (--home).")


def save(folder: Path, home: Home) -> None:
    """Write an enrolment to the home folder of its identity.

    Raises:
        StoreError: E-DISK.
    """
    folder.mkdir(FOLDER, parents=True, exist_ok=True)
    write_durably(folder / SERVER, msgspec.json.format(msgspec.json.encode(home)), owner_only=True)
