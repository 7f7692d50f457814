"""The address of blobs in an S3-compatible object store, as an operator gives it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from edgewise.core.errors import TransportError

CODES = ("E-STORE-CONNECT", "E-STORE-ACCESS", "E-STORE-BUCKET")  # of the errors of an object store
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9_.=-]+(/[A-Za-z0-9_.=-]+)*")
_HOST = re.compile(r"[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]")
_FORM = "write s3://BUCKET/PREFIX, with letters, digits, `-`, `_`, `.` and `=` in the prefix."


@dataclass(frozen=True, slots=True)
class StorePlace:
    """Where blobs are. ``endpoint``: the URL of the store; None: that of Amazon for the region of the environment."""

    bucket: str
    prefix: str
    endpoint: str | None = None

    @property
    def url(self) -> str:
        """The place as people write it."""
        return f"s3://{self.bucket}/{self.prefix}"


def given_store_place(url: str, endpoint: str, environment: Mapping[str, str]) -> StorePlace | None:
    """Read the place that a person gave. None: no URL.

    Args:
        url: s3://BUCKET/PREFIX, or empty.
        endpoint: the URL of the store. Empty: that of the environment (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL), if any.
    Raises:
        TransportError(E-REQUEST): as ``parse_store_place``, and for an endpoint without a URL.
    """
    if not url:
        if endpoint:
            raise TransportError("E-REQUEST", "--blobs-endpoint needs --blobs.", "give both, or neither.")
        return None
    found = (environment.get(name, "") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    return parse_store_place(url, endpoint or next(filter(None, found), ""))


def parse_store_place(url: str, endpoint: str = "") -> StorePlace:
    """Parse where blobs are.

    Args:
        url: s3://BUCKET/PREFIX.
        endpoint: the URL of a store that is not Amazon's. Plain HTTP is allowed to this machine only.
    Raises:
        TransportError(E-REQUEST): for any other form. The message does not repeat the URL, which may hold a secret.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise TransportError("E-REQUEST", "the URL of the blobs names no bucket of an S3 store.", _FORM)
    if not _PREFIX.fullmatch(prefix := prefix.strip("/")) or {".", ".."} & set(prefix.split("/")):
        what = "the URL of the blobs has no prefix that can be used. Each server needs one of its own."
        raise TransportError("E-REQUEST", what, _FORM)
    return StorePlace(bucket, prefix, _endpoint(endpoint) if endpoint else None)


def _endpoint(text: str) -> str:
    """Check the URL of a store. Raises TransportError(E-REQUEST)."""
    fix = "write https://HOST:PORT. Credentials belong into the environment."
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    host = parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    if (
        parts.scheme not in ("http", "https")
        or not _HOST.fullmatch(shown)
        or parts.path not in ("", "/")
        or "@" in parts.netloc
        or parts.query
        or parts.fragment
    ):
        raise TransportError("E-REQUEST", "the endpoint of the blobs is no URL of a store.", fix)
    if parts.scheme == "http" and not _is_loopback(host):
        raise TransportError("E-REQUEST", f"plain HTTP is not allowed to {host}, which is another machine.", fix)
    return f"{parts.scheme}://{shown}" + (f":{port}" if port is not None else "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
