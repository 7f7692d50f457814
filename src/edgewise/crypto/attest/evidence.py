"""Evidence of a platform, and the facts that a verified one states.

    facts = accept.verify(evidence, now)      # the signature and its chain to a pinned root; DecodeError(E-ATTEST) else
    facts.bound == bound(role, run, key)      # what the attested program says of itself: here the key that it holds

What is verified is that this platform's maker vouches for a processor, and that processor for the registers. Nothing
here shows that the platform resists its owner: attacks through side channels and on the hardware are known for all.
Sources: the pages of each platform's module.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import msgspec

from edgewise.core.errors import DecodeError
from edgewise.core.safe_repr import outline

Platform = Literal["snp", "tdx", "sgx", "nitro", "simulated"]
BOUND_BYTES = 64
LARGEST_BYTES = 1 << 20  # of a document, a certificate or a collateral
_CONTEXT = b"edgewise attested key 1\0"
IDENTITY: Mapping[str, str] = MappingProxyType(
    {"snp": "measurement", "tdx": "mr_td", "sgx": "mr_enclave", "nitro": "pcr0", "simulated": "measurement"}
)  # platform -> the register that says which program runs


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Evidence as it travels, as JSON. Bytes are base64.

    Attributes:
        platform: what signed it.
        document: an SEV-SNP report, a TDX or SGX quote, a Nitro document (COSE_Sign1), or a simulated statement.
        certificates: of SEV-SNP, as DER: the chip's own (VCEK), its issuer (ASK), the root (ARK).
        collateral: of TDX and SGX: the maker's statements that belong to the quote, as JSON.
    """

    platform: Platform
    document: bytes
    certificates: tuple[bytes, ...] = ()
    collateral: str | None = None

    __repr__ = outline


@dataclass(frozen=True)
class Facts:
    """Statements of verified evidence.

    Attributes:
        platform: as in the evidence.
        bound: 64 bytes that the attested program chose: REPORTDATA, or the user data of Nitro.
        registers: name -> lower-case hexadecimal digits. ``IDENTITY`` names the one that says which program runs.
        debug: the operator of the machine can read the program's memory.
        versions: of the platform's firmware, by name (SEV-SNP). status: that its maker gives it (TDX, SGX).
        signer: the key of a simulated statement. Such evidence proves nothing about a platform.
    """

    platform: Platform
    bound: bytes
    registers: Mapping[str, str]
    debug: bool
    versions: Mapping[str, int] = field(default_factory=dict)
    status: str | None = None
    signer: str | None = None

    __repr__ = outline


def parse(raw: bytes | str) -> Evidence:
    """Parse evidence from JSON. Raises DecodeError(E-ATTEST)."""
    try:
        return msgspec.json.decode(raw, type=Evidence)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise refused(f"it has not the form of evidence: {e}") from None


def dump(evidence: Evidence) -> bytes:
    """Serialise evidence as JSON."""
    return msgspec.json.encode(evidence)


def bound(role: str, run: str, key: bytes) -> bytes:
    """Return what the holder of a key for a run puts into its evidence: 64 bytes.

        SHA-512("edgewise attested key 1" || 0 || role || 0 || run || 0 || key)

    The run's id is the digest of its facts: recipe, privacy, budget, devices. So evidence of another run, with another
    budget, another key or another role is refused.
    """
    return hashlib.sha512(_CONTEXT + role.encode() + b"\0" + run.encode() + b"\0" + key).digest()


def refused(why: str) -> DecodeError:
    """Return the refusal of evidence."""
    return DecodeError(
        "E-ATTEST",
        f"attestation evidence is refused: {why}.",
        "ask the operator which machine and which image the program runs on.",
    )


def from_base64(text: str) -> bytes:
    """Decode base64 strictly. Raises DecodeError(E-ATTEST)."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise refused("a part of it is not base64") from None
