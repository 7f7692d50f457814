"""AWS Nitro Enclaves documents: COSE_Sign1 with ES384, whose certificate chains to AWS's root.

Checked: the signature; each certificate by the one above it, up to the root whose digest is pinned; validity, which is
about three hours for the last one; that the certificates above may issue others.
Source: AWS Nitro Enclaves, "Verifying the root of trust"; RFC 9052 (COSE), 4.4.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from itertools import pairwise
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from edgewise.core.errors import DecodeError
from edgewise.crypto.attest.evidence import Evidence, Facts, refused

ROOT = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"  # SHA-256 of AWS's root certificate
_ES384 = -35
_PCRS = range(16)


def verify(evidence: Evidence, now: datetime) -> Facts:
    """Verify a document. Raises DecodeError(E-ATTEST), or E-MISSING without the library for CBOR."""
    try:
        import cbor2
    except ImportError:
        what = "documents of Nitro need the package cbor2."
        raise DecodeError("E-MISSING", what, "install it: pip install 'edgewise[attest]'.") from None
    try:
        protected, _, payload, signature = _items(cbor2.loads(evidence.document))
        header, document = cbor2.loads(protected), cbor2.loads(payload)
        algorithm, digest = header[1], document["digest"]
        root, *between = (bytes(one) for one in document["cabundle"])
        leaf, pcrs = bytes(document["certificate"]), {number: bytes(document["pcrs"][number]) for number in _PCRS}
        bound = bytes(document["user_data"] or b"")
    except Exception as e:  # boundary: a foreign parser may raise anything about foreign bytes
        raise refused(f"its document is malformed ({type(e).__name__})") from None
    if algorithm != _ES384 or digest != "SHA384" or len(signature) != 96:
        raise refused("its document is not signed with ES384")
    key = _chain([root, *between, leaf], now)
    try:
        signed = cbor2.dumps(["Signature1", protected, b"", payload])
        r, s = (int.from_bytes(half, "big") for half in (signature[:48], signature[48:]))
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA384()))
    except (InvalidSignature, ValueError):
        raise refused("its document is not signed by its certificate") from None
    registers = {f"pcr{number}": pcr.hex() for number, pcr in pcrs.items()}
    return Facts("nitro", bound, registers, debug=not any(pcrs[0]))  # In debug mode PCR0 is all zeros.


def _items(document: Any) -> tuple[bytes, Any, bytes, bytes]:
    """Return the four items of a COSE_Sign1, with or without its tag."""
    protected, unprotected, payload, signature = getattr(document, "value", document)
    if not all(isinstance(item, bytes) for item in (protected, payload, signature)):
        raise ValueError("no COSE_Sign1")
    return protected, unprotected, payload, signature


def _chain(ders: list[bytes], now: datetime) -> ec.EllipticCurvePublicKey:
    """Return the key of the last certificate if it chains to the pinned root."""
    if hashlib.sha256(ders[0]).hexdigest() != ROOT:
        raise refused("its root certificate is not AWS's")
    try:
        chain = [x509.load_der_x509_certificate(der) for der in ders]
        for depth, (parent, child) in enumerate(pairwise(chain)):
            child.verify_directly_issued_by(parent)
            limits = parent.extensions.get_extension_for_class(x509.BasicConstraints).value
            below = len(chain) - depth - 2  # certificates that may issue others, under this one
            if not limits.ca or (limits.path_length is not None and below > limits.path_length):
                raise ValueError("not an issuer")
        key = chain[-1].public_key()
    except Exception as e:  # boundary: a foreign parser may raise anything about foreign bytes
        raise refused(f"its certificates do not chain to AWS's root ({type(e).__name__})") from None
    for one in chain:
        if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
            raise refused("a certificate is not valid at this time")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise refused("its certificate has a key of another kind")
    return key
