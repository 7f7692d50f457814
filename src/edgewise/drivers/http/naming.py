"""Identification of a server: the first question to it, before any certificate is trusted."""

from __future__ import annotations

import secrets

import httpx2

from edgewise.core.errors import TransportError
from edgewise.drivers.http import answers, certificates

CONNECT_S, ANSWER_S = 10.0, 30.0
IDENTIFICATION_BYTES = 2**16  # the largest answer of a server that nothing is known of yet


def named(url: str, server: str, patience_s: float, path: str = "/v1/server") -> tuple[bytes, str]:
    """Get the key of a server and its certificate authority, checked against the fingerprint of that key.

    Nothing else is trusted.

    Args:
        path: the path at which the server identifies itself.
    """
    nonce = secrets.token_bytes(32)
    try:
        with (
            httpx2.Client(base_url=url, verify=False, timeout=timeout(min(patience_s, ANSWER_S))) as client,
            client.stream("GET", path, params={"nonce": nonce.hex()}) as answer,
        ):
            identification = answers.received(answer, IDENTIFICATION_BYTES).document()
        key, signature = bytes.fromhex(identification["key"]), bytes.fromhex(identification["signature"])
        authority = str(identification["authority"])
    except httpx2.TransportError as e:
        raise unreachable(url, e) from None
    except (ValueError, KeyError, TypeError, answers.Wait):
        raise TransportError("E-SERVER-KEY", f"{url} is no edgewise server.", "check the address.") from None
    certificates.pinned_authority(server, key, authority.encode(), nonce, signature)
    return key, authority


def unreachable(url: str, e: Exception) -> TransportError:
    """Make the error for a server that does not answer."""
    what = f"{url} does not answer: {str(e) or type(e).__name__}."
    return TransportError("E-CONNECT", what, "check the address, the network and whether the server runs.")


def timeout(answer_s: float) -> httpx2.Timeout:
    """Return the time limits for a connection and for an answer."""
    return httpx2.Timeout(answer_s, connect=CONNECT_S)
