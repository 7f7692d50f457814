"""AMD SEV-SNP reports: ECDSA P-384 by the chip's key, whose certificate (VCEK) chains to AMD's root.

Checked: version, algorithm and signer of the report; the signature over its first 672 bytes; RSA-PSS of VCEK by ASK by
ARK; the ARK's digest, which is pinned; validity; that chip and firmware versions of the certificate are the report's.
Not checked: revocation lists. Refused: reports by a cloud provider's key (VLEK), and those of later processors (Turin).
Source: AMD 56860, SEV Secure Nested Paging Firmware ABI, table ATTESTATION_REPORT; AMD 57230, VCEK certificate.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.utils import CryptographyDeprecationWarning

from edgewise.crypto.attest.evidence import Evidence, Facts, refused

REPORT_BYTES, SIGNED_BYTES = 1184, 672
ROOTS: Mapping[str, str] = {  # SHA-256 of AMD's root certificates (ARK), as kdsintf.amd.com serves them, -> processors
    "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd": "Milan",
    "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1": "Genoa",
}
_OID = "1.3.6.1.4.1.3704.1."
_PARTS = {"bootloader": ("3.1", 0), "tee": ("3.2", 1), "snp": ("3.3", 6), "microcode": ("3.8", 7)}  # OID, byte of TCB
_CHIP = _OID + "4"
_DEBUG = 1 << 19  # bit of the guest's policy
_VERSIONS = range(2, 6)


def verify(evidence: Evidence, now: datetime) -> Facts:
    """Verify a report and the certificates beside it. Raises DecodeError(E-ATTEST)."""
    report = evidence.document
    if len(report) != REPORT_BYTES or len(evidence.certificates) != 3:
        raise refused(f"an SEV-SNP report has {REPORT_BYTES} bytes and three certificates")
    chip = _chain(evidence.certificates, now)
    version, algorithm, policy = _u32(report, 0), _u32(report, 0x34), int.from_bytes(report[8:16], "little")
    if version not in _VERSIONS or algorithm != 1:
        raise refused(f"its report has version {version} and algorithm {algorithm}, which are not known")
    if _u32(report, 0x48) >> 2 & 7:
        raise refused("its report is not signed by the chip's own key (VCEK)")
    _signed(report, chip)
    tcb = report[0x180:0x188]
    versions = {name: tcb[at] for name, (_, at) in _PARTS.items()}
    stated = dict(_extensions(chip))
    if stated.get(_CHIP) != report[0x1A0:0x1E0]:
        raise refused("its report is of another chip than its certificate")
    for name, (oid, _) in _PARTS.items():
        if stated.get(_OID + oid) != _integer(versions[name]):
            raise refused(f"its report and its certificate differ in the version of {name}")
    registers = {
        "measurement": report[0x90:0xC0].hex(),
        "host_data": report[0xC0:0xE0].hex(),
        "id_key_digest": report[0xE0:0x110].hex(),
        "vmpl": report[0x30:0x34].hex(),
    }
    return Facts("snp", report[0x50:0x90], registers, bool(policy & _DEBUG), versions)


def _chain(ders: tuple[bytes, ...], now: datetime) -> x509.Certificate:
    """Return the chip's certificate if it chains to a pinned root."""
    if hashlib.sha256(ders[2]).hexdigest() not in ROOTS:
        raise refused("its root certificate is none of AMD's that are pinned")
    try:
        with warnings.catch_warnings():  # AMD gives all chips the serial number 0.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            chip, issuer, root = (x509.load_der_x509_certificate(der) for der in ders)
            for child, parent in ((chip, issuer), (issuer, root)):
                key = parent.public_key()
                if not isinstance(key, rsa.RSAPublicKey):
                    raise TypeError("no RSA key")
                pss = padding.PSS(padding.MGF1(SHA384()), salt_length=48)
                key.verify(child.signature, child.tbs_certificate_bytes, pss, SHA384())
    except Exception as e:  # boundary: a foreign parser may raise anything about foreign bytes
        raise refused(f"its certificates do not chain to AMD's root ({type(e).__name__})") from None
    for one in (chip, issuer, root):
        if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
            raise refused("a certificate is not valid at this time")
    return chip


def _signed(report: bytes, chip: x509.Certificate) -> None:
    """Check the report's signature. R and S are 72 bytes each, little end first."""
    key = chip.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise refused("its chip has a key of another kind")
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    try:
        key.verify(encode_dss_signature(r, s), report[:SIGNED_BYTES], ec.ECDSA(SHA384()))
    except (InvalidSignature, ValueError):
        raise refused("its report is not signed by its chip") from None


def _extensions(chip: x509.Certificate) -> Iterator[tuple[str, bytes]]:
    """Yield the values of AMD's extensions, by their object identifiers."""
    for extension in chip.extensions:
        if isinstance(extension.value, x509.UnrecognizedExtension):
            yield extension.oid.dotted_string, extension.value.value


def _integer(value: int) -> bytes:
    """Encode a byte as a DER INTEGER."""
    return bytes([2, 2, 0, value]) if value > 127 else bytes([2, 1, value])


def _u32(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 4], "little")
