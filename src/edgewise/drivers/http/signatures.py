"""Signed requests: a strict profile of HTTP Message Signatures (RFC 9421) with Ed25519.

A request carries five headers. All of them are required, and no other form is read:

    content-digest: sha-256=:BASE64:                         of the body, also of an empty one (RFC 9530)
    edgewise-run, edgewise-round: RUN, 3                     subject of the request; `-` for none
    signature-input: sig=("@method" "@path" "@query" "content-digest" "edgewise-run" "edgewise-round" "edgewise-server")
        ;created=SECONDS;nonce="32 HEX";keyid="DEVICE";alg="ed25519";tag="edgewise/v1"      (one line)
    signature: sig=:BASE64:                                  over ``base``

``edgewise-server``, the fingerprint of the server's key, is signed and not sent. Each server puts its own name there,
so a request for one server has an invalid signature at another. ``tag`` separates these signatures from those of secure
aggregation by the same key: no other message begins as ``base`` does.

Source: RFC 9421, sections 2.5, 3.1 and 3.3.6. The signature base is tested with the RFC's own vector (B.2.6).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgewise.core.errors import TransportError
from edgewise.crypto import sign
from edgewise.drivers.http.identity import Identity

TOLERANCE_S = 60  # the largest difference between the clocks of a device and of the server
NONCE_BYTES = 16
NONE = "-"  # run and round of a request without a run
TAG = "edgewise/v1"
COVERED = ("@method", "@path", "@query", "content-digest", "edgewise-run", "edgewise-round", "edgewise-server")
_NAMES = " ".join(f'"{name}"' for name in COVERED)
_INPUT = re.compile(
    re.escape(f"sig=({_NAMES})")
    + r";created=([1-9][0-9]{8,10});nonce=\"([0-9a-f]{32})\";keyid=\"([0-9a-f]{32})\";alg=\"ed25519\";"
    + re.escape(f'tag="{TAG}"')
)
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
_SIGNATURE = re.compile(r"sig=:([A-Za-z0-9+/]{86}==):")
RUN = re.compile(r"-|[0-9A-Za-z._:-]{1,128}")
_ROUND = re.compile(r"-|0|[1-9][0-9]{0,8}")
_FIX = "enrol with `edgewise join`, and use the client of this version of edgewise."


@dataclass(frozen=True, slots=True)
class Request:
    """The signed content of a request.

    ``path`` and ``query`` are as on the wire, percent-encoded. ``body``: its SHA-256.
    """

    method: str
    path: str
    query: str
    body: bytes = field(repr=False)
    run: str = NONE
    round: str = NONE


@dataclass(frozen=True, slots=True)
class Proof:
    """A request that its sender has signed.

    Attributes:
        sender: the id of the key.
        nonce: 16 bytes, of this request alone.
        created_s: the sender's clock.
        body: the SHA-256 that the body must have.
        run, round: as signed; None for none.
    """

    sender: str
    nonce: bytes = field(repr=False)
    created_s: int
    body: bytes = field(repr=False)
    run: str | None
    round: int | None


def base(parts: Sequence[tuple[str, str]], parameters: str) -> bytes:
    """Build the signature base of RFC 9421, section 2.5: one line for each covered part, then the parameters."""
    lines = [f'"{name}": {value}' for name, value in parts]
    return "\n".join([*lines, f'"@signature-params": {parameters}']).encode()


def digest_header(body: bytes) -> str:
    """Format the value of ``content-digest`` for a body's SHA-256."""
    return f"sha-256=:{base64.b64encode(body).decode()}:"


def _base(request: Request, server: str, parameters: str) -> bytes:
    values = (
        request.method, request.path, f"?{request.query}", digest_header(request.body),
        request.run, request.round, server,
    )  # fmt: skip
    return base(tuple(zip(COVERED, values, strict=True)), parameters)


def headers(identity: Identity, request: Request, server: str, created_s: int, nonce: bytes) -> dict[str, str]:
    """Make the headers that sign a request.

    ``nonce``: 16 fresh random bytes. ``server``: the fingerprint of its key.
    """
    parameters = (
        f'({_NAMES});created={created_s};nonce="{nonce.hex()}";keyid="{identity.name}";alg="ed25519";tag="{TAG}"'
    )
    signature = identity.sign(_base(request, server, parameters))
    return {
        "content-digest": digest_header(request.body),
        "edgewise-run": request.run,
        "edgewise-round": request.round,
        "signature-input": f"sig={parameters}",
        "signature": f"sig=:{base64.b64encode(signature).decode()}:",
    }


def claimed_sender(headers: Mapping[str, str]) -> str | None:
    """Return the id that a request claims as sender, not checked yet. None where it claims none."""
    given = _INPUT.fullmatch(headers.get("signature-input", ""))
    return given[3] if given else None


def verify_request(
    request: tuple[str, str, str],
    headers: Mapping[str, str],
    server: str,
    now_s: float,
    key_of: Callable[[str], bytes | None],
) -> Proof:
    """Check the headers of a request, before its body is read.

    Args:
        request: method, path and query as they came.
        headers: by lower-case name.
        key_of: returns the public key of a sender's id; None for a stranger.
    Raises:
        TransportError: E-SIGNATURE for anything but a valid signature of a known key. E-CLOCK where it was made more
            than ``TOLERANCE_S`` from now, in either direction.
    Guarantees: no state. ``fleet.nonces`` checks whether the nonce was used, and the reader of the body checks its
    digest.
    """
    found = {name: headers.get(name, "") for name in ("content-digest", "edgewise-run", "edgewise-round")}
    given, signed = (
        _INPUT.fullmatch(headers.get("signature-input", "")),
        _SIGNATURE.fullmatch(headers.get("signature", "")),
    )
    body = _DIGEST.fullmatch(found["content-digest"])
    if not (
        given and signed and body and RUN.fullmatch(found["edgewise-run"]) and _ROUND.fullmatch(found["edgewise-round"])
    ):
        raise TransportError("E-SIGNATURE", "the request is not signed, or not in the form of edgewise.", _FIX)
    created_s, nonce, sender = int(given[1]), bytes.fromhex(given[2]), given[3]
    if abs(now_s - created_s) > TOLERANCE_S:
        what = (
            f"the request was signed {now_s - created_s:+.0f} s from the server's clock; {TOLERANCE_S} s are allowed."
        )
        raise TransportError("E-CLOCK", what, "set the clock of the device (NTP), then try again.")
    try:
        digest, signature = base64.b64decode(body[1], validate=True), base64.b64decode(signed[1], validate=True)
    except ValueError:
        raise TransportError("E-SIGNATURE", "the request is signed with malformed bytes.", _FIX) from None
    covered = Request(*request, digest, found["edgewise-run"], found["edgewise-round"])
    public = key_of(sender)
    if public is None or not sign.verify(public, signature, _base(covered, server, given[0].removeprefix("sig="))):
        raise TransportError("E-SIGNATURE", "the request is not signed by a key that this server knows.", _FIX)
    run, round = found["edgewise-run"], found["edgewise-round"]
    return Proof(sender, nonce, created_s, digest, None if run == NONE else run, None if round == NONE else int(round))


def sha256(body: bytes | memoryview) -> bytes:
    """Return the SHA-256 of a request's body."""
    return hashlib.sha256(body).digest()
